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
)

// trim gives memory back to the system once the table has become much larger or
// smaller and stays as it is: what it took to load it, and to write the last
// known good state, is free then, and would stay with the process for long. It
// waits for a collection of garbage and for the system, which no redirect does.
// An import is no such moment, however slow: to give back every few seconds what
// is needed again at once took a third of its time. Then, and every few
// minutes for what edits have moved, the table is packed into huge pages.
func (n *Node) trim(ctx context.Context) error {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var last, trimmed int // entries
	packed := time.Now()
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

func differ(a, b int) int { return max(a-b, b-a) }
