package controlplane

import (
	"testing"

	"google.golang.org/protobuf/proto"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// requests are what nodes say, and whether that is an Applied as this release
// writes it.
func requests(t testing.TB) (messages [][]byte, applied []bool) {
	add := func(is bool, m *feedv1.SubscribeRequest, more ...byte) {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		messages, applied = append(messages, append(b, more...)), append(applied, is)
	}
	answer := func(a *feedv1.Applied) *feedv1.SubscribeRequest {
		return &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Applied{Applied: a}}
	}
	version, hash := &linkv1.Version{Epoch: 1 << 63, Revision: 1 << 40}, &feedv1.SetHash{Hi: 1, Lo: 1 << 62}
	add(true, answer(&feedv1.Applied{Version: version, SetHash: hash, Links: 1_000_000}))
	add(true, answer(&feedv1.Applied{Version: &linkv1.Version{Revision: -1}, SetHash: &feedv1.SetHash{Lo: 7}}))
	add(true, answer(&feedv1.Applied{Version: &linkv1.Version{Epoch: 5}, SetHash: &feedv1.SetHash{}, Links: -3}))
	add(true, answer(&feedv1.Applied{}))
	newer := &feedv1.Applied{Version: version}
	newer.ProtoReflect().SetUnknown([]byte{9 << 3, 1})
	add(false, answer(newer))
	add(false, answer(&feedv1.Applied{Links: 2}), 9<<3, 1)                             // a field of a newer release behind it
	add(false, answer(&feedv1.Applied{Links: 2}), tagRequestApplied, 2, 3<<3, 4)       // once more: what is said last counts
	add(false, answer(&feedv1.Applied{Version: version, Links: 2}), tagRequestApplied) // torn
	add(false, &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Status{Status: &feedv1.Status{Version: version, SetHash: hash}}})
	add(false, &feedv1.SubscribeRequest{})
	return messages, applied
}

func TestAppliedIsReadByHandAsProtobufReadsIt(t *testing.T) {
	messages, applied := requests(t)
	for i, b := range messages {
		if readsAs(t, b) != applied[i] {
			t.Errorf("message %d, %x: read by hand: %v", i, b, !applied[i])
		}
	}
}

// readsAs says whether a message is read by hand, and fails if protobuf reads it
// otherwise.
func readsAs(t *testing.T, b []byte) bool {
	var got, want feedv1.SubscribeRequest
	if !readApplied(b, &got) {
		if got.Message != nil {
			t.Errorf("%x: not read, and yet %v", b, &got)
		}
		return false
	}
	if err := proto.Unmarshal(b, &want); err != nil || !proto.Equal(&got, &want) {
		t.Errorf("%x: read as %v, by protobuf as %v, %v", b, &got, &want, err)
	}
	return true
}

func FuzzApplied(f *testing.F) {
	messages, _ := requests(f)
	for _, b := range messages {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { readsAs(t, b) })
}

// BenchmarkApplied is what decoding one takes, by hand and by protobuf.
func BenchmarkApplied(b *testing.B) {
	messages, _ := requests(b)
	b.Run("by hand", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if m := new(feedv1.SubscribeRequest); !readApplied(messages[0], m) {
				b.Fatal("not read")
			}
		}
	})
	b.Run("by protobuf", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := proto.Unmarshal(messages[0], new(feedv1.SubscribeRequest)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
