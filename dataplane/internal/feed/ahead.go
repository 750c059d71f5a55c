package feed

import (
	"errors"
	"io"
	"iter"
	"sync"

	"github.com/affleet/affleet/proto/statefile"
)

// batchBytes is about how much of a state file is put at a time. A block of it
// has 64 kB: so few entries keep several goroutines busy for a moment only, and
// waking them again and again took a tenth of the time of a start.
const batchBytes = 896 << 10

// batch is some blocks of a state file, and their entries, which alias them.
type batch struct {
	plain []byte
	list  []pair
	err   error
}

// batches gives the entries of a state file, batch by batch, each valid until
// the next one is asked for. The last one may come with an error, and is of no
// use then. A goroutine reads and decompresses one batch ahead; it has ended
// when the iteration has.
func batches(r *statefile.Reader) iter.Seq2[[]pair, error] {
	return func(yield func([]pair, error) bool) {
		ready, free := make(chan batch), make(chan batch, 2)
		free <- batch{}
		free <- batch{}
		var reading sync.WaitGroup
		defer reading.Wait()
		stop := make(chan struct{})
		defer close(stop)
		reading.Go(func() {
			defer close(ready)
			for more := true; more; {
				var b batch
				select {
				case b = <-free:
				case <-stop:
					return
				}
				more = b.fill(r)
				select {
				case ready <- b:
				case <-stop:
					return
				}
			}
		})
		for b := range ready {
			if !yield(b.list, b.err) || b.err != nil {
				return
			}
			free <- b // there is room: two are all
		}
	}
}

// fill reads the next batch, and says whether there are more.
func (b *batch) fill(r *statefile.Reader) (more bool) {
	b.plain, b.list = b.plain[:0], b.list[:0]
	more = true
	for more && len(b.plain) < batchBytes {
		var err error
		if b.plain, err = r.AppendBlock(b.plain); errors.Is(err, io.EOF) {
			more = false
		} else if err != nil {
			b.err = err
			return false
		}
	}
	b.list, b.err = appendEntries(b.list, b.plain)
	return more && b.err == nil
}
