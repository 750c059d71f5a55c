package store

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/zeebo/xxh3"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// batch is the rows of one transaction. It belongs to the goroutine of
// importer.run until it is under way, and again when it is complete.
type batch struct {
	rows       []row
	names      []string        // of the resources: the slots
	index      map[string]int  // of slots, by name
	affiliates map[string]bool // that its links name
	bytes      int             // of the transaction, about
	end        int             // how many of the rows have an outcome
	err        error           // nothing was written, or nobody knows
	revision   int64           // of the transaction
}

func newBatch() *batch {
	return &batch{
		rows: make([]row, 0, batchNames), names: make([]string, 0, batchNames),
		index: make(map[string]int, batchNames), affiliates: make(map[string]bool),
	}
}

func (b *batch) full() bool {
	return len(b.names) >= batchNames || len(b.affiliates) >= maxGets || len(b.rows) >= batchRows || b.bytes >= batchBytes
}

func (b *batch) add(r *row) {
	b.rows = append(b.rows, *r)
	if r.invalid != nil {
		return
	}
	slot, ok := b.index[r.name]
	if !ok {
		slot = len(b.names)
		b.names = append(b.names, r.name)
		b.index[r.name] = slot
	}
	b.rows[len(b.rows)-1].slot = slot
	if r.affiliate != "" {
		b.affiliates[r.affiliate] = true
	}
	b.bytes += 2*len(r.name) + len(r.value) // a name is compared and put
}

// results gives the outcome of each row.
func (b *batch) results() []RowResult {
	all := make([]RowResult, b.end)
	for i := range all {
		r := &b.rows[i]
		all[i] = RowResult{Row: r.number, Name: r.name, Outcome: r.outcome, Err: r.failed}
		switch {
		case r.failed != nil:
		case r.outcome == Unchanged && r.since != 0:
			all[i].Revision = r.since
		default:
			all[i].Revision = b.revision
		}
	}
	return all
}

// view is what a batch is worked out against.
type view struct {
	state      []stored        // of each slot
	affiliates map[string]bool // those that links of the batch name: whether they exist
	guard      guard           // as of affiliates
}

// commit writes a batch. As long as that turns out to be so, it takes for
// granted that no resource exists, which saves a call.
func (im *importer) commit(ctx context.Context, b *batch) (err error) {
	v := view{state: make([]stored, len(b.names))}
	if im.readFirst.Load() || im.opts.DryRun {
		if v.state, err = im.read(ctx, b); err != nil {
			return err
		}
	}
	deadline := time.Now().Add(im.s.patience)
	for try := 0; time.Now().Before(deadline); try++ {
		if v.affiliates, v.guard, err = im.affiliatesOf(ctx, b); err != nil {
			return err
		}
		puts, guarded := im.evaluate(b, v)
		if len(puts) == 0 || im.opts.DryRun {
			return nil
		}
		b.revision, err = im.put(ctx, b, v, puts, guarded)
		if err != nil && !leaseGone(err) {
			return err
		}
		if err == nil && b.revision != 0 {
			return nil
		}
		if err := backOff(ctx, try); err != nil {
			return err
		}
		if v.state, err = im.read(ctx, b); err != nil {
			return err
		}
	}
	return &link.Error{Kind: link.Aborted, Message: "others write the same resources all the time", Hint: "try again"}
}

// read reads what every slot holds, and the guard.
func (im *importer) read(ctx context.Context, b *batch) ([]stored, error) {
	state := make([]stored, len(b.names))
	if len(state) == 0 {
		return state, nil
	}
	ops := make([]clientv3.Op, 0, len(state)+2)
	for _, name := range b.names {
		ops = append(ops, clientv3.OpGet(resources+name))
	}
	got, err := im.s.txn(ctx, nil, append(ops, guardGets()...), nil)
	if err != nil {
		return nil, err
	}
	im.affiliates.saw(guardFrom(got, len(state)))
	exist := 0
	for i := range state {
		state[i] = storedFrom(got.Responses[i].GetResponseRange().Kvs)
		if state[i].exists() {
			exist++
		}
	}
	im.readFirst.Store(exist > len(state)/2)
	return state, nil
}

// put is a slot that is written.
type put struct {
	slot  int
	value []byte
	end   *timestamppb.Timestamp // of a block; nil: none
}

// evaluate works out each row in order, against the view and what the rows
// before it write. It gives the resources to write, and whether that relies on
// the guard.
func (im *importer) evaluate(b *batch, v view) (puts []put, guarded bool) {
	written := make([]*put, len(b.names))
	puts = make([]put, 0, len(b.names))
	b.end = len(b.rows)
	now := im.s.now()
	for i := range b.rows {
		r := &b.rows[i]
		r.outcome, r.failed, r.since = 0, r.invalid, 0
		end := im.timed(r, v, now)
		if r.failed == nil {
			r.outcome, r.failed = im.outcome(b, r, v, written)
		}
		if r.failed != nil && im.opts.StopOnError {
			b.end = i + 1
			break
		}
		if r.failed != nil || r.outcome == Unchanged {
			continue
		}
		guarded = guarded || r.affiliate != ""
		if written[r.slot] == nil {
			puts = append(puts, put{slot: r.slot})
			written[r.slot] = &puts[len(puts)-1]
		}
		written[r.slot].value, written[r.slot].end = r.value, end
		if im.overlay != nil {
			im.overlay[xxh3.HashString128(r.name)] = xxh3.Hash128(r.value)
		}
	}
	return puts, guarded
}

