package snapshot

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/affleet/affleet/controlplane/internal/store"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// sharedSnapshot is built by the first stream that needs it; the others wait.
type sharedSnapshot struct {
	epoch    uint64
	revision int64
	bytes    int64         // of its entries, not compressed
	done     chan struct{} // closed when the frames are there
	frame    *Frame
	released *Frame // the same, for nodes whose guard is to let it pass
	// What was released when it was built: later writes release themselves only.
	release store.Release
}

// snapshotSize is about what a snapshot costs to send, in bytes.
func (s *shared) snapshotSize(v *View) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snap != nil && s.snap.epoch == v.epoch {
		select {
		case <-s.snap.done:
			// As well compressed as the last one.
			ratio := float64(s.snap.frame.Bytes) / float64(max(s.snap.bytes, 1))
			return max(int64(ratio*float64(v.head().bytes)), alwaysDelta)
		default:
		}
	}
	return max(v.head().bytes/2, alwaysDelta)
}

// alwaysDelta is the size, in bytes, up to which a delta is never called larger
// than a snapshot: a node takes it in for next to nothing.
const alwaysDelta = 64 << 10

// usable says whether a node that may not go below a revision can take the
// snapshot and then what the log holds after it, without much more to send.
func (s *sharedSnapshot) usable(v *View, least int64) bool {
	if s == nil || s.epoch != v.epoch || s.revision < least || s.revision < v.base.revision {
		return false
	}
	newer := v.cum(v.served) - v.cum(min(v.after(s.revision), v.served))
	return newer <= max(v.head().bytes/8, 1<<20)
}

// least is the lowest revision that a snapshot for a cursor may have. What a node
// holds of another epoch does not count.
func (v *View) least(c Cursor) int64 {
	if c.held.Epoch != v.epoch {
		return 0
	}
	least := max(c.held.Revision, c.least)
	if c.at > 0 {
		least = max(least, c.at+1) // or a node with a good state would get no further
	}
	return least
}

// snapshot gives a snapshot that is not older than the cursor allows. It may be
// older than the head: the stream then goes on with a delta.
func (l *Log) snapshot(ctx context.Context, v *View, c Cursor) (*Frame, error) {
	s := &l.shared
	least := v.least(c)
	s.mu.Lock()
	snap := s.snap
	build := !snap.usable(v, least)
	var contents frozen
	if build {
		l.mu.Lock()
		v = l.view.Load()
		contents = l.served.freeze()
		l.mu.Unlock()
		err := v.behind(c.held)
		least = v.least(c)
		if err == nil && v.hold != nil && least > v.hold.after {
			err = &BehindError{Head: v.Head(), Reason: fmt.Sprintf("this replica holds back revision %d, the node holds %d", v.hold.Revision, least)}
		}
		if err != nil {
			s.mu.Unlock()
			return nil, err
		}
		snap = &sharedSnapshot{
			epoch: v.epoch, revision: max(v.head().revision, least),
			bytes: contents.bytes, done: make(chan struct{}), release: v.released,
		}
		s.snap = snap
	}
	s.mu.Unlock()
	if build {
		start := time.Now()
		snap.frame = buildSnapshot(contents, Version{snap.epoch, snap.revision}, l.cfg.ChunkBytes)
		snap.released = snap.frame.release(contents)
		l.metrics.built(time.Since(start))
		close(snap.done)
	}
	select {
	case <-snap.done:
		if v.vouches(c, snap) {
			return snap.released, nil
		}
		return snap.frame, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// buildSnapshot encodes and compresses everything.
func buildSnapshot(contents frozen, at Version, chunkBytes int) *Frame {
	f := &Frame{Kind: Snapshot, To: at, Hash: contents.hash, Entries: contents.entries}
	add := func(message []byte) {
		f.Messages = append(f.Messages, message)
		f.Bytes += int64(len(message))
	}
	add(encodeBegin(contents, at, false))
	raw := make([]byte, 0, chunkBytes+chunkBytes/8)
	var compressed []byte
	flush := func() {
		if n := s2.MaxEncodedLen(len(raw)); cap(compressed) < n {
			compressed = make([]byte, n)
		}
		add(encodeChunk(s2.Encode(compressed[:cap(compressed)], raw)))
		raw = raw[:0]
	}
	for _, sh := range contents.shards {
		if sh == nil {
			continue
		}
		for _, e := range sh.m {
			raw = protowire.AppendTag(raw, fieldChunkEntries, protowire.BytesType)
			raw = protowire.AppendString(raw, e.wire())
			if len(raw) >= chunkBytes {
				flush()
			}
		}
	}
	if len(raw) > 0 {
		flush()
	}
	add(mustMarshal(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_SnapshotEnd{
		SnapshotEnd: &feedv1.SnapshotEnd{
			Version: &linkv1.Version{Epoch: at.Epoch, Revision: at.Revision}, Entries: contents.entries,
			SetHash: &feedv1.SetHash{Hi: contents.hash.Hi, Lo: contents.hash.Lo},
		},
	}}))
	return f
}

// release gives the same snapshot, marked as released.
func (f *Frame) release(contents frozen) *Frame {
	r := *f
	r.Released = true
	r.Messages = slices.Clone(f.Messages)
	r.Messages[0] = encodeBegin(contents, f.To, true)
	r.Bytes += int64(len(r.Messages[0]) - len(f.Messages[0]))
	return &r
}

func encodeBegin(contents frozen, at Version, released bool) []byte {
	return mustMarshal(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_SnapshotBegin{SnapshotBegin: &feedv1.SnapshotBegin{
		Version: &linkv1.Version{Epoch: at.Epoch, Revision: at.Revision}, Entries: contents.entries, Bytes: contents.bytes, Released: released,
	}}})
}
