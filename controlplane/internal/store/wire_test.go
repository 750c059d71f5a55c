package store

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

func TestWireTxnIsATransactionOfEtcd(t *testing.T) {
	record := &linkv1.Record{Resource: []byte("value"), UpdateTime: timestamppb.Now(), UpdatedBy: "who"}
	value, err := proto.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	unchanged := func(key string, revision int64) *pb.Compare {
		return &pb.Compare{Result: pb.Compare_EQUAL, Target: pb.Compare_MOD, Key: []byte(key), TargetUnion: &pb.Compare_ModRevision{ModRevision: revision}}
	}
	put := func(key string, lease int64) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: value, Lease: lease}}}
	}
	want := &pb.TxnRequest{
		Compare: []*pb.Compare{unchanged("a", 0), unchanged("b", 1<<40), unchanged(guardKey, 7)},
		Success: []*pb.RequestOp{put("a", 0), put("b", 1<<62)},
	}
	w := newWireTxn(0)
	w.unchanged("a", 0)
	err1 := w.put("a", record, 0)
	w.unchanged("b", 1<<40)
	err2 := w.put("b", record, 1<<62)
	w.unchanged(guardKey, 7)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	got := new(pb.TxnRequest)
	if err := proto.Unmarshal(w.bytes, got); err != nil || !proto.Equal(got, want) {
		t.Errorf("%v: got\n%v\nwant\n%v", err, got, want)
	}
}

// FuzzWireAnswer proves that an answer is read as protobuf reads it.
func FuzzWireAnswer(f *testing.F) {
	for _, a := range []*pb.TxnResponse{
		{},
		{Succeeded: true},
		{Header: &pb.ResponseHeader{Revision: 5, ClusterId: 1 << 63}},
		{Succeeded: true, Header: &pb.ResponseHeader{Revision: 5}, Responses: []*pb.ResponseOp{{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}}}},
	} {
		b, err := proto.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	codec := wireCodec{encoding.GetCodecV2(grpcproto.Name)}
	f.Fuzz(func(t *testing.T, b []byte) {
		want := new(pb.TxnResponse)
		if proto.Unmarshal(b, want) != nil {
			_ = codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, new(wireAnswer)) // it may read less, and does not panic
			return
		}
		revision := int64(0)
		if want.GetSucceeded() {
			revision = want.GetHeader().GetRevision()
		}
		got := new(wireAnswer)
		if err := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, got); err != nil || got.revision != revision {
			t.Fatalf("%v: got revision %d, want %d", err, got.revision, revision)
		}
	})
}
