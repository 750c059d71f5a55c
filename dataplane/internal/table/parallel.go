package table

import (
	"runtime"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/affleet/affleet/proto/link"
)

const (
	blockEntries  = 8192 // that are put in one go
	serialEntries = 128  // fewer are not worth a goroutine
	maxWorkers    = 64
	grain         = 256 // entries that a goroutine prepares at a time
	partsEach     = 4   // parts of a block for each goroutine that inserts
	placeBits     = 10  // of the hash, by which links are put in order
)

// PutAll puts n entries as Put does, with as many goroutines as the process may
// run at the same time. The result is that of calling Put for each in order.
// Entries that are wrong are left out; when all others are put, wrong is called
// for each of them, in order, with the error of Put. It may hold them.
//
// It calls entry for each i from 0 to n-1, more than once and from several
// goroutines. Keys and values must stay as they are until it returns.
func (b *Builder) PutAll(n int, entry func(i int) (key, value []byte), wrong func(i int, err error)) {
	b.check()
	b.many = n >= serialEntries
	var left []leftOut
	workers := workers()
	if workers == 1 || n < serialEntries {
		for i := range n {
			key, value := entry(i)
			if err := b.Put(key, value); err != nil {
				left = append(left, leftOut{i, err})
			}
		}
	} else {
		pooled := pendings.Get().(*[]pending)
		blocks := (n + blockEntries - 1) / blockEntries
		block := (*pooled)[:(n+blocks-1)/blocks] // all of about the same size
		defer func() {
			clear((*pooled)[:(n+blocks-1)/blocks]) // they keep what was put
			pendings.Put(pooled)
		}()
		for first := 0; first < n; first += len(block) {
			block = block[:min(len(block), n-first)]
			left = b.putBlock(block, first, workers, entry, left)
		}
	}
	for _, l := range left {
		wrong(l.i, l.err)
	}
}

// pendings are blocks that PutAll may use again: an import puts a thousand links
// at a time.
var pendings = sync.Pool{New: func() any { block := make([]pending, blockEntries); return &block }}

// leftOut is an entry that was not put.
type leftOut struct {
	i   int
	err error
}

// putBlock compiles the links of a block in parallel, then puts each into its
// shard, with all the links of a shard done by one goroutine, one behind the
// other. The block begins with entry first. It appends what it leaves out.
func (b *Builder) putBlock(block []pending, first, workers int, entry func(int) (key, value []byte), left []leftOut) []leftOut {
	inParallel(workers, (len(block)+grain-1)/grain, func(piece int) {
		for i := piece * grain; i < min((piece+1)*grain, len(block)); i++ {
			p := &block[i]
			*p = pending{}
			key, value := entry(first + i)
			kind, id := cutKind(key)
			if p.isLink = kind == link.Links; p.isLink {
				p.err = b.prepare(p, id, value)
			}
		}
	})
	b.unshare()
	for i := range block {
		if p := &block[i]; p.isLink && p.err == nil {
			_, value := entry(first + i)
			b.hold(p, value)
		}
	}
	b.underWay.forget()
	order := inOrder(block)
	parts := b.parts(block, order, partsEach*workers)
	inParallel(workers, len(parts)-1, func(part int) {
		for _, i := range order[parts[part]:parts[part+1]] {
			p := &block[i]
			key, value := entry(first + int(i))
			_, id := cutKind(key)
			p.err = b.insert(p, id, value)
		}
	})
	for i := range block {
		p := &block[i]
		key, value := entry(first + i)
		switch {
		case !p.isLink:
			p.err = b.put(key, value)
		case p.err == nil:
			b.accountLink(p, value)
		default:
			b.release(p)
		}
		if p.err != nil {
			left = append(left, leftOut{first + i, putError(key, p.err)})
		} else {
			b.unhold(key)
		}
	}
	return left
}

// inOrder gives the links of a block that are to be inserted in the order of
// their places in the list of shards, and those of one place as they came: what
// one finds in the cache, the next one does too.
func inOrder(block []pending) []uint16 {
	const places = 1 << placeBits
	var ends [places + 1]int
	for i := range block {
		if p := &block[i]; p.isLink && p.err == nil {
			ends[p.at>>(64-placeBits)+1]++
		}
	}
	for i := range places {
		ends[i+1] += ends[i]
	}
	order := make([]uint16, ends[places])
	for i := range block {
		if p := &block[i]; p.isLink && p.err == nil {
			end := &ends[p.at>>(64-placeBits)]
			order[*end] = uint16(i) // below blockEntries
			*end++
		}
	}
	return order
}

// parts cuts them into n parts, of about the same size if they are many, so that
// all links of a shard are in one: where each begins, and the last one ends.
func (b *Builder) parts(block []pending, order []uint16, n int) []int {
	parts := make([]int, n+1)
	for part := range parts {
		parts[part] = sort.Search(len(order), func(i int) bool {
			at := block[order[i]].at
			// Where its shard begins, in the places that they are in the order of.
			first := b.firstPlace(b.shard(at), at) << placeBits >> b.bits
			return first*n>>placeBits >= part
		})
	}
	return parts
}

// workers is how many goroutines do what is done in parallel.
func workers() int { return min(runtime.GOMAXPROCS(0), maxWorkers) }

// inParallel calls f for each piece from 0 to n-1, in any order, by so many
// goroutines, and waits for all. Whoever is done with one takes the next: other
// work of the process may hold one of them up.
func inParallel(workers, n int, f func(piece int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}
