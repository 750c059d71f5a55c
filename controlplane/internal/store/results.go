package store

import (
	"google.golang.org/protobuf/proto"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// inEffectSince gives the revision of a transaction that has nothing to write:
// the newest of its resources, or that of the read when one is known not to
// exist.
func (t *transaction) inEffectSince(read int64) (revision int64) {
	for i := range t.changes {
		if !t.changes[i].old.exists() {
			return read
		}
		revision = max(revision, t.changes[i].old.revision)
	}
	return revision
}

// results answers each write. revision and record are those of the
// transaction; without one, what would be written has none.
func (t *transaction) results(revision int64, record *linkv1.Record) []Result {
	all := make([]Result, len(t.changes))
	for i := range t.changes {
		c := &t.changes[i]
		r := Result{Name: c.name, Outcome: c.outcome}
		switch {
		case c.next == nil:
		case c.outcome == Unchanged:
			old := new(linkv1.Record)
			_ = proto.Unmarshal(c.old.record, old) // was read before
			r.Resource, r.Revision = withReadOnly(c.next, c.old.revision, old), c.old.revision
		case record == nil:
			r.Resource = withReadOnly(c.next, 0, nil)
		default:
			mine := &linkv1.Record{CreateTime: c.old.createTime(record.UpdateTime), UpdateTime: record.UpdateTime, UpdatedBy: record.UpdatedBy}
			r.Resource, r.Revision = withReadOnly(c.next, revision, mine), revision
		}
		all[i] = r
	}
	return all
}

func withReadOnly(r *linkv1.Resource, revision int64, record *linkv1.Record) *linkv1.Resource {
	r = proto.CloneOf(r)
	link.SetReadOnly(r, revision, record)
	return r
}
