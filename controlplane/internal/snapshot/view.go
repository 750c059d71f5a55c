package snapshot

import (
	"slices"
	"sort"
	"time"

	"github.com/affleet/affleet/controlplane/internal/store"
	"github.com/affleet/affleet/proto/link"
)

// View is what the log holds at one moment. It never changes; each change of
// the log makes a new one.
type View struct {
	epoch   uint64   // 0: no state yet
	past    []uint64 // epochs whose nodes take this one's state
	base    mark     // the state before the first record
	records []*record
	served  int   // how many of the records are served: the others are held back
	dropped int64 // cum of the base
	seen    int64 // everything up to this revision is known
	truth   mark  // the state at seen; its revision is the last that changed it
	moved   int64 // the last revision up to seen that may have changed which replicas there are

	hold     *Hold // nil: nothing is held back
	lost     bool  // what is held back is more than the log takes, and not in records
	blind    bool  // what is served is not known, but that it is older than hold: etcd has compacted it
	released store.Release
	downs    []*TakeDown // the newest, in order

	rewind store.Rewind // the source went back; the zero value: it did not
	apart  bool         // what is held is of before that: the source is not followed

	changed  chan struct{} // closed when streams have something else to send
	downed   chan struct{} // closed when there is another take-down
	advanced chan struct{} // closed when there is another view
}

// Head is the newest state that is served: its revision is the last that changed
// a resource, or the one that was read first. The zero Version: no state yet.
func (v *View) Head() Version {
	if v.epoch == 0 {
		return Version{}
	}
	return Version{v.epoch, v.head().revision}
}

// Seen is the revision up to which the log knows everything. It is at least the
// head's.
func (v *View) Seen() int64 { return v.seen }

// Replicas is a revision up to Seen after which nothing has changed which
// replicas there are.
func (v *View) Replicas() int64 { return v.moved }

// Links counts the links that are served.
func (v *View) Links() int64 { return v.head().links }

// Entries counts the resources that are served.
func (v *View) Entries() int64 { return v.head().entries }

// Bytes counts the bytes of keys and values that are served.
func (v *View) Bytes() int64 { return v.head().bytes }

// Hold is what is held back; nil if nothing is.
func (v *View) Hold() *Hold { return v.hold }

// Waiting counts the revisions that are held back, and the links that there
// would be with the newest of them.
func (v *View) Waiting() (revisions, links int64) {
	if v.hold == nil {
		return 0, v.truth.links
	}
	return max(int64(len(v.records)-v.served), 1), v.truth.links
}

// Size gives all resources and their bytes as etcd has them, held back or not.
func (v *View) Size() (entries, bytes int64) { return v.truth.entries, v.truth.bytes }

// Released is up to where an operator has released; 0: nowhere.
func (v *View) Released() int64 { return v.released.UpTo }

// TakeDowns are those after a revision, in order. The slice must not be changed.
func (v *View) TakeDowns(after int64) []*TakeDown {
	i := sort.Search(len(v.downs), func(i int) bool { return v.downs[i].Revision > after })
	return v.downs[i:]
}

// LastTakeDown is the newest; nil: there is none.
func (v *View) LastTakeDown() *TakeDown {
	if len(v.downs) == 0 {
		return nil
	}
	return v.downs[len(v.downs)-1]
}

// IsTakeDown says whether a revision did nothing but take down what a TakeDown
// names.
func (v *View) IsTakeDown(revision int64) bool {
	downs := v.TakeDowns(revision - 1)
	i := v.after(revision - 1)
	return len(downs) > 0 && downs[0].Revision == revision &&
		i < len(v.records) && v.records[i].revision == revision && downs[0].wholly(len(v.records[i].changes))
}

// Downed is closed when there is another take-down.
func (v *View) Downed() <-chan struct{} { return v.downed }

// Changed is closed when there is a view with another head, or one that lets
// more pass.
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
	if revision > v.seen || held.Revision < v.base.revision || v.blind || v.lost && revision > v.head().revision {
		return false
	}
	i := v.after(held.Revision)
	// A record may stand for several revisions, of which each may be the one.
	return i == v.after(revision) && (i == len(v.records) || revision <= v.records[i].since)
}

// Lag counts the changes that a node at held has missed of what is served, and
// says when the first of them came. A node without a state, of another epoch or
// from before the log has missed at least what the log holds.
func (v *View) Lag(held Version) (revisions int64, since time.Time) {
	if v.epoch == 0 {
		return 0, time.Time{}
	}
	if held.Epoch != v.epoch || held.Revision < v.base.revision {
		return int64(v.served) + 1, v.base.at
	}
	i := v.after(held.Revision)
	if i >= v.served {
		return 0, time.Time{}
	}
	return int64(v.served - i), v.records[i].at
}

// Since gives what was added to what is served since it was at a version: the
// revisions, and about the bytes.
func (v *View) Since(at Version) (revisions, bytes int64) {
	i := 0
	if at.Epoch == v.epoch {
		i = min(v.after(at.Revision), v.served)
	}
	return int64(v.served - i), v.cum(v.served) - v.cum(i)
}

// HashAt gives the set hash of a version, if the log still knows it.
func (v *View) HashAt(held Version) (link.SetHash, bool) {
	m, ok := v.at(held)
	return m.hash, ok
}

// at gives the state of a version, if the log still knows it.
func (v *View) at(held Version) (mark, bool) {
	switch {
	case v.epoch == 0 || held.Epoch != v.epoch || held.Revision < v.base.revision || held.Revision > v.seen:
		return mark{}, false
	case held.Revision >= v.truth.revision:
		return v.truth, true
	case v.blind:
		return mark{}, false
	}
	i := v.after(held.Revision)
	if v.lost && i == len(v.records) && held.Revision > v.before(i).revision {
		return mark{}, false
	}
	if i < len(v.records) && held.Revision > v.records[i].since {
		return mark{}, false // between the revisions that were read at once
	}
	return v.before(i), true
}

// head is the newest state that is served.
func (v *View) head() mark { return v.before(v.served) }

// live are the records that are served.
func (v *View) live() []*record { return v.records[:v.served] }

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

// append adds a record, and drops the oldest ones where the log would pass limit
// bytes. It is for the writer, on a copy of the newest view only.
func (v *View) append(r *record, limit int64) {
	r.cum = v.cum(len(v.records)) + r.memory
	v.records = append(v.records, r) // older views end before it
	if v.hold == nil {
		v.served = len(v.records)
	}
	if v.logBytes() <= limit {
		return
	}
	// An eighth at a time, so that dropping costs little per record; into a
	// new array, so that what was dropped can be collected. What is held back
	// is not dropped before what is served: it is lost as a whole.
	i := sort.Search(len(v.records), func(i int) bool {
		return r.cum-v.records[i].cum <= limit-limit/8
	})
	if i >= v.served && v.hold != nil {
		v.records, v.lost = slices.Clone(v.live()), true
		return
	}
	v.base, v.dropped = v.records[i].mark, v.records[i].cum
	v.records = slices.Clone(v.records[i+1:])
	v.served -= i + 1
}
