package e2e

import (
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/deploy/processes"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// doctored is a control plane that sends what a test says.
type doctored struct {
	feedv1.UnimplementedFeedServiceServer
	t       *testing.T
	streams chan *doctoredStream
}

// doctoredStream is a node's stream in a test's hands.
type doctoredStream struct {
	t      *testing.T
	hello  *feedv1.Hello
	stream feedv1.FeedService_SubscribeServer
	end    chan struct{}
}

func (d *doctored) Subscribe(stream feedv1.FeedService_SubscribeServer) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	s := &doctoredStream{t: d.t, hello: m.GetHello(), stream: stream, end: make(chan struct{})}
	select {
	case d.streams <- s:
	case <-stream.Context().Done():
		return nil
	}
	select {
	case <-s.end:
	case <-stream.Context().Done():
	}
	return nil
}

func startDoctored(t *testing.T) (*doctored, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &doctored{t: t, streams: make(chan *doctoredStream)}
	server := grpc.NewServer()
	feedv1.RegisterFeedServiceServer(server, d)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ln) })
	t.Cleanup(func() { server.Stop(); serving.Wait() })
	return d, ln.Addr().String()
}

// accept waits for the node.
func (d *doctored) accept() *doctoredStream {
	d.t.Helper()
	select {
	case s := <-d.streams:
		return s
	case <-time.After(processes.Patience):
		d.t.Fatal("the node does not connect")
		return nil
	}
}

// send sends frames and gives the answer.
func (s *doctoredStream) send(frames ...*feedv1.SubscribeResponse) *feedv1.SubscribeRequest {
	s.t.Helper()
	for _, f := range frames {
		if err := s.stream.Send(f); err != nil {
			s.t.Fatal(err)
		}
	}
	for {
		m, err := s.stream.Recv()
		if err != nil {
			s.t.Fatalf("the node does not answer: %v", err)
		}
		if m.GetStatus() == nil {
			return m
		}
	}
}

// poisonState makes frames of links of any host.
type poisonState map[string]string

func (p poisonState) entry(path string) *feedv1.Entry {
	value, err := link.Marshal(linkTo(path, p[path]))
	if err != nil {
		panic(err)
	}
	return &feedv1.Entry{Key: "links/*" + path, Value: value}
}

func (p poisonState) hash() *feedv1.SetHash {
	var h link.SetHash
	for path := range p {
		e := p.entry(path)
		h = h.Add(link.HashEntry([]byte(e.Key), e.Value))
	}
	return &feedv1.SetHash{Hi: h.Hi, Lo: h.Lo}
}

func at(revision int64) *linkv1.Version { return &linkv1.Version{Epoch: 7, Revision: revision} }

func (p poisonState) snapshot(revision int64) []*feedv1.SubscribeResponse {
	chunk := new(feedv1.SnapshotChunk)
	size := 0
	for path := range p {
		e := p.entry(path)
		chunk.Entries = append(chunk.Entries, e)
		size += len(e.Key) + len(e.Value)
	}
	return []*feedv1.SubscribeResponse{
		{Frame: &feedv1.SubscribeResponse_SnapshotBegin{SnapshotBegin: &feedv1.SnapshotBegin{Version: at(revision), Entries: int64(len(p)), Bytes: int64(size)}}},
		{Frame: &feedv1.SubscribeResponse_SnapshotChunk{SnapshotChunk: chunk}},
		{Frame: &feedv1.SubscribeResponse_SnapshotEnd{SnapshotEnd: &feedv1.SnapshotEnd{Version: at(revision), Entries: int64(len(p)), SetHash: p.hash()}}},
	}
}

func TestPoisonedFrameOfADoctoredControlPlaneNeverGetsIn(t *testing.T) {
	control, addr := startDoctored(t)
	f := newFleet(t, 1, 1)
	f.ControlAddr[0] = addr
	f.must(f.StartNATS())
	f.must(f.StartNode(0))
	s := control.accept()
	good := poisonState{"/a": "https://store.com/a", "/b": "https://store.com/b"}
	if m := s.send(good.snapshot(10)...); m.GetApplied().GetVersion().GetRevision() != 10 {
		t.Fatalf("a good snapshot is answered with %v", m)
	}
	f.ready(0)

	next := poisonState{"/a": "https://evil.example/", "/b": good["/b"]}
	delta := &feedv1.Delta{From: at(10), To: at(11), Puts: []*feedv1.Entry{next.entry("/a")}, SetHash: next.hash(), Entries: 2}
	for name, spoil := range map[string]func(*feedv1.Delta){
		"a value that its set hash does not name": func(d *feedv1.Delta) { d.SetHash = good.hash() },
		"another base":                      func(d *feedv1.Delta) { d.From = at(9) },
		"another epoch":                     func(d *feedv1.Delta) { d.To.Epoch++ },
		"the way back":                      func(d *feedv1.Delta) { d.To = at(3) },
		"the same key twice":                func(d *feedv1.Delta) { d.Puts = append(d.Puts, d.Puts[0]) },
		"a number of entries that is wrong": func(d *feedv1.Delta) { d.Entries = 1 << 40 },
		"a deletion of what is not there":   func(d *feedv1.Delta) { d.Deletes = []string{"links/*/nowhere"} },
	} {
		bad := proto.Clone(delta).(*feedv1.Delta)
		spoil(bad)
		if m := s.send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Delta{Delta: bad}}); m.GetRejected().GetReason() == "" {
			t.Errorf("%s: the node answers %v", name, m)
		}
		f.wantRedirect("/a", "https://store.com/a")
	}
	older := next.snapshot(9)
	if m := s.send(older...); m.GetRejected().GetCode() != feedv1.RejectCode_REJECT_CODE_OLDER {
		t.Errorf("an older snapshot is answered with %v", m)
	}
	wrong := next.snapshot(12)
	wrong[2].GetSnapshotEnd().SetHash.Lo++
	if m := s.send(wrong...); m.GetRejected().GetCode() != feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH {
		t.Errorf("a snapshot with another set hash is answered with %v", m)
	}
	f.wantRedirect("/a", "https://store.com/a")

	// A message of nonsense ends the stream, and neither the node nor its state.
	if err := s.stream.SendMsg(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_SnapshotChunk{SnapshotChunk: &feedv1.SnapshotChunk{
		Compressed: []byte("nonsense"), Compression: feedv1.Compression_COMPRESSION_S2,
	}}}); err != nil {
		t.Fatal(err)
	}
	s = control.accept()
	if v := s.hello.GetVersion(); v.GetRevision() != 10 || !proto.Equal(s.hello.GetSetHash(), good.hash()) {
		t.Errorf("the node comes back with %v", s.hello)
	}
	if m := s.send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Delta{Delta: delta}}); m.GetApplied() == nil {
		t.Errorf("a good delta is answered with %v", m)
	}
	f.wantRedirect("/a", "https://evil.example/")
	if got := status(f.NodeAddr[0], "/c"); got == http.StatusFound {
		t.Errorf("a link that never was is answered with %d", got)
	}
}
