package store

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/affleet/affleet/proto/link"
)

// The guard keeps the promise that the affiliate of a link exists, although
// etcd cannot compare the absence of a million links in one transaction.
//
// guardKey holds the ids of the affiliates that are being deleted, a line
// each; it is put and never deleted, so its revision only grows. holderKey
// exists, under a lease, while somebody deletes: the guard is held while both
// say so.
//
// Who deletes affiliates (1) takes the guard, (2) scans for links that name
// them, (3) deletes them in a transaction that also empties the guard and
// compares that it is still held. Who writes a link with an affiliate reads the
// guard before it looks whether the affiliate exists, and compares the guard's
// revision when it writes; or its transaction compares both itself, that the
// affiliate exists and that there is no holder (affiliatesExist). So a link is
// either written before (1), and (2) finds it, or it sees that the guard is held,
// or its transaction fails because of (1) or (3). A process that dies between (1)
// and (3) has deleted nothing, and the lease ends its hold: from then on (3) would
// fail.
const (
	guardKey  = root + "guard/affiliates"
	holderKey = guardKey + "/holder"
	// holdTTL is how long a hold survives the process, in seconds.
	holdTTL = 60
)

// guard is the guard as it was read.
type guard struct {
	revision int64
	deleting []string // empty unless the guard is held
}

// guardGets reads the guard in a transaction; guardFrom reads their answers.
func guardGets() []clientv3.Op {
	return []clientv3.Op{clientv3.OpGet(guardKey), clientv3.OpGet(holderKey, clientv3.WithCountOnly())}
}

func guardFrom(got *clientv3.TxnResponse, at int) (g guard) {
	kvs := got.Responses[at].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return g
	}
	g.revision = kvs[0].ModRevision
	if got.Responses[at+1].GetResponseRange().Count > 0 && len(kvs[0].Value) > 0 {
		g.deleting = strings.Split(string(kvs[0].Value), "\n")
	}
	return g
}

// hold is a guard that this process holds.
type hold struct {
	revision int64
	lease    clientv3.LeaseID
	renewed  time.Time
	over     bool // letGo has been committed
}

// compares are true in a transaction while the guard is held.
func (h *hold) compares() []clientv3.Cmp {
	return []clientv3.Cmp{
		unchangedSince(guardKey, h.revision),
		clientv3.Compare(clientv3.CreateRevision(holderKey), "=", h.revision),
	}
}

// letGo ends the hold in a transaction.
func (h *hold) letGo() []clientv3.Op {
	return []clientv3.Op{clientv3.OpPut(guardKey, ""), clientv3.OpDelete(holderKey)}
}

// hold takes the guard for ids. It gives nil and no error when somebody else
// holds it or was faster.
func (s *Store) hold(ctx context.Context, ids []string) (*hold, error) {
	call, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	lease, err := s.client.Grant(call, holdTTL)
	if err != nil {
		return nil, s.fail(ctx, "write", err)
	}
	got, err := s.txn(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(holderKey), "=", 0)},
		[]clientv3.Op{
			clientv3.OpPut(guardKey, strings.Join(ids, "\n")),
			clientv3.OpPut(holderKey, "", clientv3.WithLease(lease.ID)),
		}, nil)
	if err != nil || !got.Succeeded {
		s.revoke(ctx, lease.ID)
		return nil, err
	}
	return &hold{revision: got.Header.Revision, lease: lease.ID, renewed: time.Now()}, nil
}

// release ends a hold, whatever became of it, also when ctx is done. An etcd
// that does not answer ends it by itself when the lease runs out.
func (s *Store) release(ctx context.Context, h *hold) {
	if h == nil {
		return
	}
	ctx = context.WithoutCancel(ctx)
	if !h.over {
		_, _ = s.txn(ctx, h.compares(), h.letGo(), nil)
	}
	s.revoke(ctx, h.lease)
}

func (s *Store) revoke(ctx context.Context, lease clientv3.LeaseID) {
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timeout)
	defer cancel()
	_, _ = s.client.Revoke(call, lease)
}

// renew keeps a hold for a long scan. A hold that is lost all the same is
// noticed by the transaction that needs it.
func (s *Store) renew(ctx context.Context, h *hold) {
	if h == nil || time.Since(h.renewed) < holdTTL*time.Second/4 {
		return
	}
	call, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	_, _ = s.client.KeepAliveOnce(call, h.lease)
	h.renewed = time.Now()
}

// linkOf finds the first link that names one of the affiliates, passing over
// those that ignore has: the name and the affiliate, empty if there is none.
// It reads every link.
func (s *Store) linkOf(ctx context.Context, h *hold, ids []string, ignore func(name string) bool) (name, id string, err error) {
	wanted := make([][]byte, len(ids))
	for i, id := range ids {
		wanted[i] = []byte(id)
	}
	scan := s.scan(resources+link.Links.Prefix(), 0)
	for !scan.done {
		kvs, err := scan.next(ctx)
		if err != nil {
			return "", "", err
		}
		s.renew(ctx, h)
		for _, kv := range kvs {
			affiliate := linkAffiliate(recordValue(kv.Value))
			if len(affiliate) == 0 {
				continue
			}
			at := slices.IndexFunc(wanted, func(id []byte) bool { return bytes.Equal(id, affiliate) })
			if at >= 0 && !ignore(string(kv.Key[len(resources):])) {
				return string(kv.Key[len(resources):]), ids[at], nil
			}
		}
	}
	return "", "", nil
}

// existing reads which of at most maxGets affiliates exist, and the guard at
// the same revision.
func (s *Store) existing(ctx context.Context, ids []string) (map[string]bool, guard, error) {
	got, err := s.txn(ctx, nil, existingGets(ids), nil)
	if err != nil {
		return nil, guard{}, err
	}
	found, g := existingFrom(got, 0, ids)
	return found, g, nil
}

// existingGets reads the guard and the affiliates in a transaction; existingFrom
// reads their answers.
func existingGets(ids []string) []clientv3.Op {
	ops := guardGets()
	for _, id := range ids {
		ops = append(ops, clientv3.OpGet(resources+link.Affiliates.Prefix()+id, clientv3.WithCountOnly()))
	}
	return ops
}

func existingFrom(got *clientv3.TxnResponse, at int, ids []string) (map[string]bool, guard) {
	found := make(map[string]bool, len(ids))
	for i, id := range ids {
		found[id] = got.Responses[at+2+i].GetResponseRange().Count > 0
	}
	return found, guardFrom(got, at)
}

// checkAffiliate says why a link may not name an affiliate.
func checkAffiliate(name, id string, exists bool, g guard) error {
	switch {
	case slices.Contains(g.deleting, id):
		return &link.Error{
			Kind: link.FailedPrecondition, Resource: name, Field: "affiliate",
			Message: fmt.Sprintf("affiliate %s is being deleted", id), Hint: "wait for that, or name another one",
		}
	case !exists:
		return &link.Error{
			Kind: link.FailedPrecondition, Resource: name, Field: "affiliate",
			Message: fmt.Sprintf("affiliate %s does not exist", id), Hint: "affctl affiliate create " + id,
		}
	}
	return nil
}

// sortedKeys gives the keys of a set in order.
func sortedKeys[V any](set map[string]V) []string { return slices.Sorted(maps.Keys(set)) }
