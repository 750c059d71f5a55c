package dataplane

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	trimEvery = time.Second
	trimFrom  = 20_000 // entries more or less than at the last time
	trimStill = 500    // entries that may come or go within trimEvery: more is loading
	packEvery = 10 * time.Minute

	// The growth of the heap, in percent, at which garbage is collected: memory is
	// what counts. But an import makes garbage all the time, by outgrowing blocks:
	// collecting it at every fifth more was a quarter of a node's CPU then.
	collectAt      = 20
	collectLoading = 50

	// collectLeast is by how many bytes the heap grows at least until garbage is
	// collected, but while a table loads, when what is live soon is a multiple.
	// Meanwhile, for some 30 ms, the collector takes a quarter of the time of each P, a
	// loop's too, in turns of up to some ms: of a small heap, that fifth would be there
	// several times in a second.
	collectLeast = 24 << 20
)

// trim gives memory back to the system once the table has become much larger or
// smaller, or is another one, and stays as it is: what it took to load it, to write
// the last known good state, and to hold the table before is free then, and would
// stay with the process for long. It waits for a collection of garbage and for the
// system, which no redirect does. An import is no such moment, however slow: to
// give back every few seconds what is needed again at once took a third of its
// time. Then, and every few minutes for what edits have moved, the table is packed
// into huge pages.
//
// Where it may, it also sets how often garbage is collected.
func (n *Node) trim(ctx context.Context) error {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var w watch
	packed := time.Now()
	n.collect(true)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		t := n.live.Load()
		var base uint64
		var entries int
		if t != nil {
			base, entries = t.Base(), t.Len()
		}
		settled, still := w.look(base, entries)
		if settled {
			debug.FreeOSMemory()
		}
		n.collect(t == nil || !still)
		if t != nil && (settled || time.Since(packed) > packEvery) {
			useHugePages(ctx, t)
			packed = time.Now()
		}
	}
}

// watch looks at the live table now and then.
type watch struct {
	last, trimmed int    // entries, at the last time and when memory was given back
	base          uint64 // of the table for which it was: see table.Table.Base
}

// look says whether memory is to be given back, and whether the table stays about
// as it was at the last time. Without a table, both numbers are 0.
func (w *watch) look(base uint64, entries int) (settled, still bool) {
	still = differ(entries, w.last) <= trimStill
	settled = still && (base != w.base || differ(entries, w.trimmed) >= trimFrom)
	if settled {
		w.trimmed, w.base = entries, base
	}
	w.last = entries
	return settled, still
}

// collect sets how often garbage is collected, if that is the node's to say. trim asks
// for it all the time: what is live can become a multiple, of connections too, and a
// percentage for a small heap would let that grow by a multiple. Setting one stops all
// goroutines for a moment, so what is about right stays.
func (n *Node) collect(loading bool) {
	if !n.cfg.TuneCollector {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	if percent := growth(loading, live[0].Value.Uint64()); differ(percent, n.percent) > n.percent/8 {
		n.percent = percent
		debug.SetGCPercent(percent)
	}
}

// smallest is the heap, in bytes, that Go collects at 100% growth if less is live.
const smallest = 4 << 20

// growth is by how many percent of what is live the heap may grow.
func growth(loading bool, live uint64) int {
	if loading {
		return collectLoading
	}
	return max(collectAt, int(100*collectLeast/max(live, smallest)))
}

func differ(a, b int) int { return max(a-b, b-a) }
