package feed

import (
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// sized gives a frame of so many bytes, which no node knows.
func sized(t *testing.T, size int) *feedv1.SubscribeResponse {
	t.Helper()
	const head = 6 // the tag and the length of a field
	m := &feedv1.SubscribeResponse{}
	m.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 900, protowire.BytesType), make([]byte, size-head)))
	if n := proto.Size(m); n != size {
		t.Fatalf("a frame has %d bytes, not %d", n, size)
	}
	return m
}

func TestNodeBoundsWhatOneMessageMayBe(t *testing.T) {
	c := startControl(t)
	n := startNode(t, "", c.address)
	p := c.accept()
	s := state{"/a": "https://x.test/a"}
	p.send(sized(t, 8<<20)) // more than gRPC takes by itself
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	_ = p.stream.Send(sized(t, maxMessage+1)) // the stream may end meanwhile
	p = c.accept()
	if log := n.logs.String(); !strings.Contains(log, "ResourceExhausted") {
		t.Errorf("the log does not say why it reconnects: %s", log)
	}
	p.send(s.delta(10, 11, map[string]string{"/b": "https://x.test/b"}))
	p.wantApplied(11)
	wantHolds(t, n.live, 11, s)
}

func TestChunkThatUnpacksToTooMuchIsRejected(t *testing.T) {
	c := startControl(t)
	n := startNode(t, "", c.address)
	p := c.accept()
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
	bomb := s.snapshot(10)
	bomb[2].GetSnapshotChunk().Compressed = s2.Encode(nil, make([]byte, maxDecompressed+1))
	p.send(bomb...)
	if r := p.wantRejected(feedv1.RejectCode_REJECT_CODE_BAD_FRAME); !strings.Contains(r.GetReason(), "are more than") {
		t.Errorf("the reason is %q", r.GetReason())
	}
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	wantHolds(t, n.live, 10, s)
}
