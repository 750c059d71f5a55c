package table

import (
	"bytes"
	"encoding/binary"
	"sync"

	"github.com/affleet/affleet/proto/link"
)

// plan is what links that say the same about query, rules and splits have in
// common. They are stored bare, with the key under which the registry of plans
// has it.
type plan struct {
	compiled *link.Plan
	links    int
}

// planName is a plan's name in the registry: its key. That is the hash of its
// bytes, or one of the next numbers if other bytes have that.
type planName [8]byte

func nameOfPlan(key uint64) (name planName) {
	binary.LittleEndian.PutUint64(name[:], key)
	return name
}

// plan finds the plan that a bare link refers to.
func (c *contents) plan(l *link.Compiled, bare []byte) *link.Plan {
	key := l.PlanKey(bare)
	name := nameOfPlan(key)
	return c.plans.get(key, name[:]).v.compiled // it is held for as long as a link refers to it
}

// whole gives the value that was put for a link. It is the stored one, or made
// anew of a bare one.
func (c *contents) whole(l *link.Compiled, stored []byte) []byte {
	if !l.IsBare() {
		return stored
	}
	return l.AppendValue(nil, stored, c.plan(l, stored).Bytes())
}

// findPlan finds a plan by its bytes: its key, and nil if there is none; the key
// is then free.
func (c *contents) findPlan(b []byte) (uint64, *link.Plan) {
	for key := nameHash(b); ; key++ {
		name := nameOfPlan(key)
		it := c.plans.get(key, name[:])
		if it == nil {
			return key, nil
		}
		if bytes.Equal(it.v.compiled.Bytes(), b) {
			return key, it.v.compiled
		}
	}
}

// holdPlan counts a link that is to refer to a plan, and gives its key. The plan
// is compiled, unless the builder has it.
func (b *Builder) holdPlan(planBytes []byte, compiled *link.Plan) uint64 {
	key, _ := b.findPlan(planBytes)
	name := nameOfPlan(key)
	it := b.plans.edit(b.id, key, name[:])
	if it.v.compiled == nil {
		it.v.compiled = compiled
	}
	it.v.links++
	return key
}

// releasePlan is the opposite of holdPlan. A plan that no link refers to any
// more is forgotten.
func (b *Builder) releasePlan(key uint64) {
	name := nameOfPlan(key)
	it := b.plans.edit(b.id, key, name[:])
	if it.v.links--; it.v.links > 0 {
		return
	}
	// Plans that made way for this one stand behind it: they are to be found by
	// their bytes again.
	next := nameOfPlan(key + 1)
	if b.plans.get(key+1, next[:]) != nil {
		return // it stays, without a link, as a milestone
	}
	b.plans.remove(b.id, key, name[:])
}

// plansUnderWay are those that links on their way into a builder refer to, so
// that each is compiled once. The zero value has none.
type plansUnderWay struct {
	mu    sync.Mutex
	plans map[string]*planUnderWay
}

type planUnderWay struct {
	once     sync.Once
	compiled *link.Plan
	err      error
}

// compile gives the plan with some bytes, which it copies. It may be called from
// several goroutines.
func (u *plansUnderWay) compile(b []byte) (*link.Plan, error) {
	u.mu.Lock()
	p := u.plans[string(b)]
	if p == nil {
		if u.plans == nil {
			u.plans = map[string]*planUnderWay{}
		}
		p = new(planUnderWay)
		u.plans[string(b)] = p
	}
	u.mu.Unlock()
	p.once.Do(func() { p.compiled, p.err = link.NewPlan(bytes.Clone(b)) })
	return p.compiled, p.err
}

// forget makes room once the plans are held or left out.
func (u *plansUnderWay) forget() { u.plans = nil }
