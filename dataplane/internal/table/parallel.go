package table

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/affleet/affleet/proto/link"
)

const (
	blockEntries  = 4096 // that are put in one go
	serialEntries = 128  // fewer are not worth a goroutine
	maxWorkers    = 64
	maxErrors     = 8 // that PutAll names
)

// PutAll puts n entries as Put does, with as many goroutines as the process may
// run at the same time. The result is that of calling Put for each in order.
// Entries that are wrong are left out; the error names the first of them, and
// says how many there are.
//
// It calls entry for each i from 0 to n-1, more than once and from several
// goroutines. Keys and values must stay as they are until it returns.
func (b *Builder) PutAll(n int, entry func(i int) (key, value []byte)) error {
	b.check()
	left := leftOut{}
	workers := min(runtime.GOMAXPROCS(0), maxWorkers)
	if workers == 1 || n < serialEntries {
		for i := range n {
			key, value := entry(i)
			left.add(putError(key, b.put(key, value)))
		}
		return left.err()
	}
	block := make([]pending, min(n, blockEntries))
	for first := 0; first < n; first += len(block) {
		block = block[:min(len(block), n-first)]
		b.putBlock(block, workers, func(i int) (key, value []byte) { return entry(first + i) }, &left)
	}
	return left.err()
}

// putBlock compiles the links of a block in parallel, then puts each into its
// shard, with all the links of a shard done by one goroutine.
func (b *Builder) putBlock(block []pending, workers int, entry func(int) (key, value []byte), left *leftOut) {
	inParallel(workers, func(w int) {
		for i := len(block) * w / workers; i < len(block)*(w+1)/workers; i++ {
			p := &block[i]
			*p = pending{}
			key, value := entry(i)
			kind, id := cutKind(key)
			if p.isLink = kind == link.Links; !p.isLink {
				continue
			}
			if p.err = b.prepare(p, id, value); p.err == nil {
				p.worker = uint8(b.firstPlace(b.shard(p.at), p.at) * workers >> b.bits)
			}
		}
	})
	b.unshare()
	for i := range block {
		if p := &block[i]; p.isLink && p.err == nil {
			_, value := entry(i)
			b.hold(p, value)
		}
	}
	b.underWay.forget()
	inParallel(workers, func(w int) {
		for i := range block {
			if p := &block[i]; p.isLink && int(p.worker) == w && p.err == nil {
				key, value := entry(i)
				_, id := cutKind(key)
				p.err = b.insert(p, id, value)
			}
		}
	})
	for i := range block {
		p := &block[i]
		key, value := entry(i)
		switch {
		case !p.isLink:
			p.err = b.put(key, value)
		case p.err == nil:
			b.account(p, value)
		default:
			b.release(p)
		}
		left.add(putError(key, p.err))
	}
}

// inParallel calls f for each worker and waits for all.
func inParallel(workers int, f func(worker int)) {
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() { f(w) })
	}
	wg.Wait()
}

// leftOut collects the errors of many entries.
type leftOut struct {
	first []error
	n     int
}

func (l *leftOut) add(err error) {
	if err == nil {
		return
	}
	if l.n++; l.n <= maxErrors {
		l.first = append(l.first, err)
	}
}

func (l *leftOut) err() error {
	if l.n > maxErrors {
		l.first = append(l.first, fmt.Errorf("and %d more", l.n-maxErrors))
	}
	return errors.Join(l.first...)
}
