package store

import (
	"context"
	"errors"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/affleet/affleet/proto/link"
)

// guard sees to it that every link's affiliate exists after the transaction,
// and gives what the transaction has to compare and do for that.
func (t *transaction) guard(ctx context.Context) (compares []clientv3.Cmp, ops []clientv3.Op, err error) {
	deleted := t.deletedAffiliates()
	if len(deleted) > 0 && !t.dryRun && t.held == nil {
		if t.held, err = t.s.hold(ctx, deleted); err != nil {
			return nil, nil, err
		}
		t.waits = t.held == nil
		return nil, nil, errRaced // read again what the hold now protects
	}
	if t.held != nil && len(deleted) > 0 {
		compares, ops = t.held.compares(), t.held.letGo()
	}
	if len(deleted) > 0 {
		name, id, err := t.s.linkOf(ctx, t.held, deleted, t.writes)
		if err != nil {
			return nil, nil, err
		}
		if name != "" {
			return nil, nil, &link.Error{
				Kind: link.FailedPrecondition, Resource: link.Affiliates.Prefix() + id,
				Message: "is the affiliate of " + name, Hint: "affctl link list --affiliate " + id,
			}
		}
	}
	revision, err := t.checkAffiliates(ctx, deleted)
	if err == nil && revision != nil && len(compares) == 0 {
		compares = append(compares, unchangedSince(guardKey, *revision))
	}
	return compares, ops, err
}

// writes says whether the transaction writes a resource.
func (t *transaction) writes(name string) bool {
	_, ok := t.index[name]
	return ok
}

// deletedAffiliates gives the ids of the affiliates that exist and are deleted.
func (t *transaction) deletedAffiliates() (ids []string) {
	for i := range t.changes {
		if c := &t.changes[i]; c.kind == link.Affiliates && c.outcome == Deleted {
			ids = append(ids, c.name[len(link.Affiliates.Prefix()):])
		}
	}
	return ids
}

// checkAffiliates checks that the affiliates of all links that are written
// exist after the transaction. It gives the guard's revision if that was
// relied on.
//
// A link that keeps its affiliate needs neither: the transaction compares that the
// link is as it was read, so that whoever deletes the affiliate finds it there.
func (t *transaction) checkAffiliates(ctx context.Context, deleted []string) (*int64, error) {
	ask := make(map[string]bool)
	for i := range t.changes {
		c := &t.changes[i]
		id := c.next.GetLink().GetAffiliate()
		if id == "" || c.outcome == Unchanged && len(deleted) == 0 {
			continue
		}
		at, written := t.index[link.Affiliates.Prefix()+id]
		if written && t.changes[at].Verb == Delete || !written && id != string(linkAffiliate(c.old.value)) {
			ask[id] = true
		}
	}
	if len(ask) == 0 {
		return nil, nil
	}
	exists, g, err := t.existing(ctx, ask)
	if err != nil {
		return nil, err
	}
	if t.held != nil && g.revision == t.held.revision {
		g.deleting = nil // by this transaction: see deleted
	}
	var problems []error
	for i := range t.changes {
		c := &t.changes[i]
		if id := c.next.GetLink().GetAffiliate(); ask[id] {
			ok := exists[id] && !slices.Contains(deleted, id)
			if err := checkAffiliate(c.name, id, ok, g); err != nil {
				problems = append(problems, err)
			}
		}
	}
	return &g.revision, errors.Join(problems...)
}

// namedAffiliates are those that the writes say, and not what is stored.
func (t *transaction) namedAffiliates() []string {
	named := make(map[string]bool)
	for i := range t.changes {
		if id := t.changes[i].Resource.GetLink().GetAffiliate(); id != "" {
			named[id] = true
		}
	}
	return sortedKeys(named)
}

// existing is the store's, of what was read already where that has all.
func (t *transaction) existing(ctx context.Context, ids map[string]bool) (map[string]bool, guard, error) {
	for id := range ids {
		if _, known := t.affiliates[id]; !known {
			return t.s.existing(ctx, sortedKeys(ids))
		}
	}
	return t.affiliates, t.guarded, nil
}
