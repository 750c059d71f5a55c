package store

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// Field numbers of etcdserverpb that are written by hand: a transaction of an
// import has a hundred compares and puts, and etcd's client makes and copies
// five messages for each. Tests decode them with protobuf alone.
const (
	fieldTxnCompare = 1
	fieldTxnSuccess = 2

	fieldCompareTarget = 2 // its result is EQUAL, which is 0
	fieldCompareKey    = 3
	fieldCompareMod    = 6

	fieldOpPut = 2

	fieldPutKey   = 1
	fieldPutValue = 2
	fieldPutLease = 3

	fieldResponseHeader    = 1
	fieldResponseSucceeded = 2
)

// wireTxn is a serialized pb.TxnRequest of compares and puts.
type wireTxn struct{ bytes []byte }

func newWireTxn(room int) *wireTxn { return &wireTxn{make([]byte, 0, room)} }

// unchanged is unchangedSince.
func (t *wireTxn) unchanged(key string, revision int64) {
	n := 2 + sizeField(len(key)) + 1 + protowire.SizeVarint(uint64(revision)) //nolint:gosec // not negative
	b := protowire.AppendTag(t.bytes, fieldTxnCompare, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(n)) //nolint:gosec // likewise
	b = protowire.AppendTag(b, fieldCompareTarget, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(pb.Compare_MOD))
	b = protowire.AppendTag(b, fieldCompareKey, protowire.BytesType)
	b = protowire.AppendString(b, key)
	// In a oneof: said also when it is 0.
	b = protowire.AppendTag(b, fieldCompareMod, protowire.VarintType)
	t.bytes = protowire.AppendVarint(b, uint64(revision)) //nolint:gosec // likewise
}

// put writes a record.
func (t *wireTxn) put(key string, record *linkv1.Record, lease clientv3.LeaseID) error {
	size := proto.Size(record)
	n := sizeField(len(key)) + sizeField(size)
	if lease != clientv3.NoLease {
		n += 1 + protowire.SizeVarint(uint64(lease)) //nolint:gosec // bits
	}
	b := protowire.AppendTag(t.bytes, fieldTxnSuccess, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(sizeField(n))) //nolint:gosec // not negative
	b = protowire.AppendTag(b, fieldOpPut, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(n)) //nolint:gosec // likewise
	b = protowire.AppendTag(b, fieldPutKey, protowire.BytesType)
	b = protowire.AppendString(b, key)
	b = protowire.AppendTag(b, fieldPutValue, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size)) //nolint:gosec // likewise
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, record)
	if err != nil {
		return err
	}
	if lease != clientv3.NoLease {
		b = protowire.AppendTag(b, fieldPutLease, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(lease)) //nolint:gosec // bits
	}
	t.bytes = b
	return nil
}

// sizeField is the size of a field of n bytes with its tag, which takes one.
func sizeField(n int) int { return 1 + protowire.SizeBytes(n) }

// commit commits a transaction, as txn does. It gives its revision, or 0 if a
// compare was not true.
func (s *Store) commit(ctx context.Context, t *wireTxn) (revision int64, err error) {
	call, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var got wireAnswer
	err = s.client.ActiveConnection().Invoke(call, pb.KV_Txn_FullMethodName, t, &got, grpc.ForceCodecV2(wireCodec{encoding.GetCodecV2(grpcproto.Name)}))
	if err != nil {
		return 0, s.fail(ctx, "write", clientv3.ContextError(call, err))
	}
	return got.revision, nil
}

// wireAnswer is what an import reads of a pb.TxnResponse.
type wireAnswer struct{ revision int64 }

// wireCodec passes a wireTxn through, and reads of its answer no more than a
// wireAnswer.
type wireCodec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c wireCodec) Marshal(v any) (mem.BufferSlice, error) {
	if t, ok := v.(*wireTxn); ok {
		return mem.BufferSlice{mem.SliceBuffer(t.bytes)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c wireCodec) Unmarshal(data mem.BufferSlice, v any) error {
	a, ok := v.(*wireAnswer)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	succeeded := false
	var header pb.ResponseHeader
	for b := data.Materialize(); len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("answer of a transaction: %w", protowire.ParseError(n))
		}
		b = b[n:]
		switch {
		case num == fieldResponseHeader && typ == protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return fmt.Errorf("answer of a transaction: %w", protowire.ParseError(n))
			}
			if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(v, &header); err != nil {
				return fmt.Errorf("answer of a transaction: %w", err)
			}
		case num == fieldResponseSucceeded && typ == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(b)
			succeeded = v != 0
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return fmt.Errorf("answer of a transaction: %w", protowire.ParseError(n))
		}
		b = b[n:]
	}
	if succeeded {
		a.revision = header.GetRevision()
	}
	return nil
}
