package store

import (
	"context"
	"fmt"
	"iter"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Change is an object as a revision left it; Value is nil when it was deleted
// (or is a record that cannot be read, which counts as none).
type Change = Object

// Batch holds all changes of one revision. A batch without changes says only
// that nothing else has changed up to its revision.
type Batch struct {
	Revision int64
	Changes  []Change
}

// Watch yields the changes after a revision, one whole revision after the
// other, until ctx is done or the loop ends. It ends with an error: the
// context's; ErrCompacted when etcd has forgotten revisions after that one;
// Unavailable when etcd has lost its leader. While etcd does not answer, Watch
// waits, and goes on where it was.
func (s *Store) Watch(ctx context.Context, after int64) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		events := s.client.Watch(clientv3.WithRequireLeader(ctx), resources,
			clientv3.WithPrefix(), clientv3.WithRev(after+1), clientv3.WithProgressNotify())
		for got := range events {
			if got.CompactRevision != 0 {
				yield(Batch{}, ErrCompacted)
				return
			}
			if err := got.Err(); err != nil {
				yield(Batch{}, s.fail(ctx, "watch", err))
				return
			}
			if !yieldRevisions(got, yield) {
				return
			}
		}
		err := ctx.Err()
		if err == nil {
			err = context.Canceled // the client was closed
		}
		yield(Batch{}, fmt.Errorf("watch etcd: %w", err))
	}
}

// yieldRevisions yields what one answer holds. Etcd puts any number of whole
// revisions into one, in order.
func yieldRevisions(got clientv3.WatchResponse, yield func(Batch, error) bool) bool {
	if got.IsProgressNotify() {
		return yield(Batch{Revision: got.Header.Revision}, nil)
	}
	for events := got.Events; len(events) > 0; {
		revision, n := events[0].Kv.ModRevision, 1
		for n < len(events) && events[n].Kv.ModRevision == revision {
			n++
		}
		batch := Batch{Revision: revision, Changes: make([]Change, n)}
		for i, e := range events[:n] {
			batch.Changes[i] = object(e.Kv)
			if e.Type == mvccpb.Event_DELETE {
				batch.Changes[i].Value = nil
			}
		}
		if !yield(batch, nil) {
			return false
		}
		events = events[n:]
	}
	return true
}
