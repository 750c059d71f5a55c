package controlplane

import (
	"testing"

	"google.golang.org/protobuf/proto"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

func TestCodecSendsSerializedBytesWithoutACopy(t *testing.T) {
	m := &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Behind{Behind: &feedv1.Behind{Reason: "x"}}}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	c := newCodec()
	raw, err := c.Marshal(rawMessage(b))
	if err != nil || len(raw) != 1 || &raw[0].ReadOnlyData()[0] != &b[0] {
		t.Fatalf("the bytes were copied: %v, %v", raw, err)
	}
	plain, err := c.Marshal(m)
	if err != nil || string(plain.Materialize()) != string(b) {
		t.Fatalf("a message became %v, %v", plain, err)
	}
	var got feedv1.SubscribeResponse
	if err := c.Unmarshal(raw, &got); err != nil || !proto.Equal(m, &got) {
		t.Fatalf("received: %v, %v", &got, err)
	}
	if err := c.Unmarshal(raw, new(rawMessage)); err == nil {
		t.Error("a raw message was received")
	}
}

// BenchmarkMarshalShared is what serializing costs a stream that sends what
// others send too.
func BenchmarkMarshalShared(b *testing.B) {
	c, m := newCodec(), rawMessage(make([]byte, 1<<10))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Marshal(m); err != nil {
			b.Fatal(err)
		}
	}
}
