package guard

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/race"
)

// crowd are messages of 400 clicks of 1M addresses and 10,000 affiliates, at
// 20,000 clicks a second.
func crowd(t testing.TB, messages int) (all [][]byte, from, to time.Duration) {
	r := rand.New(rand.NewPCG(1, 2))
	at := time.Duration(0)
	for range messages {
		hits := make([]hit, 400)
		for i := range hits {
			h := person(r, at)
			n := r.IntN(1_000_000)
			h.address = fmt.Sprintf("20.%d.%d.%d", n>>16, n>>8&255, n&255)
			h.affiliate = min(r.IntN(10_000), r.IntN(10_000))
			hits[i] = h
			at += 50 * time.Microsecond
		}
		all = append(all, message(t, 1, hits))
	}
	return all, 0, at
}

// BenchmarkClick is what a click costs, decoded and looked at.
func BenchmarkClick(b *testing.B) {
	all, _, _ := crowd(b, 5000)
	e, err := NewEngine(Settings{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	add := func(m []byte) {
		batch, err := clickstream.Decode(m)
		if err != nil {
			b.Fatal(err)
		}
		e.Add(batch)
	}
	for _, m := range all[:2500] {
		add(m)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		add(all[i%len(all)])
		i++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/400, "ns/click")
}

func TestAMillionAddressesAndTenThousandAffiliatesStayWithinTheirMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes some seconds")
	}
	if race.Enabled {
		t.Skip("one goroutine, two minutes with the race detector; make test runs this without it")
	}
	e, err := NewEngine(Settings{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 { // each address twice on average
		all, _, _ := crowd(t, 1000)
		for _, m := range all {
			b, err := clickstream.Decode(m)
			if err != nil {
				t.Fatal(err)
			}
			e.Add(b)
		}
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > 250<<20 || e.Stats().Bytes > 250<<20 {
		t.Fatalf("%d MB in the heap, %d MB of them state", m.HeapAlloc>>20, e.Stats().Bytes>>20)
	}
	t.Logf("%d MB in the heap, %d MB of them state", m.HeapAlloc>>20, e.Stats().Bytes>>20)
}
