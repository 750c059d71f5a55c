package feed

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// many is a state of n links.
func many(n int) state {
	s := state{}
	for i := range n {
		s[fmt.Sprint("/", i)] = "https://x.test/"
	}
	return s
}

// without is a state with n links less, and then some more.
func (s state) without(n, more int) state {
	s = maps.Clone(s)
	for i := range n {
		delete(s, fmt.Sprint("/", i))
	}
	for i := range more {
		s[fmt.Sprint("/more/", i)] = "https://x.test/"
	}
	return s
}

// changes gives what delta takes.
func (s state) changes(to state) map[string]string {
	c := map[string]string{}
	for path, destination := range to {
		if s[path] != destination {
			c[path] = destination
		}
	}
	for path := range s {
		if to[path] == "" {
			c[path] = ""
		}
	}
	return c
}

func TestGuardHoldsBackWhatRemovesOrAddsTooMuch(t *testing.T) {
	guard := Guard{Shrink: 20, Grow: 10, Floor: 100}
	held := many(200)
	for name, c := range map[string]struct {
		from state
		to   state
		pass bool
	}{
		"a fifth less":              {held, held.without(40, 0), true},
		"more than a fifth less":    {held, held.without(41, 0), false},
		"as many, others":           {held, held.without(200, 200), false},
		"as many, some others":      {held, held.without(40, 40), true},
		"nothing left":              {held, state{}, false},
		"ten times as many":         {held, held.without(0, 1800), true},
		"more than that":            {held, held.without(0, 1801), false},
		"nothing left of a few":     {many(99), state{}, true},
		"many, where there are few": {many(99), many(5000), true},
		"the same":                  {held, held, true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, released := range []bool{false, true} {
				d := maps.Clone(c.from).delta(10, 11, c.from.changes(c.to))
				d.GetDelta().Released = released
				snapshot := c.to.snapshot(11)
				snapshot[0].GetSnapshotBegin().Released = released
				for kind, frames := range map[string][]*feedv1.SubscribeResponse{"delta": {d}, "snapshot": snapshot} {
					live := &table.Live{}
					a := newApplier(live, guard)
					for _, f := range c.from.snapshot(10) { // the first state passes, whatever it is
						a.take(wire(t, f))
					}
					var o outcome
					for _, f := range frames {
						o = a.take(wire(t, f))
					}
					switch pass := o.applied != nil; {
					case pass != (c.pass || released):
						t.Errorf("%s, released %v: passes %v, %v", kind, released, pass, o.rejection)
					case pass:
						wantHolds(t, live, 11, c.to)
					case o.rejection.code != feedv1.RejectCode_REJECT_CODE_GUARDED || !strings.Contains(o.rejection.reason, "affctl fleet release"):
						t.Errorf("%s: rejected as %v", kind, o.rejection)
					default:
						wantHolds(t, live, 10, c.from)
					}
				}
			}
		})
	}
}

func TestGuardAlarmEndsWithTheReleasedVersion(t *testing.T) {
	c := startControl(t)
	n := startNodeWith(t, Config{Targets: []string{c.address}, Guard: Guard{Floor: 3}})
	p := c.accept()
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b", "/c": "https://x.test/c"}
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	empty := maps.Clone(s)
	d := empty.delta(10, 11, map[string]string{"/a": "", "/b": "", "/c": ""})
	p.send(d)
	p.wantRejected(feedv1.RejectCode_REJECT_CODE_GUARDED)
	wantHolds(t, n.live, 10, s)
	if !n.metrics.guarded.Load() || n.metrics.lag(n.live) != 1 || n.metrics.lagSeconds() <= 0 {
		t.Errorf("no alarm: guarded %v, lag %v", n.metrics.guarded.Load(), n.metrics.lag(n.live))
	}
	// It is not gone with the stream.
	p.end <- nil
	p = c.accept()
	d.GetDelta().Released = true
	p.send(d)
	p.wantApplied(11)
	if n.metrics.guarded.Load() || n.metrics.lag(n.live) != 0 || n.metrics.lagSeconds() != 0 {
		t.Errorf("the alarm goes on: guarded %v, lag %v", n.metrics.guarded.Load(), n.metrics.lag(n.live))
	}
	wantHolds(t, n.live, 11, empty)
}

func TestStateThatIsTooLargeIsNotTakenAndCannotBeReleased(t *testing.T) {
	for name, guard := range map[string]Guard{
		"entries": {MaxEntries: 2},
		"bytes":   {MaxBytes: 120},
	} {
		t.Run(name, func(t *testing.T) {
			live := &table.Live{}
			a := newApplier(live, guard)
			two := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
			for _, f := range two.snapshot(10) {
				a.take(wire(t, f))
			}
			wantHolds(t, live, 10, two)
			three := maps.Clone(two)
			d := three.delta(10, 11, map[string]string{"/c": "https://x.test/" + strings.Repeat("c", 60)})
			d.GetDelta().Released = true
			if o := a.take(wire(t, d)); o.rejection == nil || o.rejection.code != feedv1.RejectCode_REJECT_CODE_BAD_FRAME || !strings.Contains(o.rejection.reason, "see --max-") {
				t.Errorf("delta: %+v", o)
			}
			rejected := 0
			frames := three.snapshot(11)
			frames[0].GetSnapshotBegin().Released = true
			for _, f := range frames {
				if o := a.take(wire(t, f)); o.rejection != nil {
					rejected++
				} else if o.applied != nil {
					t.Error("the snapshot was applied")
				}
			}
			if rejected != 1 {
				t.Errorf("the snapshot is rejected %d times", rejected)
			}
			wantHolds(t, live, 10, two)
		})
	}
}

func TestGuardSettingsAreChecked(t *testing.T) {
	for says, g := range map[string]Guard{
		"guard-shrink": {Shrink: 101}, "guard-grow": {Grow: 1}, "guard-floor": {Floor: -1},
		"max-entries": {MaxEntries: -1}, "max-state-bytes": {MaxBytes: -1}, "max-entry-bytes": {MaxEntryBytes: table.MaxHeld + 1},
	} {
		if err := g.Validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v", g, err)
		}
	}
	if err := (Guard{}).Validate(); err != nil {
		t.Error(err)
	}
}
