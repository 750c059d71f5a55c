// Package store keeps the resources of the fleet in etcd: every write is a
// compare-and-swap transaction, every read of many keys shows one revision.
// It knows nothing of gRPC, of nodes or of what a link does; whoever needs to
// serve links subscribes to the feed instead of reading here.
//
// Keys, all under /aff/v1/:
//
//	r/<name>                  a linkv1.Record, for every resource
//	epoch                     16 hexadecimal digits, written once, and anew by
//	                          an operator after a restore
//	epochs/<epoch>            epochs before that
//	release                   what an operator has released: epoch, revision
//	release/write             put by writes that release themselves: epoch
//	held                      what a replica holds back: epoch, revision
//	rewind                    that etcd was restored from a backup: epoch, the
//	                          revision that it had then, and the one it had before
//	touch                     put for nothing but a new revision
//	replicas/<id>             see package replica
//	guard/affiliates          see guard.go
//	guard/affiliates/holder   see guard.go
//
// A Store holds no state but its client; what others hold it may be told of (Know).
// All methods may be called from any goroutine; each call to etcd has a deadline of
// its own, so that an etcd that is down is an error of kind Unavailable after a few
// seconds. Errors are *link.Error, joins of them, or the context's.
package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

const (
	root      = "/aff/v1/"
	resources = root + "r/"
	epochKey  = root + "epoch"

	pastEpochs   = root + "epochs/"
	releaseKey   = root + "release"
	releaseWrite = releaseKey + "/write"
	heldKey      = root + "held"
	rewindKey    = root + "rewind"
	touchKey     = root + "touch"
)

// Replicas is what the keys begin with of which each names a replica.
const Replicas = root + "replicas/"

// Store reads and writes resources.
type Store struct {
	client   *clientv3.Client
	now      func() time.Time
	timeout  time.Duration // of one call to etcd
	patience time.Duration // of one write that others keep racing
	limit    limit
	known    func(name string) (Known, bool)
}

// New makes a store of a client, which stays the caller's to close.
func New(client *clientv3.Client) *Store {
	return &Store{client: client, now: time.Now, timeout: 5 * time.Second, patience: 15 * time.Second}
}

// Known is what somebody who follows the store holds of a resource. The zero
// value: it does not exist.
type Known struct {
	Value    []byte // as Object.Value
	Revision int64  // of its last write
	Created  time.Time
}

// Know lets writes begin with what f holds, and spare themselves the reading. f
// may be behind: a write that was worked out from what is not true any more is
// not made, but reads and tries again. f is called from any goroutine, and gives
// false where it knows nothing. Know is called before anything is written.
func (s *Store) Know(f func(name string) (Known, bool)) { s.known = f }

// LimitEntries makes the store write no resource of which the name and the value
// take more bytes; 0: no limit. It is called before anything is written.
func (s *Store) LimitEntries(bytes int) { s.limit = limit(bytes) }

// limit is the most bytes of the name and the value of a resource that is
// written; 0: any.
type limit int

// check says whether a resource may be written. What takes something down is
// written whatever it takes: it must not be kept from that by a setting.
func (l limit) check(name string, value []byte, r *linkv1.Resource) error {
	n := len(name) + len(value)
	if l <= 0 || n <= int(l) || r.GetLink().GetDisabled() ||
		r.GetAffiliate().GetState() == linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED {
		return nil
	}
	return &link.Error{
		Kind: link.Invalid, Resource: name, Message: fmt.Sprintf("takes %d bytes, and at most %d are allowed by --max-entry-bytes", n, l),
		Hint: "make it smaller, or raise --max-entry-bytes of every affnode and then of every affcontrol",
	}
}

// Object is a resource as it is stored. Its bytes must not be changed; they
// keep the whole record in memory, so whoever keeps them for long and cares
// for those few bytes clones them.
type Object struct {
	Name     string
	Value    []byte // the serialized linkv1.Resource, without read-only fields
	Revision int64  // of its last write
	record   []byte
}

// Resource decodes the object, with its read-only fields.
func (o *Object) Resource() (*linkv1.Resource, error) {
	r, err := link.Unmarshal(o.Name, o.Value)
	if err != nil {
		return nil, &link.Error{Kind: link.Internal, Resource: o.Name, Message: "is stored in a form that cannot be read", Err: err}
	}
	record := new(linkv1.Record)
	if err := proto.Unmarshal(o.record, record); err != nil {
		return nil, &link.Error{Kind: link.Internal, Resource: o.Name, Message: "is stored in a form that cannot be read", Err: err}
	}
	link.SetReadOnly(r, o.Revision, record)
	return r, nil
}

