package dataplane

import (
	"context"
	"runtime/debug"
	"time"
)

const (
	trimEvery = time.Second
	trimFrom  = 20_000 // entries more or less than at the last time
	trimStill = 500    // entries that may come or go within trimEvery: more is loading
	packEvery = 10 * time.Minute

	// The growth of the heap, in percent, at which garbage is collected. The table
	// is a few large blocks without pointers: a collection at 1M links takes half
	// a millisecond, and memory is what counts. But an import makes garbage all the
	// time, by outgrowing blocks: collecting it at every fifth more was a quarter of
	// a node's CPU then.
	collectAt      = 20
	collectLoading = 50
)

// trim gives memory back to the system once the table has become much larger or
// smaller and stays as it is: what it took to load it, and to write the last
// known good state, is free then, and would stay with the process for long. It
// waits for a collection of garbage and for the system, which no redirect does.
// An import is no such moment, however slow: to give back every few seconds what
// is needed again at once took a third of its time. Then, and every few
// minutes for what edits have moved, the table is packed into huge pages.
//
// Where it may, it also sets how often garbage is collected.
func (n *Node) trim(ctx context.Context) error {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var last, trimmed int // entries
	packed := time.Now()
	loading := false
	n.collect(loading)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		t, entries := n.live.Load(), 0
		if t != nil {
			entries = t.Len()
		}
		if was := loading; was != (t == nil || differ(entries, last) > trimStill) {
			loading = !was
			n.collect(loading)
		}
		settled := differ(entries, trimmed) >= trimFrom && differ(entries, last) <= trimStill
		if settled {
			debug.FreeOSMemory()
			trimmed = entries
		}
		if t != nil && (settled || time.Since(packed) > packEvery) {
			useHugePages(ctx, t)
			packed = time.Now()
		}
		last = entries
	}
}

// collect sets how often garbage is collected, if that is the node's to say.
func (n *Node) collect(loading bool) {
	if !n.cfg.TuneCollector {
		return
	}
	if loading {
		debug.SetGCPercent(collectLoading)
	} else {
		debug.SetGCPercent(collectAt)
	}
}

func differ(a, b int) int { return max(a-b, b-a) }
