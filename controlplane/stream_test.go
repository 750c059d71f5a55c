package controlplane

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/controlplane/internal/snapshot"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// lastWords is a stream that is gone the moment it has said something.
type lastWords struct{ *pipe }

func (s lastWords) Recv() (*feedv1.SubscribeRequest, error) {
	s.cancel()
	return &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: &feedv1.Hello{Node: "n", Region: "r"}}}, nil
}

func TestStreamThatIsGoneIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := snapshot.New(&source{timeline: newTimeline(1)}, snapshot.Config{})
		f := newFeed(log, newFleet(log, fleetConfig{}), feedConfig{})
		in := receiveFrom(lastWords{newPipe(t.Context(), f)})
		synctest.Wait() // nobody was there to take its words
		start := time.Now()
		_, err := f.hello(in)
		if status.Code(err) != codes.Canceled || time.Since(start) != 0 {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

func TestStreamBeginsWithTheHeadThatTheNodeHasToReach(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	v := r.write(map[string]string{"/one": dest(1)})
	waitHead(t, r, v)
	m, err := newNode(t, "n1", "eu").connect(r).stream.Recv()
	if err != nil || m.GetHeartbeat().GetHead().GetRevision() != v.GetRevision() {
		t.Fatalf("the first message is %v, %v; want the head %v", m, err, v)
	}
}

func TestReplicaSendsAwayANodeThatIsAhead(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	v := r.write(map[string]string{"/one": dest(1)})
	for _, held := range []*linkv1.Version{{Epoch: v.GetEpoch(), Revision: v.GetRevision() + 1000}, {Epoch: v.GetEpoch() + 1, Revision: 1}} {
		n := newNode(t, "n1", "eu")
		n.hello.Version = held
		n.connect(r)
		if kind, _ := n.take(); kind != "behind" {
			t.Fatalf("a node at %v got a %s", held, kind)
		}
		if err := n.ends(); !errors.Is(err, io.EOF) {
			t.Fatalf("the stream ended with %v", err)
		}
	}
}

func TestNodesThatAreSentAwayAreLoggedOnceAMinute(t *testing.T) {
	f, now := new(feed), time.Now()
	if !f.tellBehind(now) {
		t.Error("the first one is not logged")
	}
	if f.tellBehind(now) || f.tellBehind(now.Add(59*time.Second)) {
		t.Error("the next ones are logged too")
	}
	if !f.tellBehind(now.Add(61 * time.Second)) {
		t.Error("after a minute it is not logged again")
	}
}

func TestWrongAnswersEndTheStream(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	hello := func(h *feedv1.Hello) *feedv1.SubscribeRequest {
		return &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: h}}
	}
	applied := &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Applied{Applied: &feedv1.Applied{Version: &linkv1.Version{Revision: 1 << 40}}}}
	for name, said := range map[string][]*feedv1.SubscribeRequest{
		"no hello":      {applied},
		"no name":       {hello(&feedv1.Hello{Region: "r"})},
		"bad name":      {hello(&feedv1.Hello{Node: "a/b", Region: "r"})},
		"long region":   {hello(&feedv1.Hello{Node: "a", Region: strings.Repeat("r", 129)})},
		"two hellos":    {hello(&feedv1.Hello{Node: "a", Region: "r"}), hello(&feedv1.Hello{Node: "a", Region: "r"})},
		"wrong version": {hello(&feedv1.Hello{Node: "a", Region: "r"}), applied},
	} {
		stream, err := feedv1.NewFeedServiceClient(r.conn).Subscribe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range said {
			if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		if err := (&testNode{t: t, stream: stream}).ends(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: the stream ended with %v", name, err)
		}
	}
}

func TestStreamThatSaysNothingOrTooMuchIsEnded(t *testing.T) {
	r := startReplicaWith(t, etcdtest.Start(t), "a", feedConfig{HelloTimeout: 20 * time.Millisecond})
	stream, err := feedv1.NewFeedServiceClient(r.conn).Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := (&testNode{t: t, stream: stream}).ends(); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a stream without Hello ended with %v", err)
	}
	// Nothing is wrong with these messages but the size of one.
	said := func(size int) *feedv1.SubscribeRequest {
		m := &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Status{Status: &feedv1.Status{}}}
		m.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 900, protowire.BytesType), make([]byte, size-7)))
		if n := proto.Size(m); n != size {
			t.Fatalf("a message has %d bytes, not %d", n, size)
		}
		return m
	}
	v := r.write(map[string]string{"/one": dest(1)})
	n := newNode(t, "n1", "eu").connect(r).until(v)
	n.say(said(maxNodeMessage))
	n.until(r.write(map[string]string{"/one": dest(2)}))
	n.say(said(maxNodeMessage + 1))
	defer time.AfterFunc(patience, n.cancel).Stop()
	if err := n.ends(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "at most 65536 are allowed") {
		t.Errorf("after a message that is too large the stream ended with %v", err)
	}
}

func TestNewerStreamOfTheSameNodeWins(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	v := r.write(map[string]string{"/one": dest(1)})
	old := newNode(t, "n1", "eu").connect(r).until(v)
	newNode(t, "n1", "eu").connect(r).until(v)
	if err := old.ends(); status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "--node") {
		t.Fatalf("the older stream ended with %v", err)
	}
	list, err := r.fleet.ListNodes(t.Context(), &adminv1.ListNodesRequest{})
	if err != nil || len(list.GetNodes()) != 1 {
		t.Fatalf("%d nodes are listed, %v", len(list.GetNodes()), err)
	}
}

func TestStalledStreamDelaysNobodyAndCatchesUpInOneFrame(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	v := r.write(map[string]string{"/one": dest(1)})
	slow := newNode(t, "slow", "eu").connect(r).until(v)
	quick := newNode(t, "quick", "eu").connect(r).until(v)
	// Much more than a flow-control window goes to the slow one, which does not
	// read it: its stream stalls in the middle of a frame.
	large := map[string]string{}
	for i := range 100 {
		large[fmt.Sprintf("/large-%d", i)] = "https://shop.test/" + strings.Repeat("x", 8000)
	}
	quick.until(r.write(large))
	for i := range 200 {
		v = r.write(map[string]string{"/one": dest(i)})
		quick.until(v)
	}
	slow.take()
	if kind, got := slow.take(); kind != "delta" || got.GetRevision() != v.GetRevision() {
		t.Fatalf("the slow node then got a %s to %v, the head is %v", kind, got, v)
	}
	if slow.hash() != quick.hash() {
		t.Error("the nodes hold different states")
	}
}
