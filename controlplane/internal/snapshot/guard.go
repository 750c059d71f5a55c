package snapshot

import (
	"fmt"
	"time"
)

// Guard says what a revision may do without an operator's word. The zero value
// has the defaults; what is negative is not guarded.
type Guard struct {
	// The share of the links that may be removed by one revision, or by all of
	// a window together. Default: 0.2.
	Shrink float64
	// How many times as many links one revision, or what is read anew after an
	// outage, may make of those before. Default: 10.
	Grow float64
	// Fewer links than this are not guarded, and growth is measured from here.
	// Default: 1000.
	Floor int64
	// How far back links are counted; at least this and at most twice this.
	// Default: 1 minute.
	Window time.Duration
	// The most resources, and bytes of their keys and values, in all. Default:
	// no limit.
	MaxEntries, MaxBytes int64
}

func (g *Guard) setDefaults() {
	if g.Shrink == 0 {
		g.Shrink = 0.2
	}
	if g.Grow == 0 {
		g.Grow = 10
	}
	if g.Floor == 0 {
		g.Floor = 1000
	}
	if g.Window <= 0 {
		g.Window = time.Minute
	}
}

// Hold is a revision that is held back, with all after it. It never changes.
type Hold struct {
	Revision int64 // that is to be released
	// What is held back begins with this revision: before that one where the log does
	// not know any more what came in between.
	From   int64
	Reason string // for people
	Since  time.Time

	after int64 // what is held back came after this revision
}

// watchman measures revisions by a Guard. It belongs to the log's writer.
type watchman struct {
	Guard
	since         time.Time // when the current half of the window began
	recent, older int64     // most links in it, and in the one before
}

// passed notes a step that is served. Halves begin with the clock's, so that
// replicas measure alike.
func (w *watchman) passed(before, after mark) {
	switch age := after.at.Sub(w.since); {
	case age < 0: // the clock was put back: what was seen counts for as long as if it were new
		w.since = after.at.Truncate(w.Window)
	case age >= 2*w.Window:
		w.since, w.recent, w.older = after.at.Truncate(w.Window), 0, 0
	case age >= w.Window:
		w.since, w.recent, w.older = after.at.Truncate(w.Window), 0, w.recent
	}
	w.recent = max(w.recent, before.links, after.links)
}

// rebase measures from a state on: it was released, or is the first.
func (w *watchman) rebase(m mark) { w.since, w.recent, w.older = m.at.Truncate(w.Window), m.links, 0 }

// check says why a record, behind a state, is held back; "" if it is not. Its
// deletions count also where it has as many new links: for a node they are gone.
func (w *watchman) check(before mark, r *record) string {
	after, gone := r.mark, r.deleted()
	most := before.links
	switch age := after.at.Sub(w.since); {
	case age < w.Window:
		most = max(most, w.recent, w.older)
	case age < 2*w.Window:
		most = max(most, w.recent)
	}
	guarded := w.Shrink > 0 && most >= w.Floor && gone > 0
	switch {
	case guarded && after.links == 0:
		return fmt.Sprintf("it leaves none of %d links", most)
	case guarded && after.links < before.links && float64(after.links) < (1-w.Shrink)*float64(most):
		return fmt.Sprintf("it leaves %d of %d links, and more than %.4g%% of them may not go within %s", after.links, most, 100*w.Shrink, w.Window)
	case guarded && float64(gone) > w.Shrink*float64(before.links):
		return fmt.Sprintf("it deletes %d of %d links, more than %.4g%%, and makes others", gone, before.links, 100*w.Shrink)
	case w.Grow > 0 && float64(after.links) > w.Grow*float64(max(before.links, w.Floor)):
		return fmt.Sprintf("it makes %d links of %d, more than %.4g times as many", after.links, before.links, w.Grow)
	case w.MaxEntries > 0 && after.entries > max(w.MaxEntries, before.entries):
		return fmt.Sprintf("it makes %d resources, and %d are allowed", after.entries, w.MaxEntries)
	case w.MaxBytes > 0 && after.bytes > max(w.MaxBytes, before.bytes):
		return fmt.Sprintf("it makes %d bytes of resources, and %d are allowed", after.bytes, w.MaxBytes)
	}
	return ""
}

// ahead judges what comes behind a revision that is held back as if that had been
// released: records are not kept for ever. It belongs to the log's writer.
type ahead struct {
	guard    watchman
	revision int64  // the last that would be held back; 0: none
	reason   string // for people
}

// passed notes a record behind a state.
func (a *ahead) passed(before mark, r *record) {
	reason := a.guard.check(before, r)
	switch {
	case r.released:
		a.guard.rebase(r.mark)
	case reason == "":
		a.guard.passed(before, r.mark)
	default:
		a.revision, a.reason = r.revision, reason
		a.guard.rebase(r.mark)
	}
}
