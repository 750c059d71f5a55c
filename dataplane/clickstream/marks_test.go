package clickstream

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

func batch(first uint64, n int) *Batch {
	return &Batch{Node: "n", Boot: 1, First: first, Count: uint64(n)}
}

func TestMarksKnowWhatIsNewWhateverTheOrder(t *testing.T) {
	m := newMarks(nil)
	steps := []struct {
		first  uint64
		n      int
		news   []Range
		opened *Range
		filled []Range
	}{
		{1, 10, []Range{{1, 10}}, nil, nil},
		{1, 10, nil, nil, nil},
		{5, 10, []Range{{11, 14}}, nil, nil},
		{20, 5, []Range{{20, 24}}, &Range{15, 19}, nil},
		{16, 2, []Range{{16, 17}}, nil, []Range{{16, 17}}},
		{14, 12, []Range{{15, 15}, {18, 19}, {25, 25}}, nil, []Range{{15, 15}, {18, 19}}},
		{30, 0, nil, &Range{26, 29}, nil},
		{26, 4, []Range{{26, 29}}, nil, []Range{{26, 29}}},
	}
	for i, s := range steps {
		b := batch(s.first, s.n)
		if got := m.news(b); !slices.Equal(got, s.news) {
			t.Fatalf("step %d: news %v, want %v", i, got, s.news)
		}
		c := m.handled(b)
		if !cmp.Equal(c.opened, s.opened) || !slices.Equal(c.filled, s.filled) {
			t.Fatalf("step %d: %+v", i, c)
		}
		m = newMarks(m.all()) // a consumer may stop at any time
	}
	if got := m.all(); len(got) != 1 || got[0].High != 29 || len(got[0].Missing) != 0 {
		t.Fatalf("%+v", got)
	}
}

func TestMarksAgreeWithASetUnderRandomBatches(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	for range 200 {
		m := newMarks(nil)
		seen := map[uint64]bool{}
		for range 60 {
			b := batch(uint64(1+rnd.IntN(100)), rnd.IntN(12))
			fresh := map[uint64]bool{}
			for _, r := range m.news(b) {
				for s := r.From; s <= r.To; s++ {
					fresh[s] = true
				}
			}
			for i := range b.Count {
				if s := b.First + i; fresh[s] == seen[s] {
					t.Fatalf("sequence %d: new %t, seen %t; %+v", s, fresh[s], seen[s], m.all())
				} else {
					seen[s] = true
				}
			}
			m.handled(b)
		}
	}
}

// A consumer that began in the middle gets some of what came before, which was
// published again. What is left of that is no gap.
func TestWhatComesFromBeforeTheBeginningLeavesNoGapThere(t *testing.T) {
	m := newMarks(nil)
	handled := func(first uint64, n int, recorded uint64) change {
		b := batch(first, n)
		b.Ledger = Ledger{Answered: first + uint64(n) - 1, Recorded: recorded}
		return m.handled(b)
	}
	handled(101, 10, 110)
	handled(41, 10, 50)
	if c := handled(116, 5, 115); !cmp.Equal(c.opened, &Range{111, 115}) || !c.explained {
		t.Errorf("%+v", c)
	}
	if gaps, clicks := m[bootKey{"n", 1}].gaps(); !slices.Equal(gaps, []Range{{111, 115}}) || clicks != 5 {
		t.Error(gaps, clicks)
	}
}

// What is decoded are parts of the message; a mark is kept for a month.
func TestMarksAndAccountsDoNotKeepMessages(t *testing.T) {
	const boots, size = 64, 1 << 20
	m, a, d := newMarks(nil), Audit{}, decoder{}
	heap := func() uint64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	for boot := range uint64(boots) {
		b, err := d.head(message(t, "n", boot, 1, 1, func(b *clickv1.Batch) { b.Strings = [][]byte{nil, make([]byte, size)} }))
		if err != nil {
			t.Fatal(err)
		}
		news := m.news(b)
		m.handled(b)
		a.note(b, news, m[bootKey{b.Node, b.Boot}], middle)
	}
	if after := heap(); after > before+boots*size/4 {
		t.Errorf("%d bytes are kept", after-before)
	}
	runtime.KeepAlive(m)
	runtime.KeepAlive(&a)
}

func TestMarksAreBoundedAndForgetWhatEnded(t *testing.T) {
	m := newMarks(nil)
	now := time.Now()
	givenUp := 0
	for i := range uint64(maxMissing + 10) {
		b := batch(1+2*i, 1)
		b.Stored = now
		givenUp += len(m.handled(b).givenUp)
	}
	if mark := m.all()[0]; givenUp != 9 || len(mark.Missing) != maxMissing || mark.Missing[0] != (Range{20, 20}) {
		t.Fatal(givenUp, mark.Missing[0])
	}
	if got := m.news(batch(2, 1)); got != nil {
		t.Fatalf("what was given up is new: %v", got)
	}
	ended := &Batch{Node: "e", Boot: 1, First: 1, Count: 1, Ledger: Ledger{Final: true}, Stored: now}
	m.handled(ended)
	for _, step := range []struct {
		later time.Duration
		left  int
	}{{23 * time.Hour, 2}, {25 * time.Hour, 1}, {29 * 24 * time.Hour, 1}, {31 * 24 * time.Hour, 0}} {
		m.forget(now.Add(step.later))
		if len(m) != step.left {
			t.Fatalf("after %s: %d marks", step.later, len(m))
		}
	}
}

func TestTheStateOfManyNodesFitsIntoAKey(t *testing.T) {
	m := newMarks(nil)
	for i := range uint64(5000) {
		m.handled(&Batch{Node: fmt.Sprint("node-", i%500), Boot: Hex(i * 0x9e3779b97f4a7c15), First: i * 1000, Count: 5, Stored: time.Now(), Ledger: Ledger{Answered: i, Recorded: i}})
	}
	want := kvValue{"me", State{Next: 7, Stream: time.Now().UTC(), Stored: time.Now().UTC(), Marks: m.all()}}
	text, err := want.encode()
	if err != nil || len(text) > 1<<20 {
		t.Fatal(len(text), err)
	}
	got, err := decodeKV(text)
	if diff := cmp.Diff(want, got, cmpopts.EquateApproxTime(0)); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
	if _, err := decodeKV([]byte("x")); err == nil {
		t.Fatal("nonsense is taken")
	}
}
