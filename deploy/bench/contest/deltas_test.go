package contest

import (
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// nodeEnd is a node's end of a stream of deltas.
type nodeEnd struct {
	t      *testing.T
	stream grpc.BidiStreamingClient[feedv1.SubscribeRequest, feedv1.SubscribeResponse]
}

func (n *nodeEnd) send(m *feedv1.SubscribeRequest) {
	n.t.Helper()
	if err := n.stream.Send(m); err != nil {
		n.t.Fatal(err)
	}
}

// delta gives the next one.
func (n *nodeEnd) delta() *feedv1.Delta {
	n.t.Helper()
	for {
		m, err := n.stream.Recv()
		if err != nil {
			n.t.Fatal(err)
		}
		if d := m.GetDelta(); d != nil {
			return d
		}
	}
}

func subscribe(t *testing.T, d *deltas, hello *feedv1.Hello) *nodeEnd {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close() // who was there before
	stop, err := d.listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	stream, err := feedv1.NewFeedServiceClient(conn).Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := &nodeEnd{t, stream}
	n.send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: hello}})
	return n
}

func TestDeltasAreWhatANodeHasToTake(t *testing.T) {
	const links, entries = 3, 5
	d := newDeltas("node-0", links, entries)
	held, hash := &linkv1.Version{Epoch: 7, Revision: 100}, link.SetHash{Hi: 1, Lo: 2}
	n := subscribe(t, d, &feedv1.Hello{Node: "node-0", Version: held, SetHash: &feedv1.SetHash{Hi: hash.Hi, Lo: hash.Lo}})
	const pace = 10_000
	if applied, err := d.set(pace); applied != 0 || err != nil {
		t.Fatalf("%d are applied, %v", applied, err)
	}
	begin := time.Now()
	const count = 4*links + 1
	values := map[string][]byte{}
	for i := range count {
		got := n.delta()
		if !proto.Equal(got.GetFrom(), held) || got.GetTo().GetEpoch() != 7 || got.GetTo().GetRevision() != held.GetRevision()+1 || len(got.GetPuts()) != 1 {
			t.Fatalf("delta %d is %v behind %v", i, got, held)
		}
		put := got.GetPuts()[0]
		if old, ok := values[put.GetKey()]; ok {
			if string(old) == string(put.GetValue()) {
				t.Fatalf("delta %d changes nothing", i)
			}
			hash = hash.Sub(link.HashEntry([]byte(put.GetKey()), old))
		}
		values[put.GetKey()] = put.GetValue()
		hash = hash.Add(link.HashEntry([]byte(put.GetKey()), put.GetValue()))
		if _, err := link.Compile(put.GetValue()); err != nil {
			t.Fatalf("delta %d: %v", i, err)
		}
		if got.GetSetHash().GetHi() != hash.Hi || got.GetSetHash().GetLo() != hash.Lo || got.GetEntries() != int64(entries+len(values)) {
			t.Fatalf("delta %d: set hash or %d entries are wrong", i, got.GetEntries())
		}
		held = got.GetTo()
		if i < count-1 {
			n.send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Status{Status: &feedv1.Status{}}})
			n.send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Applied{Applied: &feedv1.Applied{Version: held}}})
		}
	}
	if took := time.Since(begin); len(values) != links || took < (count-1)*time.Second/pace {
		t.Errorf("%d links are edited; it took %v", len(values), took)
	}
	n.send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Rejected{Rejected: &feedv1.Rejected{Reason: "too bad"}}})
	if _, err := n.stream.Recv(); err == nil {
		t.Error("the stream goes on behind a rejection")
	}
	if applied, err := d.set(0); applied != count-1 || err == nil || !strings.Contains(err.Error(), "too bad") {
		t.Errorf("%d are applied, %v", applied, err)
	}
}

func TestDeltasAreForOneNodeThatHoldsSomething(t *testing.T) {
	d := newDeltas("node-0", 1, 1)
	for _, hello := range []*feedv1.Hello{{Node: "node-1", Version: &linkv1.Version{Epoch: 7, Revision: 1}}, {Node: "node-0"}} {
		if m, err := subscribe(t, d, hello).stream.Recv(); err == nil {
			t.Errorf("%v is sent %v", hello, m)
		}
	}
}
