package controlplane

import "github.com/affleet/affleet/controlplane/internal/snapshot"

// span are the take-downs of an epoch after one revision and up to another.
type span struct {
	epoch       uint64
	after, upTo int64
}

// has says whether a take-down is one of these.
func (s span) has(epoch uint64, revision int64) bool {
	return s.epoch == epoch && s.after < revision && revision <= s.upTo
}

// downs are the take-downs that a node was sent. What comes before them it learns, or
// has learned, from its versions.
type downs struct {
	span
	// Answers that are due, and those of them that say nothing any more: the node has
	// not taken a version since, from which it was to learn what came before.
	pending, stale int
}

// begin goes on behind what the node learns from a version, where that is further.
func (d *downs) begin(epoch uint64, learns int64) {
	if d.epoch != epoch {
		d.stale = d.pending
	} else if learns <= d.upTo {
		return
	}
	d.span = span{epoch, learns, learns}
}

// sent notes the next one.
func (d *downs) sent(t *snapshot.TakeDown) {
	d.upTo = t.Revision
	d.pending++
}

// answered gives what the node refuses by now, which has told that it has taken in all
// up to a version; ok is false where that says nothing.
func (d *downs) answered(v snapshot.Version) (refused span, ok bool) {
	d.pending = max(d.pending-1, 0)
	if d.stale > 0 {
		d.stale--
		return span{}, false
	}
	return span{v.Epoch, d.after, v.Revision}, v.Epoch == d.epoch
}

// rejected makes all be sent again that came behind what the node holds.
func (d *downs) rejected(held snapshot.Version) {
	d.span = span{held.Epoch, held.Revision, held.Revision}
	d.stale = d.pending
}
