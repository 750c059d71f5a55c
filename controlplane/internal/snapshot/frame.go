package snapshot

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/affleet/affleet/controlplane/internal/store"
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
	// The node's guard lets it pass.
	Released bool
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
	// The node holds something else than the log has at its revision.
	other bool
}

// Held is what the node holds.
func (c Cursor) Held() Version { return c.held }

// Distrusted is the cursor of a node that could not take a delta: it gets a
// snapshot, of at least the revision that the delta led to.
func (c Cursor) Distrusted(least int64) Cursor {
	return Cursor{held: c.held, least: least, other: c.other}
}

// Other is the cursor of a node that holds something else than it was sent.
func (c Cursor) Other() Cursor { return Cursor{held: c.held, least: c.least, other: true} }

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
	switch known, ok := v.HashAt(held); {
	case ok && known == hash:
		c.at = held.Revision
	case ok:
		c.other = true
	case held.Revision > 0 && held.Revision < v.base.revision && v.base.hash == hash:
		// From before this replica read the store, and nothing changed since.
		c.at = v.base.revision
	}
	if v.rewind.Seen != 0 && held.Epoch == v.epoch && c.at == 0 {
		return Cursor{}, &BehindError{Head: v.Head(), Reason: fmt.Sprintf(
			"etcd was restored from a backup, and this replica does not know revision %d as the node holds it; if the backup is meant: affctl fleet new-epoch", held.Revision)}
	}
	return c, nil
}

func (v *View) behind(held Version) error {
	switch {
	case v.epoch == 0:
		return &BehindError{Reason: "this replica has not read the store yet"}
	case held.Epoch != 0 && held.Epoch != v.epoch && !slices.Contains(v.past, held.Epoch):
		return &BehindError{Head: v.Head(), Reason: fmt.Sprintf("this replica serves epoch %016x and does not know %016x, which the node holds", v.epoch, held.Epoch)}
	case held.Epoch == v.epoch && held.Revision > v.seen:
		return &BehindError{Head: v.Head(), Reason: fmt.Sprintf("this replica has seen revision %d, the node holds %d", v.seen, held.Revision)}
	case v.blind && held.Epoch != v.epoch:
		return &BehindError{Reason: fmt.Sprintf("revision %d is held back, and etcd has compacted what was served before it; affctl fleet release", v.hold.Revision)}
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
	c = v.current(c)
	if f, ok := l.delta(v, c); ok {
		return f, nil
	}
	return l.snapshot(ctx, v, c)
}

// NextDelta is Next where that is nothing, or a delta of about at most so many
// bytes: it takes no time then. ok is false where it is something else.
func (l *Log) NextDelta(c Cursor, most int64) (f *Frame, ok bool) {
	v := l.View()
	if v.behind(c.held) != nil {
		return nil, false
	}
	c = v.current(c)
	if i := min(v.after(c.at), v.served); v.served > i+1 && v.cum(v.served)-v.cum(i) > most {
		return nil, false
	}
	return l.delta(v, c)
}

// current is a cursor as this view's epoch takes it: of a past one, or none, no
// revision is too low.
func (v *View) current(c Cursor) Cursor {
	if c.held.Epoch != v.epoch {
		c.at, c.least = 0, 0
	}
	return c
}

// delta gives the delta that comes next, nil at the head; ok is false where a
// snapshot does.
func (l *Log) delta(v *View, c Cursor) (f *Frame, ok bool) {
	if v.blind {
		return nil, true // what nodes hold is as good as anything
	}
	if c.at < v.base.revision || c.at == 0 {
		return nil, false
	}
	i := min(v.after(c.at), v.served)
	switch missing := v.live()[i:]; {
	case len(missing) == 0 && c.held.Revision >= c.at:
		return nil, true
	case len(missing) == 0:
		// The same state under a newer revision.
		to := v.before(i)
		to.revision = c.at
		return deltaFrame(v.epoch, c.held.Revision, to, nil, false), true
	case missing[0].frame == nil:
		return nil, false
	case len(missing) == 1 && missing[0].from == c.held.Revision &&
		(missing[0].frame.Released || !releases(v.released, c.held.Revision, missing[0].revision)):
		return missing[0].frame, true
	}
	f = l.shared.delta(v, c.held.Revision, i, min(l.cfg.MaxDelta, severalBytes))
	return f, f != nil
}

// severalBytes is the size, in bytes, up to which several revisions are put into one
// delta: a take-down waits for the message that is being sent, over whatever line.
const severalBytes = 4 << 20

// releases says whether an operator or a writer has released something between
// two revisions.
func releases(r store.Release, from, to int64) bool {
	return from < r.UpTo && r.UpTo <= to || from < r.Write && r.Write <= to
}

// vouches says whether a snapshot passes the guard of the node that a cursor
// stands for: because a release lies between what it holds and the snapshot, an
// operator has begun a new epoch, or because all that lies between passed the guard
// here, which saw each step.
func (v *View) vouches(c Cursor, s *sharedSnapshot) bool {
	if c.held.Epoch == 0 {
		return false // it has nothing to compare with
	}
	if c.held.Epoch != v.epoch {
		return true
	}
	_, known := v.at(c.held)
	return known && !c.other || releases(s.release, c.held.Revision, s.revision) || releases(v.released, c.held.Revision, s.revision)
}

// shared is what streams in the same position share.
type shared struct {
	mu     sync.Mutex
	head   Version                   // that deltas lead to
	upTo   int64                     // what was released then
	deltas map[deltaKey]*sharedDelta // a few
	snap   *sharedSnapshot
}

type deltaKey struct{ held, from int64 }

type sharedDelta struct {
	once  sync.Once
	frame *Frame // nil: a snapshot is smaller
}

// maxDeltas bounds how many coalesced deltas are kept for others.
const maxDeltas = 16

// delta gives one delta of the records from i on, for a node that holds a
// revision; nil if a snapshot is smaller. Streams that ask for the same at the
// same time share one.
func (s *shared) delta(v *View, held int64, i int, limit int64) *Frame {
	head, records := v.Head(), v.live()[i:]
	s.mu.Lock()
	if s.head != head || s.upTo != v.released.UpTo {
		s.head, s.upTo = head, v.released.UpTo
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
		whole := s.snapshotSize(v)
		if v.cum(v.served)-v.cum(i) > whole { // at most that much
			if _, _, size := coalesce(records, 0); size > whole {
				return
			}
		}
		changes, used, _ := coalesce(records, limit)
		to := records[used-1].mark
		// Several steps, each of which passed the guard here, may be more at once than
		// one may be for a node.
		released := used > 1 || releases(v.released, held, to.revision)
		for _, r := range records[:used] {
			released = released || r.released
		}
		d.frame = deltaFrame(v.epoch, held, to, changes, released)
	})
	return d.frame
}
