package store

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"strings"

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
	Release  Release // the zero value: none
	Rewind   Rewind  // likewise
	Replicas bool    // it has changed which replicas there are
	Epoch    bool    // the fleet's epoch is another one: read it
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
		events := s.client.Watch(clientv3.WithRequireLeader(ctx), root,
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
		batch := batchOf(revision, events[:n])
		if !yield(batch, nil) {
			return false
		}
		events = events[n:]
	}
	return true
}

// batchOf reads the events of one revision. What else is kept in etcd, such as
// the guard, says no more than that the revision has passed.
func batchOf(revision int64, events []*clientv3.Event) Batch {
	batch := Batch{Revision: revision}
	for _, e := range events {
		if bytes.HasPrefix(e.Kv.Key, []byte(resources)) {
			if batch.Changes == nil {
				batch.Changes = make([]Change, 0, len(events))
			}
			o := object(e.Kv)
			if e.Type == mvccpb.Event_DELETE {
				o.Value = nil
			}
			batch.Changes = append(batch.Changes, o)
			continue
		}
		switch key := string(e.Kv.Key); {
		case key == epochKey:
			batch.Epoch = true
		case strings.HasPrefix(key, releaseKey) && e.Type != mvccpb.Event_DELETE:
			batch.Release = batch.Release.Merge(parseRelease(e.Kv))
		case key == rewindKey && e.Type != mvccpb.Event_DELETE:
			batch.Rewind = parseRewind(e.Kv)
		case strings.HasPrefix(key, Replicas):
			batch.Replicas = true
		}
	}
	return batch
}
