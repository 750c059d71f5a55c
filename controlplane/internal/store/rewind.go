package store

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Rewind says that etcd lost what it had: it was restored from a backup. The zero
// value says that it did not.
type Rewind struct {
	Epoch uint64
	// Where etcd was when that was found out.
	Revision int64
	// What is known to have been written and served before.
	Seen int64
}

// Rewind notes, for all replicas and for those that start later, that etcd went
// back in an epoch. It stands until another epoch begins.
func (s *Store) Rewind(ctx context.Context, r Rewind) error {
	_, err := s.txn(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.Value(epochKey), "=", formatEpoch(r.Epoch))},
		[]clientv3.Op{clientv3.OpPut(rewindKey, fmt.Sprintf("%s %d %d", formatEpoch(r.Epoch), r.Revision, r.Seen))}, nil)
	return err
}

// Rewound reads whether etcd went back in an epoch.
func (s *Store) Rewound(ctx context.Context, epoch uint64) (Rewind, error) {
	got, err := s.get(ctx, rewindKey)
	if err != nil || len(got.Kvs) == 0 {
		return Rewind{}, err
	}
	if r := parseRewind(got.Kvs[0]); r.Epoch == epoch {
		return r, nil
	}
	return Rewind{}, nil
}

// parseRewind reads the key of a Rewind. What cannot be read says nothing.
func parseRewind(kv *mvccpb.KeyValue) (r Rewind) {
	if n, err := fmt.Sscanf(string(kv.Value), "%x %d %d", &r.Epoch, &r.Revision, &r.Seen); n != 3 || err != nil {
		return Rewind{}
	}
	return r
}
