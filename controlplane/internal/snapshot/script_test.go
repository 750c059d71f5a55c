package snapshot

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/controlplane/internal/store"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	"github.com/affleet/affleet/proto/link"
)

// script is a Source that does what a test says.
type script struct {
	mu        sync.Mutex
	epoch     uint64
	past      []uint64
	release   store.Release
	held      int64
	rewind    store.Rewind
	allow     bool // the next write releases itself
	revision  int64
	state     map[string]string
	history   []store.Batch
	compacted int64
	progress  int64         // the next watch that has nothing else to give says this revision, once
	broken    bool          // nothing answers
	moved     chan struct{} // closed when anything changed

	states  map[int64]map[string]string // by revision, for comparing
	forgets bool                        // does not keep them: for large ones
	loads   int
}

var errBroken = errors.New("the source does not answer")

func newScript() *script {
	s := &script{epoch: 7, revision: 1, state: map[string]string{}, moved: make(chan struct{}), states: map[int64]map[string]string{}}
	s.states[1] = map[string]string{}
	return s
}

// write makes one revision of changes; "" deletes.
func (s *script) write(changes map[string]string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	b := store.Batch{Revision: s.revision}
	for key, value := range changes {
		c := store.Change{Name: key, Revision: s.revision}
		if value == "" {
			delete(s.state, key)
		} else {
			s.state[key] = value
			c.Value = []byte(value)
		}
		b.Changes = append(b.Changes, c)
	}
	if s.allow {
		b.Release, s.allow = s.release, false
	}
	s.history = append(s.history, b)
	if !s.forgets {
		s.states[s.revision] = maps.Clone(s.state)
	}
	s.signal()
	return s.revision
}

// begin begins another epoch.
func (s *script) begin(epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	s.past = append(s.past, s.epoch)
	s.epoch = epoch
	s.history = append(s.history, store.Batch{Revision: s.revision, Epoch: true})
	s.states[s.revision] = maps.Clone(s.state)
	s.signal()
}

// set changes the script itself.
func (s *script) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.signal()
}

func (s *script) signal() {
	close(s.moved)
	s.moved = make(chan struct{})
}

func (s *script) Epochs(context.Context) (store.Epochs, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return store.Epochs{}, errBroken
	}
	return store.Epochs{Current: s.epoch, Past: slices.Clone(s.past)}, nil
}

func (s *script) Load(_ context.Context, opts store.LoadOptions, each func(store.Object) error) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !opts.Paced {
		s.loads++
	}
	state, revision := s.state, s.revision
	if opts.At != 0 {
		if opts.At < s.compacted {
			return 0, store.ErrCompacted
		}
		state, revision = s.states[opts.At], opts.At
	}
	for key, value := range state {
		if err := each(store.Object{Name: key, Value: []byte(value)}); err != nil {
			return 0, err
		}
	}
	return revision, nil
}

func (s *script) ReleasedAt(_ context.Context, epoch uint64, revision int64) (r store.Release, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.history {
		if b.Revision <= revision && b.Release.Epoch == epoch {
			r = r.Merge(b.Release)
		}
	}
	return r, nil
}

func (s *script) Hold(_ context.Context, _ uint64, revision int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == 0 {
		s.held = revision
	}
	return nil
}

func (s *script) Held(context.Context, uint64) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held, nil
}

func (s *script) Revision(context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return 0, errBroken
	}
	return s.revision, nil
}

func (s *script) Rewind(_ context.Context, r store.Rewind) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	s.rewind = r
	s.history = append(s.history, store.Batch{Revision: s.revision, Rewind: r})
	s.states[s.revision] = maps.Clone(s.state)
	s.signal()
	return nil
}

func (s *script) Rewound(_ context.Context, epoch uint64) (store.Rewind, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return store.Rewind{}, errBroken
	}
	if s.rewind.Epoch != epoch {
		return store.Rewind{}, nil
	}
	return s.rewind, nil
}

func (s *script) Touch(context.Context) error {
	s.write(nil)
	return nil
}

// free releases what is held back up to a revision, as an operator does.
func (s *script) free(upTo int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	s.release = store.Release{Epoch: s.epoch, UpTo: upTo}
	s.held = 0
	s.history = append(s.history, store.Batch{Revision: s.revision, Release: s.release})
	s.states[s.revision] = maps.Clone(s.state)
	s.signal()
}

