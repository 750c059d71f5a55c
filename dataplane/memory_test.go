package dataplane

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
)

func TestMemoryIsGivenBackOnceTheTableStaysAsItIs(t *testing.T) {
	var w watch
	for _, step := range []struct {
		what     string
		base     uint64
		entries  []int // at one look after the other
		settled  []bool
		loadings []bool
	}{
		{"nothing has come", 0, []int{0, 0}, []bool{false, false}, []bool{false, false}},
		{"a million entries at once", 7, []int{1_000_000, 1_000_000, 1_000_000}, []bool{false, true, false}, []bool{true, false, false}},
		{"edits", 7, []int{1_000_400, 1_000_800}, []bool{false, false}, []bool{false, false}},
		{"an import", 7, []int{1_010_000, 1_020_000, 1_030_000, 1_030_000}, []bool{false, false, false, true}, []bool{true, true, true, false}},
		{"another table with as many", 9, []int{1_030_000, 1_030_000}, []bool{true, false}, []bool{false, false}},
		{"another table with more", 11, []int{1_040_000, 1_040_000, 1_040_000}, []bool{false, true, false}, []bool{true, false, false}},
	} {
		for i, entries := range step.entries {
			settled, still := w.look(step.base, entries)
			if settled != step.settled[i] || still == step.loadings[i] {
				t.Errorf("%s, look %d: settled %v, loading %v", step.what, i, settled, !still)
			}
		}
	}
}

func TestASmallHeapGrowsByMoreThanAFifth(t *testing.T) {
	for _, c := range []struct {
		loading bool
		live    uint64
		percent int
	}{
		{false, 0, 600},
		{false, 30 << 20, 80},
		{false, 120 << 20, 20},
		{false, 1400 << 20, 20},
		{true, 30 << 20, 50},
	} {
		if got := growth(c.loading, c.live); got != c.percent {
			t.Errorf("loading %v, %d MiB live: %d percent, want %d", c.loading, c.live>>20, got, c.percent)
		}
	}
}

func TestGarbageIsCollectedByWhatIsLiveNow(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	synctest.Test(t, func(t *testing.T) {
		n := &Node{cfg: Config{TuneCollector: true}, live: new(table.Live)}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = n.trim(ctx) }()
		percent := func(wait time.Duration) int {
			time.Sleep(wait)
			synctest.Wait()
			p := debug.SetGCPercent(100)
			debug.SetGCPercent(p)
			return p
		}
		if got := percent(0); got != collectLoading {
			t.Errorf("before there is a table: %d percent", got)
		}
		n.live.Store(table.NewBuilder(0).Build(table.Version{}))
		if got := percent(3 * trimEvery); got <= collectLoading {
			t.Errorf("with an empty table: %d percent", got)
		}
		others := make([]byte, 2*100*collectLeast/collectAt) // of many connections, say
		runtime.GC()
		if got := percent(2 * trimEvery); got != collectAt {
			t.Errorf("with much else: %d percent", got)
		}
		runtime.KeepAlive(others)
	})
}
