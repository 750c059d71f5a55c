package store

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/affleet/affleet/proto/link"
)

// tryKnown is try with what Know gives in place of what is read: one call to
// etcd where there are two. It gives errRaced, and has written nothing, where
// that is not true any more, and where it does not say for certain what is to be
// answered: an error, or that nothing has changed, is only said of what was read.
func (t *transaction) tryKnown(ctx context.Context) ([]Result, int64, error) {
	if !t.know() || t.workOut(t.s.now()) != nil {
		return nil, 0, errRaced
	}
	for i := range t.changes {
		if t.changes[i].outcome == Unchanged {
			return nil, 0, errRaced
		}
	}
	compares := t.affiliatesExist()
	if len(t.changes)+len(compares) > maxGets {
		return nil, 0, errRaced
	}
	return t.commit(ctx, 0, compares, nil)
}

// know takes over what is known of every resource that is written, and says
// whether that is enough: the leases of blocks are not known, and who deletes
// affiliates has to look for their links.
func (t *transaction) know() bool {
	if t.s.known == nil || t.dryRun {
		return false
	}
	for i := range t.changes {
		c := &t.changes[i]
		if c.kind == link.Blocks || c.kind == link.Affiliates && c.Verb == Delete {
			return false
		}
		known, ok := t.s.known(c.name)
		if !ok {
			return false
		}
		c.old = stored{revision: known.Revision, value: known.Value, created: known.Created}
	}
	return true
}

// affiliatesExist are true in a transaction while the affiliates exist that its
// links are to have, and nobody deletes any: see guard.go. Those that it writes
// itself, or that a link has already, need not be looked at.
func (t *transaction) affiliatesExist() (compares []clientv3.Cmp) {
	asked := make(map[string]bool)
	for i := range t.changes {
		c := &t.changes[i]
		id := c.next.GetLink().GetAffiliate()
		if id == "" || asked[id] || id == string(linkAffiliate(c.old.value)) {
			continue
		}
		asked[id] = true
		if name := link.Affiliates.Prefix() + id; !t.writes(name) {
			compares = append(compares, clientv3.Compare(clientv3.CreateRevision(resources+name), ">", 0))
		}
	}
	if len(compares) > 0 {
		compares = append(compares, clientv3.Compare(clientv3.CreateRevision(holderKey), "=", 0))
	}
	return compares
}
