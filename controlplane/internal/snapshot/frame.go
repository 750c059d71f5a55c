package snapshot

import (
	"context"
	"fmt"
	"sync"

	"github.com/affleet/affleet/proto/link"
)

// FrameKind is what a frame is.
type FrameKind uint8

// The kinds of frames.
const (
	Delta FrameKind = iota + 1
	Snapshot
)

// String is the kind as a metric label.
func (k FrameKind) String() string {
	if k == Snapshot {
		return "snapshot"
	}
	return "delta"
}

// Frame is what a stream sends next. It is shared by streams and never changes.
type Frame struct {
	Kind    FrameKind
	To      Version      // what the node holds after it
	Hash    link.SetHash // the set hash it then has
	Entries int64        // how many entries it then has
	// Serialized feedv1.SubscribeResponse, to be sent in this order.
	Messages [][]byte
	Bytes    int64 // of all messages

	from int64 // a delta's
}

// After is the cursor of a stream whose node has applied the frame.
func (f *Frame) After() Cursor { return Cursor{held: f.To, at: f.To.Revision} }

// Cursor is where a stream is: what its node holds. The zero value is a node
// that holds nothing.
type Cursor struct {
	held Version
	// The revision of this log whose state the node holds; 0: none, it needs
	// a snapshot.
	at int64
	// A snapshot may not be older than this revision.
	least int64
}

// Held is what the node holds.
func (c Cursor) Held() Version { return c.held }

// Distrusted is the cursor of a node that could not take a delta: it gets a
// snapshot, of at least the revision that the delta led to.
func (c Cursor) Distrusted(least int64) Cursor { return Cursor{held: c.held, least: least} }

// BehindError says that this replica cannot serve a node: it holds an older
// version, another epoch, or nothing.
type BehindError struct {
	Head   Version // what the replica holds
	Reason string  // for people
}

// Error gives the reason.
func (e *BehindError) Error() string { return e.Reason }

// Resume gives the cursor of a node that names what it holds: where the log
// knows that state, and it has this set hash, what is missing is sent. The
// error is a *BehindError.
func (l *Log) Resume(held Version, hash link.SetHash) (Cursor, error) {
	v := l.View()
	if err := v.behind(held); err != nil {
		return Cursor{}, err
	}
	c := Cursor{held: held}
	if known, ok := v.HashAt(held); ok && known == hash {
		c.at = held.Revision
	} else if held.Revision > 0 && held.Revision < v.base.revision && v.base.hash == hash {
		// From before this replica read the store, and nothing changed since.
		c.at = v.base.revision
	}
	return c, nil
}

func (v *View) behind(held Version) error {
	switch {
	case v.epoch == 0:
		return &BehindError{Reason: "this replica has not read the store yet"}
	case held.Epoch != 0 && held.Epoch != v.epoch:
		return &BehindError{Head: v.Head(), Reason: fmt.Sprintf("this replica serves epoch %016x, the node holds epoch %016x", v.epoch, held.Epoch)}
	case held.Revision > v.seen:
		return &BehindError{Head: v.Head(), Reason: fmt.Sprintf("this replica has seen revision %d, the node holds %d", v.seen, held.Revision)}
	}
	return nil
}

// Next gives what a stream sends next, or nil when its node is at the head: the
// shared bytes of the record that is missing, one delta of the latest values
// of several, or a snapshot when the log does not reach back or it is smaller.
// It waits, until ctx ends, only for a snapshot that is being built. The error
// is ctx's or a *BehindError.
func (l *Log) Next(ctx context.Context, c Cursor) (*Frame, error) {
	v := l.View()
	if err := v.behind(c.held); err != nil {
		return nil, err
	}
	if c.at < v.base.revision || c.at == 0 {
		return l.snapshot(ctx, v, c)
	}
	i := v.after(c.at)
	switch missing := v.records[i:]; {
	case len(missing) == 0 && c.held.Revision >= c.at:
		return nil, nil
	case len(missing) == 0:
		// The same state under a newer revision.
		return deltaFrame(v.epoch, c.held.Revision, mark{revision: c.at, hash: v.before(i).hash, entries: v.before(i).entries}, nil), nil
	case len(missing) == 1 && missing[0].frame != nil && missing[0].from == c.held.Revision:
		return missing[0].frame, nil
	}
	return l.catchUp(ctx, v, c, i)
}

// catchUp chooses between one delta of the records from i on and a snapshot.
func (l *Log) catchUp(ctx context.Context, v *View, c Cursor, i int) (*Frame, error) {
	missing := v.records[i:]
	size := v.cum(len(v.records)) - v.cum(i) // at most
	whole := l.shared.snapshotSize(v)
	if missing[0].frame == nil {
		return l.snapshot(ctx, v, c)
	}
	if size > whole {
		if _, _, size = coalesce(missing, 0); size > whole {
			return l.snapshot(ctx, v, c)
		}
	}
	return l.shared.delta(v, c.held.Revision, missing, l.cfg.MaxDelta), nil
}

// shared is what streams in the same position share.
type shared struct {
	mu     sync.Mutex
	head   int64                     // the revision that deltas lead to
	deltas map[deltaKey]*sharedDelta // a few
	snap   *sharedSnapshot
}

type deltaKey struct{ held, from int64 }

type sharedDelta struct {
	once  sync.Once
	frame *Frame
}

// maxDeltas bounds how many coalesced deltas are kept for others.
const maxDeltas = 16

// delta gives one delta of records, for a node that holds a revision. Streams
// that ask for the same at the same time share one.
func (s *shared) delta(v *View, held int64, records []*record, limit int64) *Frame {
	head := v.head().revision
	s.mu.Lock()
	if s.head != head {
		s.head = head
		clear(s.deltas)
	}
	key := deltaKey{held, records[0].revision}
	d := s.deltas[key]
	if d == nil {
		if s.deltas == nil || len(s.deltas) >= maxDeltas {
			s.deltas = make(map[deltaKey]*sharedDelta)
		}
		d = &sharedDelta{}
		s.deltas[key] = d
	}
	s.mu.Unlock()
	d.once.Do(func() {
		changes, used, _ := coalesce(records, limit)
		d.frame = deltaFrame(v.epoch, held, records[used-1].mark, changes)
	})
	return d.frame
}
