package store

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/zeebo/xxh3"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// ImportOptions says how rows are written.
type ImportOptions struct {
	StopOnError bool // end at the first row that fails: no row after it is written
	CreateOnly  bool // a row whose resource exists fails
	DryRun      bool // check everything, write nothing
}

// RowResult is what became of one row.
type RowResult struct {
	Row      int64 // from 0, over the whole import
	Name     string
	Outcome  Outcome // 0: it failed
	Revision int64   // at which the row is in effect; 0 in a dry run
	Err      error   // why it failed
}

// How an import is cut up.
const (
	chunkRows    = 256     // validated by one goroutine at a time
	batchNames   = maxGets // different resources of one transaction
	batchRows    = 1000    // rows of one transaction, which may share names
	batchBytes   = 1 << 20 // of one transaction, after which it takes no more; etcd allows 1.5 MiB
	transactions = 4       // under way at once
)

// Import writes any number of resources, whether they exist or not, in many
// transactions, and hands each row's outcome to out, as soon as it is known and
// in no particular order. Rows of one name are written in their order, and a
// link after the affiliate that an earlier row has. A row that fails does not
// keep others from being written.
//
// out is called by the calling goroutine; it may keep the slice. It is called
// with no results when every row so far has its outcome. Its error ends the
// import.
//
// The import ends when rows is closed and every row has its outcome: nil. It
// ends early with an error that says how many rows have theirs when etcd fails
// or, with StopOnError, a row does; all outcomes that are known have been handed
// to out. The rows that have none can be imported again, and so can all.
// Whoever sends rows also selects on ctx.
func (s *Store) Import(ctx context.Context, who string, opts ImportOptions, rows <-chan []*linkv1.Resource, out func([]RowResult) error) error {
	ctx, cancel := context.WithCancel(ctx)
	im := &importer{
		s: s, who: who, opts: opts, out: out,
		completed: make(chan *batch, transactions),
		busy:      make(map[string]bool),
		slots:     transactions,
		open:      newBatch(),
	}
	if opts.StopOnError || opts.DryRun {
		im.slots = 1 // one row after the other
	}
	if opts.DryRun {
		im.overlay = make(map[xxh3.Uint128]xxh3.Uint128)
	}
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	im.chunks = validate(ctx, &wait, s.limit, rows)
	return im.run(ctx)
}

// row is one row of an import, on its way.
type row struct {
	number    int64
	name      string
	value     []byte
	affiliate string
	timed     *linkv1.Resource // a block whose end is worked out when it is written; else nil
	invalid   error

	// What comes of it, if the transaction succeeds.
	outcome Outcome
	failed  error
	slot    int   // of the batch
	since   int64 // revision, if it is unchanged
}

// chunk is rows in their order; done is closed when they are validated.
type chunk struct {
	resources []*linkv1.Resource
	first     int64
	rows      []row
	done      chan struct{}
}

// validate cuts the rows up and validates them, several chunks at once. It
// gives the chunks in order, and closes them after the last.
func validate(ctx context.Context, wait *sync.WaitGroup, most limit, rows <-chan []*linkv1.Resource) <-chan *chunk {
	workers := runtime.GOMAXPROCS(0)
	ordered, work := make(chan *chunk, 2*workers), make(chan *chunk)
	for range workers {
		wait.Go(func() {
			for c := range work {
				c.validate(most)
				close(c.done)
			}
		})
	}
	wait.Go(func() {
		defer close(ordered)
		defer close(work)
		next := int64(0)
		for {
			var resources []*linkv1.Resource
			var ok bool
			select {
			case resources, ok = <-rows:
			case <-ctx.Done():
			}
			if !ok {
				return
			}
			for len(resources) > 0 {
				n := min(chunkRows, len(resources))
				c := &chunk{resources: resources[:n], first: next, done: make(chan struct{})}
				resources, next = resources[n:], next+int64(n)
				for _, to := range []chan<- *chunk{ordered, work} {
					select {
					case to <- c:
					case <-ctx.Done():
						return
					}
				}
			}
		}
	})
	return ordered
}

func (c *chunk) validate(most limit) {
	c.rows = make([]row, len(c.resources))
	for i, r := range c.resources {
		to := &c.rows[i]
		to.number = c.first + int64(i)
		if to.name, to.value, to.invalid = link.EncodeNamed(r); to.invalid == nil {
			to.affiliate = r.GetLink().GetAffiliate()
			to.invalid = most.check(to.name, to.value, r)
			if r.GetBlock().GetTtl() != nil {
				to.timed = r
			}
		}
	}
	c.resources = nil
}

