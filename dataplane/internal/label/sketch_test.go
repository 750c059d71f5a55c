package label

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/race"
)

const minute = int64(time.Minute)

// newCounter makes one whose window is a minute.
func newCounter(bytes int64) *counter { return &counter{newLines(1, bytes)[0]} }

func at(now int64) moment { return window(minute).at(now) }

func TestCountsOfAKeySlideWithTheWindow(t *testing.T) {
	c := newCounter(1 << 20)
	key, now := uint64(0x123456789abcdef), 10*minute
	for i := 1; i <= 100; i++ {
		if n := c.count(key, at(now)); n != i {
			t.Fatalf("%d requests count as %d", i, n)
		}
	}
	for _, step := range []struct {
		at   int64
		want int
	}{
		{11 * minute, 101},         // all of the last window is within reach
		{11*minute + minute/4, 77}, // three quarters of it, and 2 of this one
		{11*minute + minute/2, 53}, // a half, and 3
		{12*minute - 1, 4},         // next to nothing, and 4
		{12 * minute, 5},           // the window with the 100 is over; 4 are left
		{14 * minute, 1},           // a window has passed without any
	} {
		if n := c.count(key, at(step.at)); n != step.want {
			t.Errorf("after %v: %d, want %d", time.Duration(step.at-10*minute), n, step.want)
		}
	}
}

func TestCountsDoNotOverflow(t *testing.T) {
	c := newCounter(64)
	n := 0
	for range 70_000 {
		n = c.count(7, at(minute))
	}
	if n != 0xffff {
		t.Errorf("counted %d", n)
	}
}

func TestAKeyNeverCountsForLessThanItHasSent(t *testing.T) {
	c := newCounter(64 * 4) // 4 lines for 1000 keys
	r := rand.New(rand.NewPCG(1, 2))
	sent := map[uint64]int{}
	for range 20_000 {
		key := uint64(r.IntN(1000)) * 0x9e3779b97f4a7c15
		sent[key]++
		if n := c.count(key, at(minute)); n < sent[key] {
			t.Fatalf("%d requests count as %d", sent[key], n)
		}
	}
}

// TestHonestAddressesAreNotLabelledBesideAFlood counts at the default size what
// the package comment says: honest addresses, a flood of a million made-up ones,
// and a thousand that are over the limit.
func TestHonestAddressesAreNotLabelledBesideAFlood(t *testing.T) {
	const limit = 600
	honest, heavy, flood, size := 100_000, 1000, 1_000_000, int64(8<<20)
	if race.Enabled { // all a twentieth
		honest, heavy, flood, size = 5000, 50, 50_000, size/20
	}
	c := newCounter(size)
	r := rand.New(rand.NewPCG(3, 4))
	key := func(kind, i int) uint64 { return mix(uint64(kind), uint64(i)) }
	for i := range flood {
		c.count(key(1, i), at(minute))
	}
	for range 700 {
		for i := range heavy {
			c.count(key(2, i), at(minute))
		}
	}
	most, labelled := 0, 0
	for i := range honest {
		n := c.count(key(3, i), at(minute+r.Int64N(minute/2)))
		most = max(most, n)
		if n > limit {
			labelled++
		}
	}
	// A line has got 7.6 of the flood, 0.8 honest and rarely a heavy one; the
	// bound for being labelled is 1.2e-7 times 100,000.
	if labelled > 1 {
		t.Errorf("%d of %d honest addresses are labelled", labelled, honest)
	}
	missed := 0
	for i := range heavy {
		if c.count(key(2, i), at(minute)) <= limit {
			missed++
		}
	}
	if missed > 0 {
		t.Errorf("%d of %d heavy addresses are not labelled", missed, heavy)
	}
	t.Logf("of one request each, the most is counted as %d", most)
}

func TestFirstClicksAreHardlyEverTakenForOthers(t *testing.T) {
	n, size := 500_000, int64(8<<20) // half as many as there are places
	if race.Enabled {
		n, size = n/20, size/20
	}
	m := &marks{newLines(1, size)[0], 10}
	now := int64(time.Hour)
	for i := range n {
		m.touch(mix(1, uint64(i)), 0, now-minute)
	}
	again, first := 0, 0
	for i := range n {
		if age, _ := m.touch(mix(2, uint64(i)), 0, now); age != never {
			first++
		}
	}
	for i := range n {
		if age, _ := m.touch(mix(2, uint64(i)), 0, now); age == 0 {
			again++
		}
	}
	if first > 3 { // 1.2e-7 of 500,000 are 0.06
		t.Errorf("%d of %d first clicks are taken for others", first, n)
	}
	if again < n*98/100 {
		t.Errorf("only %d of %d clicks are known again", again, n)
	}
}

func TestMarksKnowTheAgeAndTheBitsOfAKey(t *testing.T) {
	m := &marks{newLines(1, 1<<12)[0], 10}
	now := int64(time.Hour)
	if age, _ := m.touch(5, 77, now); age != never {
		t.Fatalf("a key that was never seen has age %d", age)
	}
	age, was := m.touch(5, 1<<10|78, now+int64(3*time.Second))
	if d := time.Duration(age) - 3*time.Second; d < -70*time.Millisecond || d > 70*time.Millisecond || was != 77 {
		t.Errorf("age %v, bits %d", time.Duration(age), was)
	}
	if _, was := m.touch(5, 0, now); was != 78 {
		t.Errorf("bits %d", was)
	}
}

func TestAFullLineForgetsItsOldestMark(t *testing.T) {
	m := &marks{newLines(1, 64)[0], 0} // one line
	for i := range lineWords + 1 {
		m.touch(uint64(i+1), 0, int64(i)*int64(time.Second))
	}
	if age, _ := m.touch(1, 0, int64(time.Minute)); age != never {
		t.Error("the oldest mark is still there")
	}
	if age, _ := m.touch(4, 0, int64(time.Minute)); age == never {
		t.Error("a younger mark is gone")
	}
}

func TestRacesCostHardlyAnyCount(t *testing.T) {
	c, m := newCounter(1<<20), &marks{newLines(1, 1<<20)[0], 10}
	var wg sync.WaitGroup
	const workers, each = 4, 5000
	for range workers {
		wg.Go(func() {
			for i := range each {
				c.count(9, at(minute))
				m.touch(9, uint64(i), minute)
			}
		})
	}
	wg.Wait()
	if n := c.count(9, at(minute)); n > workers*each+1 || n < workers*each*9/10 {
		t.Errorf("%d of %d are counted", n, workers*each)
	}
}
