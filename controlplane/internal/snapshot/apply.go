package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/affleet/affleet/controlplane/internal/store"
)

// load reads everything. What is new against the held state becomes one record,
// deletes included; another epoch begins anew.
func (l *Log) load(ctx context.Context, epochs store.Epochs) error {
	keep := l.View().epoch == epochs.Current
	if keep {
		return l.reload(ctx)
	}
	held, err := l.src.Held(ctx, epochs.Current)
	if err != nil {
		return fmt.Errorf("read what is held back: %w", err)
	}
	fresh := newState()
	read := func(at int64) (int64, error) {
		return l.src.Load(ctx, store.LoadOptions{At: at}, func(o store.Object) error {
			if o.Value != nil { // without, it counts as deleted, as in a watch
				e := makeEntry(&o)
				fresh.set(e.key(), e)
			}
			return nil
		})
	}
	revision, err := read(max(held-1, 0))
	blind := held > 0 && errors.Is(err, store.ErrCompacted)
	if blind {
		fresh = newState()
		revision, err = read(0)
	}
	if err != nil {
		return fmt.Errorf("read everything: %w", err)
	}
	v := &View{epoch: epochs.Current, past: epochs.Past, seen: revision, moved: revision}
	if err := l.readWords(ctx, v); err != nil {
		return err
	}
	if err := l.sameEpoch(ctx, v.epoch); err != nil {
		return err
	}
	l.begin(v, fresh, held, blind)
	return nil
}

// sameEpoch gives errAnother unless the epoch is still this one: what was read may
// be of the next one, and the watch behind it would not tell.
func (l *Log) sameEpoch(ctx context.Context, epoch uint64) error {
	now, err := l.src.Epochs(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("read epoch: %w", err)
	case now.Current != epoch:
		return errAnother
	}
	return nil
}

// readWords reads what operators and other replicas have said about the epoch of
// a view that is being made. What was released later than it has seen is left to
// the watch, which tells it together with what it releases.
func (l *Log) readWords(ctx context.Context, v *View) (err error) {
	if v.released, err = l.src.ReleasedAt(ctx, v.epoch, v.seen); err != nil {
		return fmt.Errorf("read what is released: %w", err)
	}
	if v.rewind, err = l.src.Rewound(ctx, v.epoch); err != nil {
		return fmt.Errorf("read whether etcd went back: %w", err)
	}
	return nil
}