// Created is when the resource was created; the zero time when its record does
// not say so.
func (o *Object) Created() time.Time {
	if t := recordCreated(o.record); t != nil {
		return t.AsTime()
	}
	return time.Time{}
}

// object reads a key below r/. A record that cannot be read has no value.
func object(kv *mvccpb.KeyValue) Object {
	return Object{
		Name:     string(kv.Key[len(resources):]),
		Value:    recordValue(kv.Value),
		Revision: kv.ModRevision,
		record:   kv.Value,
	}
}

// recordValue finds Record.resource in a serialized Record without copying
// it: nil if there is none.
func recordValue(record []byte) []byte {
	return field(record, 1)
}

// field gives the last occurrence of a field of bytes in a message: nil if
// there is none or the message is damaged.
func field(message []byte, number protowire.Number) (value []byte) {
	for len(message) > 0 {
		num, typ, n := protowire.ConsumeTag(message)
		if n < 0 {
			return nil
		}
		message = message[n:]
		if num == number && typ == protowire.BytesType {
			v, n := protowire.ConsumeBytes(message)
			if n < 0 {
				return nil
			}
			value, message = v, message[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, message); n < 0 {
			return nil
		}
		message = message[n:]
	}
	return value
}

// linkAffiliate gives the affiliate that a serialized resource names, if it is
// a link and names one.
func linkAffiliate(value []byte) []byte {
	return field(field(value, 1), 4)
}

// Get reads one resource, linearizably, and gives the revision that was read.
func (s *Store) Get(ctx context.Context, name string) (*Object, int64, error) {
	if _, _, err := link.ParseName(name); err != nil {
		return nil, 0, err
	}
	got, err := s.get(ctx, resources+name)
	if err != nil {
		return nil, 0, err
	}
	if len(got.Kvs) == 0 {
		return nil, got.Header.Revision, notFound(name)
	}
	o := object(got.Kvs[0])
	return &o, got.Header.Revision, nil
}

// Revision gives etcd's current revision, linearizably.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	got, err := s.get(ctx, epochKey, clientv3.WithKeysOnly())
	if err != nil {
		return 0, err
	}
	return got.Header.Revision, nil
}

func (s *Store) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	call, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	got, err := s.client.Get(call, key, opts...)
	if err != nil {
		return nil, s.fail(ctx, "read", err)
	}
	return got, nil
}

// txn commits one transaction. With no puts or deletes in it, it is only a
// read.
func (s *Store) txn(ctx context.Context, compare []clientv3.Cmp, then, otherwise []clientv3.Op) (*clientv3.TxnResponse, error) {
	call, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	got, err := s.client.Txn(call).If(compare...).Then(then...).Else(otherwise...).Commit()
	if err != nil {
		what := "read"
		if slices.ContainsFunc(then, func(op clientv3.Op) bool { return !op.IsGet() }) {
			what = "write"
		}
		return nil, s.fail(ctx, what, err)
	}
	return got, nil
}

// stored is a key as a transaction read it; revision 0: it does not exist.
type stored struct {
	revision int64
	record   []byte
	value    []byte
	lease    clientv3.LeaseID // 0: none
	created  time.Time        // where it is known without the record
}

func (s stored) exists() bool { return s.revision != 0 }

// storedFrom reads the answer to a get of one key.
func storedFrom(kvs []*mvccpb.KeyValue) stored {
	if len(kvs) == 0 {
		return stored{}
	}
	return stored{
		revision: kvs[0].ModRevision, record: kvs[0].Value, value: recordValue(kvs[0].Value),
		lease: clientv3.LeaseID(kvs[0].Lease),
	}
}

// createTime gives the time of creation; now if there is none.
func (s stored) createTime(now *timestamppb.Timestamp) *timestamppb.Timestamp {
	if !s.created.IsZero() {
		return timestamppb.New(s.created)
	}
	if t := recordCreated(s.record); t != nil {
		return t
	}
	return now
}

// recordCreated gives the time of creation that a serialized Record has; nil if
// it has none.
func recordCreated(record []byte) *timestamppb.Timestamp {
	b := field(record, 2)
	t := new(timestamppb.Timestamp)
	if b == nil || proto.Unmarshal(b, t) != nil {
		return nil
	}
	return t
}

// unchangedSince is true in a transaction while the key is as it was read.
func unchangedSince(key string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", revision)
}