func (s *script) Watch(ctx context.Context, after int64) iter.Seq2[store.Batch, error] {
	return func(yield func(store.Batch, error) bool) {
		for {
			s.mu.Lock()
			moved, broken, compacted := s.moved, s.broken, after < s.compacted
			var next *store.Batch
			for i := range s.history {
				if s.history[i].Revision > after {
					next = &s.history[i]
					break
				}
			}
			progress := s.progress
			if next == nil {
				s.progress = 0
			}
			s.mu.Unlock()
			switch {
			case broken:
				yield(store.Batch{}, errBroken)
				return
			case compacted:
				yield(store.Batch{}, store.ErrCompacted)
				return
			case next != nil:
				if !yield(*next, nil) {
					return
				}
				after = next.Revision
				continue
			case progress != 0:
				if !yield(store.Batch{Revision: progress}, nil) {
					return
				}
			}
			select {
			case <-ctx.Done():
				yield(store.Batch{}, ctx.Err())
				return
			case <-moved:
			}
		}
	}
}

// replicaNode is a node as the model has it.
type replicaNode struct {
	held    Version
	entries map[string]string
	cursor  Cursor
}

func (n *replicaNode) hash() (h link.SetHash) {
	for key, value := range n.entries {
		h = h.Add(link.HashEntry([]byte(key), []byte(value)))
	}
	return h
}

// apply decodes a frame with protobuf alone and checks all that it says.
func (n *replicaNode) apply(t testing.TB, f *Frame) {
	t.Helper()
	size := int64(0)
	entries := n.entries
	for _, b := range f.Messages {
		size += int64(len(b))
		var m feedv1.SubscribeResponse
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Fatalf("frame: %v", err)
		}
		switch m := m.GetFrame().(type) {
		case *feedv1.SubscribeResponse_Delta:
			n.applyDelta(t, f, m.Delta)
		case *feedv1.SubscribeResponse_SnapshotBegin:
			entries = map[string]string{}
			if m.SnapshotBegin.GetVersion().GetRevision() < n.held.Revision {
				t.Fatalf("snapshot of revision %d for a node at %d", m.SnapshotBegin.GetVersion().GetRevision(), n.held.Revision)
			}
		case *feedv1.SubscribeResponse_SnapshotChunk:
			plain, err := s2.Decode(nil, m.SnapshotChunk.GetCompressed())
			if err != nil {
				t.Fatal(err)
			}
			var chunk feedv1.SnapshotChunk
			if err := proto.Unmarshal(plain, &chunk); err != nil {
				t.Fatal(err)
			}
			for _, e := range chunk.GetEntries() {
				if _, ok := entries[e.GetKey()]; ok {
					t.Fatalf("%s is twice in a snapshot", e.GetKey())
				}
				entries[e.GetKey()] = string(e.GetValue())
			}
		case *feedv1.SubscribeResponse_SnapshotEnd:
			n.entries = entries
			end := m.SnapshotEnd
			n.verify(t, f, end.GetSetHash(), end.GetEntries())
		default:
			t.Fatalf("unexpected %T", m)
		}
	}
	if size != f.Bytes {
		t.Fatalf("frame has %d bytes and says %d", size, f.Bytes)
	}
	n.held, n.cursor = f.To, f.After()
}

func (n *replicaNode) applyDelta(t testing.TB, f *Frame, d *feedv1.Delta) {
	t.Helper()
	if from := d.GetFrom(); from.GetEpoch() != n.held.Epoch || from.GetRevision() != n.held.Revision {
		t.Fatalf("delta from %v for a node at %v", from, n.held)
	}
	if d.GetTo().GetRevision() <= n.held.Revision || d.GetTo().GetRevision() != f.To.Revision {
		t.Fatalf("delta to %v for a node at %v", d.GetTo(), n.held)
	}
	for _, key := range d.GetDeletes() {
		if _, ok := n.entries[key]; !ok {
			t.Fatalf("delta deletes %s, which the node never held", key)
		}
		delete(n.entries, key)
	}
	for _, e := range d.GetPuts() {
		n.entries[e.GetKey()] = string(e.GetValue())
	}
	n.verify(t, f, d.GetSetHash(), d.GetEntries())
}

func (n *replicaNode) verify(t testing.TB, f *Frame, hash *feedv1.SetHash, entries int64) {
	t.Helper()
	if got := (link.SetHash{Hi: hash.GetHi(), Lo: hash.GetLo()}); n.hash() != got || f.Hash != got || int64(len(n.entries)) != entries || f.Entries != entries {
		t.Fatalf("after revision %d: %d entries with hash %x, the frame says %d with %x", f.To.Revision, len(n.entries), n.hash(), entries, got)
	}
}
