package store

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// A block with a ttl is held by a lease: when that ends etcd deletes the block,
// at a revision like any other. Its end is also in the block, as expire_time,
// because nodes keep to it while they hear of nothing.
//
// A lease is granted for one transaction, and holds those of its blocks that end
// in the same second; later only a write of one of them that keeps its end uses
// it. So 100,000 blocks of a list that is imported are held by a thousand
// leases, and one that holds nothing after a transaction will hold nothing ever:
// it can be revoked.

// clockSkew is by how much the clocks of two replicas may differ, for an end that
// one has worked out and another is given.
const clockSkew = time.Minute

// due works out when a block ends: ttl from now on, or when it says, if it was
// read before and is written back. It gives the resource with that end, and r
// itself where it has none to work out.
func due(r *linkv1.Resource, old stored, now time.Time) (*linkv1.Resource, error) {
	b := r.GetBlock()
	if b.GetTtl() == nil {
		return r, nil
	}
	end := now.Add(b.GetTtl().AsDuration() + time.Second - 1).Truncate(time.Second)
	if given := b.GetExpireTime(); given != nil && !anotherTTL(b, old) {
		refused := &link.Error{Kind: link.Invalid, Resource: link.Blocks.Prefix() + b.GetId(), Field: "expire_time", Hint: "leave it out: then it is ttl from now"}
		switch at := given.AsTime(); {
		case !at.After(now):
			refused.Message = "is over since " + at.UTC().Format(time.RFC3339)
			return nil, refused
		case at.After(end.Add(clockSkew)):
			refused.Message = "is later than ttl from now, " + end.UTC().Format(time.RFC3339)
			return nil, refused
		}
		return r, nil
	}
	r = proto.CloneOf(r)
	r.GetBlock().ExpireTime = timestamppb.New(end)
	return r, nil
}

// anotherTTL says whether a block is what is stored with another ttl, so that
// its end is that of the old one.
func anotherTTL(b *linkv1.Block, old stored) bool {
	was := blockOf(old.value)
	return was.GetTtl() != nil && was.GetExpireTime().AsTime().Equal(b.GetExpireTime().AsTime()) &&
		was.GetTtl().GetSeconds() != b.GetTtl().GetSeconds()
}

// blockOf reads a stored block; nil if it is none.
func blockOf(value []byte) *linkv1.Block {
	if len(value) == 0 {
		return nil
	}
	r := new(linkv1.Resource)
	if proto.Unmarshal(value, r) != nil {
		return nil
	}
	return r.GetBlock()
}

// leases are those of one attempt at a transaction.
type leases struct {
	s       *Store
	granted map[time.Time]clientv3.LeaseID
	left    map[clientv3.LeaseID]bool // from which a block is taken
}

// put is the operation that writes a record; end is the block's, nil for what
// has none.
func (l *leases) put(ctx context.Context, key, record string, old stored, end *timestamppb.Timestamp) (clientv3.Op, error) {
	id, err := l.lease(ctx, old, end)
	if err != nil {
		return clientv3.Op{}, err
	}
	return clientv3.OpPut(key, record, clientv3.WithLease(id)), nil
}

// lease gives the lease that a record is to have, 0 for none; end is as for put.
func (l *leases) lease(ctx context.Context, old stored, end *timestamppb.Timestamp) (clientv3.LeaseID, error) {
	if end == nil {
		l.leave(old)
		return clientv3.NoLease, nil
	}
	at := end.AsTime()
	if was := blockOf(old.value); old.lease != 0 && was.GetExpireTime().AsTime().Equal(at) {
		return old.lease, nil
	}
	l.leave(old)
	id, ok := l.granted[at]
	if !ok {
		call, cancel := context.WithTimeout(ctx, l.s.timeout)
		defer cancel()
		left := int64((at.Sub(l.s.now()) + time.Second - 1) / time.Second)
		lease, err := l.s.client.Grant(call, max(left, 1))
		if err != nil {
			return 0, l.s.fail(ctx, "write", err)
		}
		if l.granted == nil {
			l.granted = make(map[time.Time]clientv3.LeaseID)
		}
		id = lease.ID
		l.granted[at] = id
	}
	return id, nil
}

// leave notes that what is stored loses its lease, if it has one.
func (l *leases) leave(old stored) {
	if old.lease == 0 {
		return
	}
	if l.left == nil {
		l.left = make(map[clientv3.LeaseID]bool)
	}
	l.left[old.lease] = true
}

// done gives back the leases that hold nothing after the attempt: those that
// were granted for one that failed, and those that one that succeeded took the
// last block from. When nobody knows whether it was written, they stay, and
// end by themselves.
func (l *leases) done(ctx context.Context, succeeded bool, err error) {
	switch {
	case succeeded:
		for id := range l.left {
			if l.empty(ctx, id) {
				l.s.revoke(ctx, id)
			}
		}
	case err == nil || !unknown(err):
		for _, id := range l.granted {
			l.s.revoke(ctx, id)
		}
	}
}

// unknown says whether a transaction that failed may have been written.
func unknown(err error) bool {
	e, ok := errors.AsType[*link.Error](err)
	return !ok || e.Kind == link.Unavailable
}

func (l *leases) empty(ctx context.Context, id clientv3.LeaseID) bool {
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.s.timeout)
	defer cancel()
	got, err := l.s.client.TimeToLive(call, id, clientv3.WithAttachedKeys())
	return err == nil && len(got.Keys) == 0
}

// leaseGone says whether a transaction failed because a lease that it would have
// kept has ended, and the block with it: read again.
func leaseGone(err error) bool { return errors.Is(err, rpctypes.ErrLeaseNotFound) }
