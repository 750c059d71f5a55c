package feed

import (
	"fmt"
	"slices"
	"strings"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// Bounds of what is taken down at a time: keys, and bytes of keys and values.
const (
	maxTakenDown      = 1 << 20
	maxTakenDownBytes = 256 << 20
)

// overlay is what was taken down and is not yet in a version that the node
// serves.
//
// Nothing is asked of it when a request is answered. The table that is live is
// an edit of the verified one, made whenever one of the two changes, and what
// answers for a link that was taken down is exactly what will be in the version
// that holds it. So it is for blocks and policies, of which every write is told
// like a take-down. The version of a click is that of the verified table.
type overlay struct {
	refusals map[string]refusal // by key
	size     int
	deletes  int           // of them, links that are gone
	upTo     table.Version // everything up to it is refused
	passed   table.Version // the last one of which a part is left to it; the zero value: none
}

// refusal is what is known about one resource.
type refusal struct {
	version table.Version // that has taken it down
	value   []byte        // what is shown instead; empty: nothing
}

// over gives the table to show for a verified one.
func (o *overlay) over(verified *table.Table) *table.Table {
	var b *table.Builder
	for key, r := range o.refusals {
		if !later(r.version, verified.Version()) {
			continue
		}
		if b == nil {
			b = editOver(verified, len(o.refusals))
		}
		r.apply(b, key)
	}
	if b == nil {
		return verified
	}
	return b.BuildOver(verified)
}

// few is how many refusals are cheaper as a side line of the table: the next delta
// is an edit of the verified one, and would copy each shard that it touches if
// the refusals had been first.
const few = 32

// editOver begins the table to show for a verified one.
func editOver(verified *table.Table, refusals int) *table.Builder {
	if refusals <= few {
		return verified.EditAside()
	}
	return verified.Edit()
}

// later says that a version comes after another one of the same epoch.
func later(v, than table.Version) bool { return v.Epoch == than.Epoch && v.Revision > than.Revision }

// apply shows a refusal.
func (r *refusal) apply(b *table.Builder, key string) {
	if len(r.value) == 0 || b.Put([]byte(key), r.value) != nil {
		b.Delete([]byte(key))
	}
}

// add takes something down, unless a later version is known to have done it.
func (o *overlay) add(key string, r refusal) error {
	if o.has(key, r.version) {
		return nil
	}
	if old, had := o.refusals[key]; had {
		o.forget(key, old)
	}
	if size := o.size + len(key) + len(r.value); len(o.refusals) >= maxTakenDown || size > maxTakenDownBytes {
		return fmt.Errorf("%d taken down are too many at a time", len(o.refusals)+1)
	}
	if o.refusals == nil {
		o.refusals = map[string]refusal{}
	}
	o.refusals[key] = r
	o.size += len(key) + len(r.value)
	o.deletes += gone(key, r.value)
	return nil
}

// has says whether it is known what a version, or a later one, has done to a key.
func (o *overlay) has(key string, v table.Version) bool {
	old, had := o.refusals[key]
	return had && old.version.Epoch == v.Epoch && old.version.Revision >= v.Revision
}

// lacks says whether any of these is not known yet.
func (o *overlay) lacks(entries []refused) bool {
	return slices.ContainsFunc(entries, func(e refused) bool { return !o.has(e.key, e.version) })
}

// inForce says whether a take-down is told once more, as a control plane does on each
// new stream. It looks at keys alone: what values hold is read behind the tripwire.
func (o *overlay) inForce(entries []*feedv1.Entry, v table.Version) bool {
	return !slices.ContainsFunc(entries, func(e *feedv1.Entry) bool { return refusable(e.GetKey()) && !o.has(e.GetKey(), v) })
}

// refusable says whether a key is of a kind of which something is refused.
func refusable(key string) bool {
	return slices.ContainsFunc([]link.Kind{link.Links, link.Affiliates, link.Blocks, link.Policies},
		func(k link.Kind) bool { return strings.HasPrefix(key, k.Prefix()) })
}

func (o *overlay) forget(key string, r refusal) {
	delete(o.refusals, key)
	o.size -= len(key) + len(r.value)
	o.deletes -= gone(key, r.value)
}

// gone counts a link that is not there any more.
func gone(key string, value []byte) int {
	if len(value) == 0 && strings.HasPrefix(key, link.Links.Prefix()) {
		return 1
	}
	return 0
}

// drop forgets what a version holds that is served now, and what belongs to
// other epochs than its own.
func (o *overlay) drop(v table.Version) {
	for key, r := range o.refusals {
		if !later(r.version, v) {
			o.forget(key, r)
		}
	}
	if !later(o.passed, v) {
		o.passed = table.Version{}
	}
}

// takeDown takes in a TakeDown, that came in a message.
func (a *applier) takeDown(m *feedv1.TakeDown, message []byte) outcome {
	v := versionOf(m.GetVersion())
	if v.Epoch == 0 || v.Revision <= 0 {
		return outcome{kind: kindTakeDown, err: fmt.Errorf("frame: a take-down without a version")}
	}
	live := a.live.Load()
	if live != nil && v.Epoch == live.Version().Epoch && !later(v, live.Version()) {
		return outcome{kind: kindTakeDown, takenDown: m.GetVersion()}
	}
	if a.down.inForce(m.GetEntries(), v) {
		return outcome{kind: kindTakeDown, takenDown: a.reached(v)} // it is not what the process is at
	}
	if err := a.wire.armTakeDown(v); err != nil {
		a.down.pass(v)
		return outcome{kind: kindTakeDown, takenDown: a.reached(v), guarded: fmt.Errorf("revision %d: %w", v.Revision, err)}
	}
	defer a.tookDown()
	entries, done := a.admit(m, v)
	if a.down.lacks(entries) {
		a.kept.add(v, message)
	}
	var shown *table.Builder
	if live != nil && later(v, live.Version()) {
		if live == live.Verified() {
			shown = editOver(live, len(entries))
		} else {
			shown = live.Edit()
		}
	}
	for _, e := range entries {
		if err := a.down.add(e.key, e.refusal); err != nil {
			done = outcome{kind: kindTakeDown, err: fmt.Errorf("frame: revision %d takes down %.300q: %w", v.Revision, e.key, err)}
			break
		}
		if r := a.down.refusals[e.key]; shown != nil && later(r.version, live.Version()) {
			r.apply(shown, e.key)
		}
	}
	if shown != nil {
		a.live.Store(shown.BuildOver(live.Verified()))
	}
	return done
}

// tookDown notes that a take-down was taken in. A snapshot that it has overtaken
// goes on.
func (a *applier) tookDown() {
	a.wire.done()
	if a.snap != nil && a.snap.builder != nil {
		_ = a.wire.arm(a.snap.version) // it was admitted
	}
}

// refused is one entry of a take-down.
type refused struct {
	key string
	refusal
}

// admit gives what is refused of a take-down, and what it is answered. Links that
// are deleted are as good as gone: where they are more, with those that wait for
// their version already, than the guard lets a frame remove, they are left to the
// version, which the guard holds back or lets pass. Until that one is served, no
// more is acknowledged than what came before it.
func (a *applier) admit(m *feedv1.TakeDown, v table.Version) (all []refused, done outcome) {
	deletes := map[string]struct{}{} // that are new
	for _, e := range m.GetEntries() {
		value, ok := refuse(e)
		if !ok {
			continue // of a kind that nothing is refused of
		}
		if _, known := a.down.refusals[e.GetKey()]; !known && gone(e.GetKey(), value) > 0 {
			deletes[e.GetKey()] = struct{}{}
		}
		all = append(all, refused{e.GetKey(), refusal{v, value}})
	}
	done.kind = kindTakeDown
	if err := a.guard.takeDown(verified(a.live), a.down.deletes, len(deletes)); err != nil {
		done.guarded = fmt.Errorf("revision %d: %w", v.Revision, err)
		all = slices.DeleteFunc(all, func(r refused) bool { return gone(r.key, r.value) > 0 })
		a.down.pass(v)
	}
	done.takenDown = a.reached(v)
	return all, done
}

// pass notes that a part of a take-down is left to its version, which is later than
// the one that is held. It may be told once more behind later ones, that were
// acknowledged: from here on, they are not.
func (o *overlay) pass(v table.Version) {
	if !later(o.passed, v) {
		o.passed = v
	}
	if o.upTo.Epoch == v.Epoch && o.upTo.Revision >= v.Revision {
		o.upTo.Revision = v.Revision - 1
	}
}

// reached gives what is acknowledged of a take-down. Where a part of one of another
// epoch is left to its version, it is the version that is served, which acknowledges
// nothing of that epoch.
func (a *applier) reached(v table.Version) *linkv1.Version {
	reached := v
	if a.down.passed != (table.Version{}) {
		reached = heldVersion(a.live)
	}
	if a.down.upTo.Epoch != reached.Epoch || later(reached, a.down.upTo) {
		a.down.upTo = reached
	}
	if v.Epoch != a.down.upTo.Epoch || later(v, a.down.upTo) {
		return versionProto(a.down.upTo)
	}
	return versionProto(v)
}

// refuse gives what is shown instead of something that was taken down. Nothing
// verifies a take-down, so of links and affiliates it can only refuse: a value
// that is not that of a disabled link, or of a suspended affiliate, is not shown.
// Blocks and policies send nobody anywhere, and are shown as they are.
func refuse(e *feedv1.Entry) (value []byte, ok bool) {
	key := e.GetKey()
	if id, is := strings.CutPrefix(key, link.Affiliates.Prefix()); is {
		return suspended(key, id, e.GetValue()), true
	}
	if strings.HasPrefix(key, link.Blocks.Prefix()) || strings.HasPrefix(key, link.Policies.Prefix()) {
		return e.GetValue(), len(e.GetValue()) == 0 || compiles(key, e.GetValue())
	}
	if !strings.HasPrefix(key, link.Links.Prefix()) {
		return nil, false
	}
	if r, err := link.Unmarshal(key, e.GetValue()); err == nil && r.GetLink().GetDisabled() {
		if _, err := link.Compile(e.GetValue()); err == nil {
			return e.GetValue(), true
		}
	}
	return nil, true
}

// compiles says whether the value of a block or a policy can be served. One that
// cannot, perhaps of a later release, is left to the version that holds it: what
// it replaces stands until then.
func compiles(key string, value []byte) bool {
	r, err := link.Unmarshal(key, value)
	return err == nil && link.Validate(r) == nil
}

// suspended gives the affiliate as it is if it is suspended, and else one that
// is: of one that is deleted, or that only a later release knows to serve, the
// links stay refused.
func suspended(key, id string, value []byte) []byte {
	if r, err := link.Unmarshal(key, value); err == nil && r.GetAffiliate().GetState() == linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED {
		if _, err := link.CompileAffiliate(value); err == nil {
			return value
		}
	}
	value, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{
		Id: id, State: linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED,
	}}})
	if err != nil {
		return nil
	}
	return value
}