// reload reads everything again, in the epoch that is held.
func (l *Log) reload(ctx context.Context) error {
	held, old := l.View(), l.state // only this goroutine changes them
	fresh := newState()
	fresh.seed = old.seed
	var changes []change
	var olds []entry
	revision, err := l.src.Load(ctx, store.LoadOptions{}, func(o store.Object) error {
		if o.Value == nil {
			return nil
		}
		e := makeEntry(&o)
		was := old.get(o.Name)
		switch {
		case was == e:
			e = was // one copy in memory
		case !was.same(e):
			changes, olds = append(changes, change{key: e.key(), entry: e, had: was != ""}), append(olds, was)
		}
		fresh.set(e.key(), e)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read everything: %w", err)
	}
	if err := l.sameEpoch(ctx, held.epoch); err != nil {
		return err
	}
	if revision < held.seen {
		return fmt.Errorf("read everything: %w", l.wentBack(revision, held.seen))
	}
	for _, sh := range old.shards {
		if sh == nil {
			continue
		}
		for key, was := range sh.m {
			if fresh.get(key) == "" {
				changes, olds = append(changes, change{key: key, had: true}), append(olds, was)
			}
		}
	}
	words := View{epoch: held.epoch, seen: revision}
	if err := l.readWords(ctx, &words); err != nil {
		return err
	}
	if l.rewound(words.rewind, held.seen > words.rewind.Revision) {
		return nil // what was read does not follow what is held
	}
	l.alarm.caughtUp(revision)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = fresh
	if held.hold == nil {
		l.served = fresh
	}
	l.commit(step{revision: revision, since: held.seen, changes: changes, olds: olds, release: words.released, rewind: words.rewind, moved: true, before: func() *state { return old }})
	return nil
}

// begin makes fresh the state of a view that is being made: at the revision that
// it has seen, and with what it says about its epoch. held is the revision that
// is to be held back when it comes, or, if fresh is blind, that is held back
// together with all that fresh has.
func (l *Log) begin(v *View, fresh *state, held int64, blind bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.view.Load()
	v.truth = fresh.mark(v.seen, time.Now())
	v.base = v.truth
	l.state, l.served, l.forced, l.lane = fresh, fresh, held, lane{}
	if blind {
		l.served, l.forced = newState(), 0
		v.base = l.served.mark(held-1, v.truth.at)
		v.lost, v.blind = true, true
		v.hold = &Hold{Revision: held, From: held, Reason: "it was before this replica started, and etcd has compacted what was served instead", Since: v.truth.at, after: held - 1}
		l.cfg.Logger.Error("a version is held back, and what is served instead is not in etcd any more: nodes keep what they have, and new ones get nothing: look at what was written, and then: affctl fleet release",
			"revision", held)
	}
	l.guard.rebase(v.truth)
	l.ahead = ahead{guard: l.guard}
	if blind && v.seen > held {
		l.ahead.revision, l.ahead.reason = v.seen, "what was written up to it was read at once, behind what was held back before this replica started"
	}
	l.alarm.clear()
	if v.rewind.Seen != 0 {
		l.tellRewind(v)
	}
	l.publish(v)
	l.heard() // who waits for Ready may ask at once whether it is followed
	if before.epoch == 0 {
		close(l.ready)
	} else {
		l.cfg.Logger.Warn("the fleet has another epoch, starting anew", "held", before.epoch, "epoch", v.epoch)
	}
	l.cfg.Logger.Info("state is read", "revision", v.seen, "entries", fresh.entries)
}

// step is a revision, or several that were read at once, on its way into the
// log.
type step struct {
	revision int64
	since    int64 // the changes came after this one
	changes  []change
	olds     []entry // what was there before each
	release  store.Release
	rewind   store.Rewind
	moved    bool          // it may have changed which replicas there are
	before   func() *state // the state before it, to go on serving
}

// apply takes in one revision.
func (l *Log) apply(batch store.Batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.view.Load()
	if batch.Revision <= held.seen || held.apart {
		return
	}
	s := step{revision: batch.Revision, since: batch.Revision - 1, release: batch.Release, rewind: held.rewind, moved: batch.Replicas}
	if batch.Rewind.Epoch == held.epoch {
		s.rewind = batch.Rewind
	}
	for _, c := range batch.Changes {
		var e entry
		key := c.Name
		if c.Value != nil {
			e = makeEntry(&c)
			key = e.key()
		}
		if old := l.state.set(key, e); !old.same(e) {
			s.changes, s.olds = append(s.changes, change{key: key, entry: e, had: old != ""}), append(s.olds, old)
		}
	}
	s.before = func() *state {
		before := l.state.fork()
		for i, c := range slices.Backward(s.changes) {
			before.set(c.key, s.olds[i])
		}
		return before
	}
	l.commit(s)
}

// commit publishes the state after a step. l.mu is held, and l.state has the
// changes already.
func (l *Log) commit(s step) {
	held := l.view.Load()
	next := *held
	next.seen = s.revision
	if s.moved {
		next.moved = s.revision
	}
	if s.release.Epoch == held.epoch {
		next.released = held.released.Merge(s.release)
	}
	if next.rewind = s.rewind; next.rewind.Seen == 0 {
		next.apart = false
	} else if next.rewind != held.rewind {
		l.tellRewind(&next)
	}
	// Of several revisions that were read at once, one may have undone another:
	// that there is no difference does not mean that nothing changed.
	if len(s.changes) > 0 || s.revision > s.since+1 {
		l.extend(&next, s)
	}
	if next.hold != nil && next.released.UpTo >= next.hold.Revision {
		l.release(&next)
	}
	l.publish(&next)
}

// extend adds the changes of a step to a view that is being made: as a record
// that is served or held back, and as a take-down.
func (l *Log) extend(next *View, s step) {
	before := next.truth
	r := &record{
		mark:     l.state.mark(s.revision, time.Now()),
		from:     before.revision,
		since:    s.since,
		changes:  s.changes,
		released: next.released.Write > before.revision && next.released.Write <= s.revision,
		memory:   changesMemory(s.changes),
	}
	next.truth = r.mark
	if next.hold != nil {
		l.ahead.passed(before, r)
	} else if l.judge(next, before, r); next.hold != nil {
		l.served, l.ahead = s.before(), ahead{guard: l.guard}
		l.ahead.guard.rebase(r.mark)
		l.lane.waiting, l.lane.deletes = 0, 0
	}
	if down, deletes := takenDown(s.changes, s.olds, r.at); len(down) > 0 {
		if l.lane.admit(len(down), deletes, next.hold != nil, r.at) {
			next.downs = withDown(next.downs, newTakeDown(next.epoch, r.revision, s.changes, down))
			l.metrics.downs.Add(1)
		} else {
			l.metrics.downsSkipped.Add(1)
		}
	}
	if next.lost {
		return
	}
	if r.memory <= l.cfg.MaxDelta {
		r.frame = deltaFrame(next.epoch, r.from, r.mark, s.changes, r.released)
		r.memory += r.frame.Bytes
	}
	next.append(r, l.cfg.LogBytes)
}

// judge holds a record back, in a view that is being made, unless the guard lets
// it pass or it is released.
func (l *Log) judge(next *View, before mark, r *record) {
	reason := l.guard.check(before, r)
	switch {
	case r.released || r.revision <= next.released.UpTo:
		r.released = true
		l.guard.rebase(r.mark)
		return
	case l.forced != 0 && r.revision >= l.forced:
		if reason == "" {
			reason = "another replica holds it back"
		}
		l.forced = 0
	}
	if reason == "" {
		l.guard.passed(before, r.mark)
		return
	}
	l.hold(next, &Hold{Revision: r.revision, From: max(r.since, next.released.UpTo) + 1, Reason: reason, Since: r.at, after: r.since})
}

// hold holds back a revision, and all behind it, in a view that is being made.
func (l *Log) hold(next *View, h *Hold) {
	next.hold = h
	l.cfg.Logger.Error("a version is held back, nodes keep what they have: look at what was written, and then: affctl fleet release",
		"revision", h.Revision, "why", h.Reason, "served", next.head().revision)
}

// release serves what a view that is being made holds back, as far as it is
// released and the guard lets pass what comes behind that. What the log has lost is
// served as a whole, once the last revision is released that the guard would hold.
func (l *Log) release(next *View) {
	l.cfg.Logger.Warn("what was held back is released", "revision", next.hold.Revision, "up_to", next.released.UpTo)
	after := next.hold.after
	next.hold, l.forced = nil, 0
	if next.lost && l.ahead.revision > next.released.UpTo {
		l.hold(next, &Hold{Revision: l.ahead.revision, From: next.released.UpTo + 1, Reason: l.ahead.reason, Since: time.Now(), after: after})
		return
	}
	if next.blind {
		next.base, next.lost, next.blind = next.truth, false, false
		l.guard.rebase(next.truth)
		l.served = l.state
		return
	}
	if next.lost {
		changes, _ := l.served.difference(l.state)
		r := &record{mark: next.truth, from: next.head().revision, since: after, changes: changes, released: true, memory: changesMemory(changes)}
		next.lost = false
		next.append(r, l.cfg.LogBytes)
		l.guard.rebase(r.mark)
		l.served = l.state
		return
	}
	next.records = slices.Clone(next.records)
	for ; next.served < len(next.records); next.served++ {
		r := *next.records[next.served]
		was := r.released
		l.judge(next, next.head(), &r)
		if next.hold != nil {
			return
		}
		if r.released && !was && r.frame != nil {
			r.frame = deltaFrame(next.epoch, r.from, r.mark, r.changes, true)
		}
		next.records[next.served] = &r
		for _, c := range r.changes {
			l.served.set(c.key, c.entry)
		}
	}
	l.served = l.state
}

// publish makes next the view and wakes who waits. l.mu is held.
func (l *Log) publish(next *View) {
	held := l.view.Load()
	next.advanced = make(chan struct{})
	next.changed, next.downed = held.changed, held.downed
	moved := next.Head() != held.Head() || next.released.UpTo != held.released.UpTo
	if moved {
		next.changed = make(chan struct{})
	}
	downed := len(next.downs) > 0 && (len(held.downs) == 0 || next.downs[len(next.downs)-1] != held.downs[len(held.downs)-1])
	if downed {
		next.downed = make(chan struct{})
	}
	l.view.Store(next)
	if moved {
		close(held.changed)
	}
	if downed {
		close(held.downed)
	}
	close(held.advanced)
	if next.hold != nil && next.hold != held.hold {
		poke(l.note)
	}
}

// deltaFrame encodes a delta.
func deltaFrame(epoch uint64, from int64, to mark, changes []change, released bool) *Frame {
	b := encodeDelta(epoch, from, to, changes, released)
	return &Frame{
		Kind: Delta, To: Version{epoch, to.revision}, Hash: to.hash, Entries: to.entries, Released: released,
		Messages: [][]byte{b}, Bytes: int64(len(b)), from: from,
	}
}
