package clickstream

import (
	"reflect"
	"testing"
)

// A boot of which only what lies before the beginning was read has an account all
// the same, from which the rest is counted.
func TestAnAuditGoesOnWhereItWas(t *testing.T) {
	ledger := func(recorded, full uint64) Ledger {
		l := Ledger{Answered: recorded + full, Recorded: recorded}
		if full > 0 {
			l.Dropped = map[string]uint64{"spool_full": full}
		}
		return l
	}
	type message struct {
		batch Batch
		part  part
	}
	for name, messages := range map[string][]message{
		"clicks are missing, and others were dropped": {
			{Batch{Node: "n", Boot: 1, First: 1, Count: 5, Ledger: ledger(5, 0)}, lead},
			{Batch{Node: "other", Boot: 2, First: 1, Count: 5, Ledger: ledger(5, 0)}, middle},
			{Batch{Node: "n", Boot: 1, First: 11, Count: 5, Ledger: ledger(15, 3)}, middle},
		},
		"clicks come once more": {
			{Batch{Node: "n", Boot: 1, First: 1, Count: 10, Ledger: ledger(10, 0)}, lead},
			{Batch{Node: "n", Boot: 1, First: 6, Count: 5, Ledger: ledger(10, 0)}, middle},
			{Batch{Node: "n", Boot: 1, First: 11, Count: 5, Ledger: ledger(15, 0)}, middle},
		},
	} {
		run := func(stop int) []Account {
			m := newMarks(nil)
			var a Audit
			for i, msg := range messages {
				if i == stop {
					state, marks := a.State(), m.all()
					a, m = Audit{}, newMarks(marks)
					a.Resume(state)
				}
				b := msg.batch
				news := m.news(&b)
				m.handled(&b)
				a.note(&b, news, m[bootKey{b.Node, b.Boot}], msg.part)
			}
			return a.Accounts()
		}
		want := run(0)
		for stop := 1; stop < len(messages); stop++ {
			if got := run(stop); !reflect.DeepEqual(got, want) {
				t.Errorf("%s: stopped before message %d:\n%+v, want\n%+v", name, stop, got, want)
			}
		}
	}
}
