package clickstream

import (
	"math/rand/v2"
	"testing"
)

// fate is what becomes of a click of the model.
type fate struct {
	message int // that shows its sequence
	missing bool
	twice   bool // it is in the stream, and counted as lost as well
	counted int  // the message from which on it is counted as lost; -1: never
}

// modelled is a boot whose clicks are missing, and counted as lost, by chance, and what an
// audit of a window makes of it.
type modelled struct {
	fates  []fate // of sequences, from 1
	window Account
	last   [3]int // message of each part
}

// model makes one: the first messages may not be read, and clicks be counted twice.
func model(rnd *rand.Rand, unread, twice bool) *modelled {
	var m modelled
	var bounds [4]int // of messages: the parts, and before them what is not read
	n := 0
	for i, most := range []int{0, 4, 4, 3} {
		if i == 0 && unread {
			most = 3
		}
		n += rnd.IntN(most + 1)
		bounds[i] = n
	}
	m.last = [3]int{middle: bounds[2] - 1, lead: bounds[1] - 1, trail: bounds[3] - 1}
	marks, audit := newMarks(nil), Audit{}
	for i := range n {
		at := lead
		switch {
		case i >= bounds[2]:
			at = trail
		case i >= bounds[1]:
			at = middle
		}
		gap := uint64(0)
		if i > 0 && rnd.IntN(2) == 0 {
			gap = uint64(1 + rnd.IntN(3))
		}
		late := func() int { // when it is counted
			if rnd.IntN(4) == 0 {
				return -1
			}
			return i + rnd.IntN(3)
		}
		counted := late()
		for range gap {
			m.fates = append(m.fates, fate{message: i, missing: true, counted: counted})
		}
		b := Batch{Node: "n", Boot: 1, First: uint64(len(m.fates)) + 1, Count: uint64(rnd.IntN(3))}
		for range b.Count {
			f := fate{message: i, counted: -1}
			if twice && rnd.IntN(6) == 0 {
				f.twice, f.counted = true, i+rnd.IntN(2)
			}
			m.fates = append(m.fates, f)
		}
		high := uint64(len(m.fates))
		var lost uint64
		for _, f := range m.fates {
			if f.counted >= 0 && f.counted <= i {
				lost++
			}
		}
		b.Ledger = Ledger{Answered: high + uint64(i), Recorded: high - lost, Dropped: map[string]uint64{spoolFull: uint64(i), "corrupt": lost}}
		if i < bounds[0] {
			continue
		}
		news := marks.news(&b)
		marks.handled(&b)
		audit.note(&b, news, marks[bootKey{"n", 1}], at)
	}
	if a := audit.Accounts(); len(a) == 1 {
		m.window = a[0]
		return &m
	}
	return nil // nothing is in the window
}

// count counts the clicks of parts by what became of them.
func (m *modelled) count(is func(sequence uint64, f fate) bool) (n uint64) {
	for i, f := range m.fates {
		if is(uint64(i)+1, f) {
			n++
		}
	}
	return n
}

// No ledger says which clicks it counts as lost: what the audit says of them must be so,
// whichever these are.
func TestAnAuditOfAWindowSaysOnlyWhatIsSo(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	seen := map[string]int{}
	for i := range 20_000 {
		m := model(rnd, false, false)
		if m == nil {
			continue
		}
		a := &m.window
		within := func(s uint64, f fate) bool { return s > a.Base.High && s <= a.Last }
		counted := func(f fate) bool { return f.counted >= 0 && f.counted <= m.last[trail] }
		missing := m.count(func(s uint64, f fate) bool { return within(s, f) && f.missing && !counted(f) })
		around := m.count(func(s uint64, f fate) bool { return !within(s, f) && f.missing && !counted(f) })
		earlier := m.count(func(s uint64, f fate) bool {
			return s <= a.Base.High && f.counted > m.last[lead] && f.counted <= m.last[middle]
		})
		settled := false // all that was missing by a message was counted in it
		for last := m.last[middle]; last <= m.last[trail]; last++ {
			settled = settled || m.count(func(_ uint64, f fate) bool {
				return f.missing && f.message <= last && (f.counted < 0 || f.counted > last)
			}) == 0
		}
		switch {
		case a.Difference() < 0, a.Open, a.Unsure > 0:
			t.Fatalf("%d: the node is accused: %+v of %+v", i, a, m.fates)
		case a.Closes() && missing > 0, a.Difference() > 0 && missing == 0:
			t.Fatalf("%d: %d are missing: %+v of %+v", i, missing, a, m.fates)
		case !a.Closes() && missing == 0 && (around == 0 || settled || !a.Undecided()):
			t.Fatalf("%d: none is missing, and %d around it: %+v of %+v", i, around, a, m.fates)
		case len(a.Missing) == 0 && a.Earlier != earlier:
			t.Fatalf("%d: %d from before: %+v of %+v", i, earlier, a, m.fates)
		}
		for what, is := range map[string]bool{"closes": a.Closes(), "is undecided": a.Undecided(), "misses": a.Difference() > 0, "knows earlier ones": a.Earlier > 0, "explains": a.Closes() && len(a.Missing) > 0} {
			if is {
				seen[what]++
			}
		}
	}
	t.Log(seen)
	if len(seen) != 5 {
		t.Errorf("some cases were not met: %v", seen)
	}
}

// What is counted twice is told as far as it can be none from before.
func TestAnAuditOfAWindowTellsWhatIsCountedTwice(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	seen := map[string]int{}
	for i := range 20_000 {
		unread := rnd.IntN(2) == 0
		m := model(rnd, unread, true)
		if m == nil || len(m.window.Missing) > 0 {
			continue
		}
		a := &m.window
		twice := m.count(func(_ uint64, f fate) bool { return f.twice && f.counted <= m.last[middle] })
		before := m.count(func(_ uint64, f fate) bool {
			return f.message <= m.last[lead] && (f.twice || f.missing && (f.counted < 0 || f.counted > m.last[lead]))
		})
		switch told := uint64(max(0, -a.Difference())); {
		case before == 0 && !unread && told != twice:
			t.Fatalf("%d: %d are counted twice, and nothing is missing before: %+v of %+v", i, twice, a, m.fates)
		case told > twice:
			t.Fatalf("%d: %d are counted twice: %+v of %+v", i, twice, a, m.fates)
		case told > 0:
			seen["told"]++
		case a.Unsure > 0 && a.Base.Unread == 0:
			t.Fatalf("%d: it is sure: %+v of %+v", i, a, m.fates)
		case a.Unsure > 0:
			seen["unsure"]++
		}
	}
	t.Log(seen)
	if len(seen) != 2 {
		t.Errorf("some cases were not met: %v", seen)
	}
}
