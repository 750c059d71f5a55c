package snapshot

import (
	"slices"
	"sort"
	"time"

	"github.com/affleet/affleet/proto/link"
)

// View is what the log holds at one moment. It never changes; each change of
// the log makes a new one.
type View struct {
	epoch   uint64 // 0: no state yet
	base    mark   // the state before the first record
	records []*record
	dropped int64 // cum of the base
	seen    int64 // everything up to this revision is in it
	bytes   int64 // of keys and values at the head

	changed  chan struct{} // closed when there is a view with another head
	advanced chan struct{} // closed when there is another view
}

// Head is the newest state: its revision is the last that changed a resource,
// or the one that was read first. The zero Version: no state yet.
func (v *View) Head() Version {
	if v.epoch == 0 {
		return Version{}
	}
	return Version{v.epoch, v.head().revision}
}

// Seen is the revision up to which the log knows everything. It is at least the
// head's.
func (v *View) Seen() int64 { return v.seen }

// Changed is closed when there is a view with another head.
func (v *View) Changed() <-chan struct{} { return v.changed }

// Advanced is closed when there is another view: its head or only its Seen may
// differ.
func (v *View) Advanced() <-chan struct{} { return v.advanced }

// Serves says whether a node that serves held serves everything up to revision:
// because its version is not lower, or because nothing in between changed a
// resource.
func (v *View) Serves(held Version, revision int64) bool {
	if held.Epoch == 0 || held.Epoch != v.epoch {
		return false
	}
	if held.Revision >= revision {
		return true
	}
	if revision > v.seen || held.Revision < v.base.revision {
		return false
	}
	return v.after(held.Revision) == v.after(revision)
}

// Lag counts the changes that a node at held has missed, and says when the
// first of them came. A node without a state, of another epoch or from before
// the log has missed at least what the log holds.
func (v *View) Lag(held Version) (revisions int64, since time.Time) {
	if v.epoch == 0 {
		return 0, time.Time{}
	}
	if held.Epoch != v.epoch || held.Revision < v.base.revision {
		return int64(len(v.records)) + 1, v.base.at
	}
	i := v.after(held.Revision)
	if i == len(v.records) {
		return 0, time.Time{}
	}
	return int64(len(v.records) - i), v.records[i].at
}

// HashAt gives the set hash of a version, if the log still knows it.
func (v *View) HashAt(held Version) (link.SetHash, bool) {
	if v.epoch == 0 || held.Epoch != v.epoch || held.Revision < v.base.revision || held.Revision > v.seen {
		return link.SetHash{}, false
	}
	return v.before(v.after(held.Revision)).hash, true
}

// head is the newest state.
func (v *View) head() mark { return v.before(len(v.records)) }

// before is the state before record i.
func (v *View) before(i int) mark {
	if i == 0 {
		return v.base
	}
	return v.records[i-1].mark
}

// cum is the memory of all records before i, since the start, in bytes.
func (v *View) cum(i int) int64 {
	if i == 0 {
		return v.dropped
	}
	return v.records[i-1].cum
}

// after is the index of the first record after a revision.
func (v *View) after(revision int64) int {
	return sort.Search(len(v.records), func(i int) bool { return v.records[i].revision > revision })
}

// logBytes is the memory that the records take.
func (v *View) logBytes() int64 { return v.cum(len(v.records)) - v.dropped }

// append gives a view with one more record, and without the oldest ones where
// the log would pass limit bytes. It is for the writer: only the newest view
// may be appended to.
func (v *View) append(r *record, limit int64) *View {
	r.cum = v.cum(len(v.records)) + r.memory
	next := &View{
		epoch: v.epoch, base: v.base, dropped: v.dropped,
		records: append(v.records, r), // older views end before it
		seen:    max(v.seen, r.revision),
	}
	if next.logBytes() <= limit {
		return next
	}
	// An eighth at a time, so that dropping costs little per record; into a
	// new array, so that what was dropped can be collected.
	i := sort.Search(len(next.records), func(i int) bool {
		return r.cum-next.records[i].cum <= limit-limit/8
	})
	next.base, next.dropped = next.records[i].mark, next.records[i].cum
	next.records = slices.Clone(next.records[i+1:])
	return next
}
