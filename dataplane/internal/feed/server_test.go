package feed

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

const epoch = 7

// state is what a control plane holds, by path of a link of go.test.
type state map[string]string

// entry gives a link's entry; an empty destination is one that does not compile.
func entry(path, destination string) *feedv1.Entry {
	r := &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: "go.test", Path: path, Destination: destination}}}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		panic(err)
	}
	return &feedv1.Entry{Key: "links/go.test" + path, Value: value}
}

func (s state) hash() (h link.SetHash) {
	for path, destination := range s {
		e := entry(path, destination)
		h = h.Add(link.HashEntry([]byte(e.Key), e.Value))
	}
	return h
}

func version(revision int64) *linkv1.Version {
	return &linkv1.Version{Epoch: epoch, Revision: revision}
}

// snapshot is the whole state in frames, one chunk plain and one compressed.
func (s state) snapshot(revision int64) []*feedv1.SubscribeResponse {
	var plain, packed feedv1.SnapshotChunk
	size := int64(0)
	for i, path := range slices.Sorted(maps.Keys(s)) {
		e := entry(path, s[path])
		size += int64(len(e.Key) + len(e.Value))
		if i%2 == 0 {
			plain.Entries = append(plain.Entries, e)
		} else {
			packed.Entries = append(packed.Entries, e)
		}
	}
	b, _ := proto.Marshal(&packed)
	return []*feedv1.SubscribeResponse{
		{Frame: &feedv1.SubscribeResponse_SnapshotBegin{SnapshotBegin: &feedv1.SnapshotBegin{Version: version(revision), Entries: int64(len(s)), Bytes: size}}},
		{Frame: &feedv1.SubscribeResponse_SnapshotChunk{SnapshotChunk: &plain}},
		{Frame: &feedv1.SubscribeResponse_SnapshotChunk{SnapshotChunk: &feedv1.SnapshotChunk{Compressed: s2.Encode(nil, b), Compression: feedv1.Compression_COMPRESSION_S2}}},
		{Frame: &feedv1.SubscribeResponse_SnapshotEnd{SnapshotEnd: &feedv1.SnapshotEnd{Version: version(revision), Entries: int64(len(s)), SetHash: hashProto(s.hash())}}},
	}
}

// delta changes the state ("" deletes) and gives the frame that says so.
func (s state) delta(from, to int64, changes map[string]string) *feedv1.SubscribeResponse {
	d := &feedv1.Delta{From: version(from), To: version(to)}
	for path, destination := range changes {
		if destination == "" {
			delete(s, path)
			d.Deletes = append(d.Deletes, "links/go.test"+path)
		} else {
			s[path] = destination
			d.Puts = append(d.Puts, entry(path, destination))
		}
	}
	d.SetHash, d.Entries = hashProto(s.hash()), int64(len(s))
	return &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Delta{Delta: d}}
}

func heartbeat(revision int64, interval time.Duration) *feedv1.SubscribeResponse {
	return &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Heartbeat{Heartbeat: &feedv1.Heartbeat{Head: version(revision), Interval: durationpb.New(interval)}}}
}

// peer is a control plane's end of one stream, in a test's hands.
type peer struct {
	t      *testing.T
	hello  *feedv1.Hello
	stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]
	end    chan error // ends the stream
}

func (p *peer) send(frames ...*feedv1.SubscribeResponse) {
	p.t.Helper()
	for _, f := range frames {
		if err := p.stream.Send(f); err != nil {
			p.t.Fatalf("send: %v", err)
		}
	}
}

// answer gives the node's next answer that is not a status.
func (p *peer) answer() *feedv1.SubscribeRequest {
	p.t.Helper()
	for {
		m, err := p.stream.Recv()
		if err != nil {
			p.t.Fatalf("no answer: %v", err)
		}
		if m.GetStatus() == nil {
			return m
		}
	}
}