// timed works out the end of a row that is a block, if it has one.
func (im *importer) timed(r *row, v view, now time.Time) *timestamppb.Timestamp {
	if r.timed == nil || r.failed != nil {
		return nil
	}
	var whole *linkv1.Resource
	if whole, r.failed = due(r.timed, v.state[r.slot], now); r.failed == nil {
		if r.value, r.failed = link.Marshal(whole); r.failed == nil {
			r.failed = im.s.limit.check(r.name, r.value, whole)
		}
	}
	return whole.GetBlock().GetExpireTime()
}

// outcome works out one row.
func (im *importer) outcome(b *batch, r *row, v view, written []*put) (Outcome, error) {
	old := v.state[r.slot]
	exists, same := old.exists(), old.exists() && bytes.Equal(old.value, r.value)
	r.since = old.revision
	if p := written[r.slot]; p != nil {
		exists, same, r.since = true, bytes.Equal(p.value, r.value), 0
	}
	if sum, ok := im.overlay[xxh3.HashString128(r.name)]; ok {
		exists, same, r.since = true, sum == xxh3.Hash128(r.value), 0
	}
	switch {
	case exists && im.opts.CreateOnly:
		return 0, alreadyExists(r.name)
	case same:
		return Unchanged, nil
	}
	if r.affiliate != "" {
		name := link.Affiliates.Prefix() + r.affiliate
		slot, here := b.index[name]
		known := v.affiliates[r.affiliate] || here && written[slot] != nil
		if _, ok := im.overlay[xxh3.HashString128(name)]; ok {
			known = true
		}
		if err := checkAffiliate(r.name, r.affiliate, known, v.guard); err != nil {
			return 0, err
		}
	}
	if exists {
		return Updated, nil
	}
	return Created, nil
}

// put commits the transaction, and gives its revision; 0 if something was not as
// it was read. It has no branch that reads then: that would travel with every
// transaction, and through etcd's log.
func (im *importer) put(ctx context.Context, b *batch, v view, puts []put, guarded bool) (revision int64, err error) {
	now := timestamppb.New(im.s.now().Truncate(time.Millisecond))
	held := leases{s: im.s}
	// Keys twice, values, and what is around them.
	t := newWireTxn(b.bytes + len(puts)*(128+2*len(resources)))
	for _, p := range puts {
		old := v.state[p.slot]
		lease, err := held.lease(ctx, old, p.end)
		if err != nil {
			held.done(ctx, false, nil)
			return 0, err
		}
		key := resources + b.names[p.slot]
		record := linkv1.Record{Resource: p.value, CreateTime: old.createTime(now), UpdateTime: now, UpdatedBy: im.who}
		t.unchanged(key, old.revision)
		if err := t.put(key, &record, lease); err != nil {
			held.done(ctx, false, nil)
			return 0, &link.Error{Kind: link.Invalid, Field: "updated_by", Message: "is not valid UTF-8", Err: err}
		}
	}
	if guarded {
		t.unchanged(guardKey, v.guard.revision)
	}
	revision, err = im.s.commit(ctx, t)
	held.done(ctx, revision != 0, err)
	return revision, err
}

// affiliatesOf gives the affiliates of the batch's links that exist at the
// guard's state, which it also gives.
func (im *importer) affiliatesOf(ctx context.Context, b *batch) (map[string]bool, guard, error) {
	if len(b.affiliates) == 0 {
		return nil, guard{}, nil
	}
	if g, ok := im.affiliates.know(b.affiliates); ok {
		return b.affiliates, g, nil
	}
	found, g, err := im.s.existing(ctx, sortedKeys(b.affiliates))
	if err != nil {
		return nil, g, err
	}
	im.affiliates.add(found, g)
	return found, g, nil
}

// affiliateCache knows affiliates that exist at one revision of the guard.
// While that stays, none is deleted.
type affiliateCache struct {
	mu       sync.Mutex
	exist    map[string]bool
	revision int64
}

// know gives the state of the guard at which all of the affiliates exist, if it
// knows that they do.
func (c *affiliateCache) know(ids map[string]bool) (guard, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range ids {
		if !c.exist[id] {
			return guard{}, false
		}
	}
	return guard{revision: c.revision}, true
}

// add learns which affiliates exist, but for those that are being deleted.
func (c *affiliateCache) add(found map[string]bool, g guard) {
	c.saw(g)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.revision != g.revision {
		return
	}
	if c.exist == nil {
		c.exist = make(map[string]bool)
	}
	deleting := make(map[string]bool, len(g.deleting))
	for _, id := range g.deleting {
		deleting[id] = true
	}
	for id, ok := range found {
		if ok && !deleting[id] {
			c.exist[id] = true
		}
	}
}

// saw forgets everything when the guard has moved on.
func (c *affiliateCache) saw(g guard) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g.revision > c.revision {
		c.exist, c.revision = nil, g.revision
	}
}
