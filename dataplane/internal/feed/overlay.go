package feed

import (
	"fmt"
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
// serves. It is in memory only: a node that starts anew says which version it
// holds, and is told again what was taken down since the replica has started.
//
// Nothing is asked of it when a request is answered. The table that is live is
// an edit of the verified one, made whenever one of the two changes, and what
// answers for a link that was taken down is exactly what will be in the version
// that holds it. So it is for blocks and policies, of which every write is told
// like a take-down. The version of a click is that of the verified table.
type overlay struct {
	refusals map[string]refusal // by key
	size     int
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
	old, had := o.refusals[key]
	if had && old.version.Epoch == r.version.Epoch && old.version.Revision >= r.version.Revision {
		return nil
	}
	if had {
		o.size -= len(key) + len(old.value)
	}
	o.size += len(key) + len(r.value)
	if len(o.refusals) >= maxTakenDown && !had || o.size > maxTakenDownBytes {
		delete(o.refusals, key)
		o.size -= len(key) + len(r.value)
		return fmt.Errorf("%d taken down are too many at a time", len(o.refusals)+1)
	}
	if o.refusals == nil {
		o.refusals = map[string]refusal{}
	}
	o.refusals[key] = r
	return nil
}

// drop forgets what a version holds that is served now, and what belongs to
// other epochs than its own.
func (o *overlay) drop(v table.Version) {
	for key, r := range o.refusals {
		if !later(r.version, v) {
			o.size -= len(key) + len(r.value)
			delete(o.refusals, key)
		}
	}
}

// takeDown takes in a TakeDown.
func (a *applier) takeDown(m *feedv1.TakeDown) outcome {
	v := versionOf(m.GetVersion())
	done := outcome{kind: kindTakeDown, takenDown: m.GetVersion()}
	if v.Epoch == 0 || v.Revision <= 0 {
		return outcome{kind: kindTakeDown, err: fmt.Errorf("frame: a take-down without a version")}
	}
	live := a.live.Load()
	if live != nil && v.Epoch == live.Version().Epoch && !later(v, live.Version()) {
		return done
	}
	var shown *table.Builder
	if live != nil && later(v, live.Version()) {
		if live == live.Verified() {
			shown = editOver(live, len(m.GetEntries()))
		} else {
			shown = live.Edit()
		}
	}
	for _, e := range m.GetEntries() {
		value, ok := refuse(e)
		if !ok {
			continue // of a kind that nothing is refused of
		}
		r := refusal{v, value}
		if err := a.down.add(e.GetKey(), r); err != nil {
			done = outcome{kind: kindTakeDown, err: fmt.Errorf("frame: revision %d takes down %.300q: %w", v.Revision, e.GetKey(), err)}
			break
		}
		if r = a.down.refusals[e.GetKey()]; shown != nil && later(r.version, live.Version()) {
			r.apply(shown, e.GetKey())
		}
	}
	if shown != nil {
		a.live.Store(shown.BuildOver(live.Verified()))
	}
	return done
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
