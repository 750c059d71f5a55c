package clickstream

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
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