func (p *peer) wantApplied(revision int64) {
	p.t.Helper()
	if m := p.answer(); m.GetApplied().GetVersion().GetRevision() != revision {
		p.t.Fatalf("the node answered %v, not that it applied %d", m, revision)
	}
}

func (p *peer) wantRejected(code feedv1.RejectCode) *feedv1.Rejected {
	p.t.Helper()
	m := p.answer()
	if m.GetRejected().GetCode() != code {
		p.t.Fatalf("the node answered %v, not %v", m, code)
	}
	return m.GetRejected()
}

// control is a control plane whose streams are in a test's hands. It is real
// gRPC on loopback.
type control struct {
	feedv1.UnimplementedFeedServiceServer
	t       *testing.T
	address string
	server  *grpc.Server
	peers   chan *peer
}

func startControl(t *testing.T) *control {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &control{t: t, address: ln.Addr().String(), server: grpc.NewServer(), peers: make(chan *peer)}
	feedv1.RegisterFeedServiceServer(c.server, c)
	var serving sync.WaitGroup
	serving.Go(func() { _ = c.server.Serve(ln) })
	t.Cleanup(func() { c.server.Stop(); serving.Wait() })
	return c
}

func (c *control) Subscribe(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	p := &peer{t: c.t, hello: m.GetHello(), stream: stream, end: make(chan error, 1)}
	select {
	case c.peers <- p:
	case <-stream.Context().Done():
		return nil
	}
	select {
	case err := <-p.end:
		return err
	case <-stream.Context().Done():
		return nil
	}
}

// accept waits for a node.
func (c *control) accept() *peer {
	c.t.Helper()
	select {
	case p := <-c.peers:
		return p
	case <-time.After(20 * time.Second):
		c.t.Fatal("no node connected")
		return nil
	}
}

// node is a client under test.
type node struct {
	*Client
	live *table.Live
	logs *lockedBuffer
	stop func()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func startNode(t *testing.T, dir string, targets ...string) *node {
	t.Helper()
	return startNodeWith(t, Config{Dir: dir, Targets: targets})
}

// startNodeWith starts a node; what is not set is for tests.
func startNodeWith(t *testing.T, cfg Config) *node {
	t.Helper()
	n := &node{live: &table.Live{}, logs: &lockedBuffer{}}
	cfg.Node, cfg.Region, cfg.Boot, cfg.Live = "n1", "r1", 1, n.live
	cfg.MinBackoff, cfg.MaxBackoff = time.Millisecond, 20*time.Millisecond
	cfg.SaveInterval, cfg.StatusInterval = time.Millisecond, 20*time.Millisecond
	cfg.Credentials = insecure.NewCredentials()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(n.logs, nil))
	}
	var err error
	n.Client, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

// readFile reads a state file, without limits of its own.
func readFile(path string) (*table.Table, error) {
	var g Guard
	g.setDefaults()
	t, _, err := readStateFile(path, &g, func(table.Version) error { return nil })
	return t, err
}

func readBytes(b []byte) (*table.Table, error) {
	var g Guard
	g.setDefaults()
	t, _, err := readState(bytes.NewReader(b), &g, func(table.Version) error { return nil })
	return t, err
}

// holds says what is wrong with the live table.
func holds(live *table.Live, revision int64, want state) error {
	t := live.Load()
	if t == nil {
		return fmt.Errorf("no table")
	}
	if t.Version() != (table.Version{Epoch: epoch, Revision: revision}) || t.Len() != len(want) || t.Hash() != want.hash() {
		return fmt.Errorf("table of %v with %d entries, want revision %d with %d", t.Version(), t.Len(), revision, len(want))
	}
	for path := range want {
		var m link.Match
		if t.Lookup([]byte("go.test"), []byte(path), &m); m.Value == nil {
			return fmt.Errorf("%s is missing", path)
		}
	}
	return nil
}

func wantHolds(t *testing.T, live *table.Live, revision int64, want state) {
	t.Helper()
	if err := holds(live, revision, want); err != nil {
		t.Fatal(err)
	}
}