// importer cuts validated rows into batches and keeps several under way. Its
// fields belong to the goroutine of run, but for what the batches share.
type importer struct {
	s    *Store
	who  string
	opts ImportOptions
	out  func([]RowResult) error

	chunks    <-chan *chunk // nil at their end
	rows      []row         // of the current chunk, not yet in a batch
	open      *batch        // being filled
	slots     int           // for batches under way
	underWay  int
	completed chan *batch
	busy      map[string]bool // names that batches under way write
	outcomes  int64           // rows that have one
	silent    bool            // out has been told that it has all outcomes
	err       error           // why no further batch is begun

	// Shared with the batches.
	affiliates affiliateCache
	readFirst  atomic.Bool                   // the last batch found that its resources exist
	overlay    map[xxh3.Uint128]xxh3.Uint128 // in a dry run: what would be stored, by name
}

// run fills the open batch, begins it when it is full or when nothing else is
// going on, and else waits for one of these:
//   - more rows
//   - a batch under way is complete
//   - ctx is done
func (im *importer) run(ctx context.Context) error {
	for {
		im.fill()
		last := im.chunks == nil && len(im.rows) == 0
		switch {
		case im.err != nil || last && len(im.open.rows) == 0:
			if im.underWay == 0 {
				return im.end()
			}
			im.complete(<-im.completed)
		case im.underWay < im.slots && (last || im.open.full()):
			im.begin(ctx)
		default:
			im.wait(ctx)
		}
	}
}

// fill moves rows into the open batch until it is full, or a row has to wait
// for a batch under way that writes its resource or its affiliate.
func (im *importer) fill() {
	for len(im.rows) > 0 && !im.open.full() {
		r := &im.rows[0]
		if r.invalid == nil && (im.busy[r.name] || r.affiliate != "" && im.busy[link.Affiliates.Prefix()+r.affiliate]) {
			return
		}
		im.open.add(r)
		im.rows = im.rows[1:]
	}
}

func (im *importer) begin(ctx context.Context) {
	b := im.open
	im.open = newBatch()
	im.underWay++
	for _, name := range b.names {
		im.busy[name] = true
	}
	go func() {
		b.err = im.commit(ctx, b)
		im.completed <- b // has room for all that are under way
	}()
}

// wait waits for something to happen. When there are rows, nothing is under
// way and no more rows are there at once, it begins the batch as it is: so a
// fast stream makes full batches, and a slow one does not wait for its answer.
func (im *importer) wait(ctx context.Context) {
	chunks := im.chunks
	if len(im.rows) > 0 {
		chunks = nil
	}
	if im.underWay == 0 {
		select {
		case c, ok := <-chunks:
			im.take(ctx, c, ok)
			return
		default:
		}
		if len(im.open.rows) > 0 {
			im.begin(ctx)
			return
		}
		if !im.silent {
			im.report(nil)
			return
		}
	}
	select {
	case c, ok := <-chunks:
		im.take(ctx, c, ok)
	case b := <-im.completed:
		im.complete(b)
	case <-ctx.Done():
		im.err = ctx.Err()
	}
}

// take makes a chunk the current one, once it is validated.
func (im *importer) take(ctx context.Context, c *chunk, ok bool) {
	if !ok {
		im.chunks, im.err = nil, ctx.Err() // a context that is done also ends them
		return
	}
	select {
	case <-c.done:
		im.rows = c.rows
	case <-ctx.Done():
		im.err = ctx.Err()
	}
}

// complete reports a batch that is no longer under way.
func (im *importer) complete(b *batch) {
	im.underWay--
	for _, name := range b.names {
		delete(im.busy, name)
	}
	if b.err != nil {
		im.fail(b.err)
		return
	}
	im.outcomes += int64(b.end)
	im.report(b.results())
	if last := &b.rows[b.end-1]; im.opts.StopOnError && last.failed != nil {
		im.fail(last.failed)
	}
}

func (im *importer) report(results []RowResult) {
	im.silent = len(results) == 0
	if err := im.out(results); err != nil {
		im.fail(err)
	}
}

func (im *importer) fail(err error) {
	if im.err == nil {
		im.err = err
	}
}

// end tells how far the import came, if not to its end.
func (im *importer) end() error {
	if im.err == nil {
		if !im.silent {
			im.report(nil)
		}
		return im.err
	}
	e, ok := im.err.(*link.Error)
	if !ok {
		return fmt.Errorf("import ended after %d rows: %w", im.outcomes, im.err)
	}
	told := *e
	told.Message = fmt.Sprintf("%s; the import ended, and %d rows have their outcome", e.Message, im.outcomes)
	return &told
}
