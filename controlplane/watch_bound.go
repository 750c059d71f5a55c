package controlplane

import (
	"context"
	"iter"

	"github.com/affleet/affleet/controlplane/internal/store"
)

// How much of a watch waits for a client that reads slowly: whichever is
// reached first.
const (
	watchBatches = 10_000
	watchBytes   = 16 << 20
)

// boundedWatch is store.Watch, for a loop that may be slow: etcd's client keeps
// whatever a watcher has not taken yet, without bound. Here a watch that is too
// far ahead of the loop is ended, and begun anew where the loop is once it has
// caught up; it ends with store.ErrCompacted when etcd has forgotten that by
// then.
func boundedWatch(ctx context.Context, s *store.Store, after int64) iter.Seq2[store.Batch, error] {
	return func(yield func(store.Batch, error) bool) {
		for {
			q, last := newWatchQueue(), after
			var err error
			watching, cancel := context.WithCancel(ctx)
			go q.fill(s.Watch(watching, after))
			for {
				var batch store.Batch
				var ok bool
				if batch, ok, err = q.next(); !ok {
					break
				}
				if last = batch.Revision; !yield(batch, nil) {
					cancel()
					q.ended()
					return
				}
			}
			cancel()
			q.ended()
			if err != nil {
				yield(store.Batch{}, err)
				return
			}
			after = last
		}
	}
}

// watchQueue is what a watch has given and a loop has not taken yet.
type watchQueue struct {
	batches chan store.Batch
	room    chan int64 // bytes that were taken
	stopped chan struct{}
	err     error // why the watch ended, once stopped is closed; nil: it was too far ahead
}

func newWatchQueue() *watchQueue {
	return &watchQueue{batches: make(chan store.Batch, watchBatches), room: make(chan int64, watchBatches), stopped: make(chan struct{})}
}

// fill takes from a watch until it ends or there is no room.
func (q *watchQueue) fill(watch iter.Seq2[store.Batch, error]) {
	defer close(q.stopped)
	defer close(q.batches)
	bytes := int64(0)
	for batch, err := range watch {
		if err != nil {
			q.err = err
			return
		}
		for taken := true; taken; {
			select {
			case n := <-q.room:
				bytes -= n
			default:
				taken = false
			}
		}
		bytes += batchBytes(batch)
		if bytes > watchBytes && len(q.batches) > 0 {
			return
		}
		select {
		case q.batches <- batch:
		default:
			return
		}
	}
}

// next gives the next batch; ok is false at the end, after all that was there.
func (q *watchQueue) next() (batch store.Batch, ok bool, err error) {
	batch, ok = <-q.batches
	if !ok {
		return batch, false, q.err
	}
	select {
	case q.room <- batchBytes(batch):
	default: // the watch has ended
	}
	return batch, true, nil
}

// ended waits for the watch to have ended.
func (q *watchQueue) ended() { <-q.stopped }

func batchBytes(batch store.Batch) int64 {
	n := int64(64)
	for i := range batch.Changes {
		n += int64(len(batch.Changes[i].Name) + len(batch.Changes[i].Value) + 64)
	}
	return n
}
