package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/controlplane/internal/replica"
	"github.com/affleet/affleet/controlplane/internal/snapshot"
	"github.com/affleet/affleet/controlplane/internal/store"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// testReplica is a replica: a log, the feed and the fleet over real etcd, on
// loopback.
type testReplica struct {
	t     *testing.T
	store *store.Store
	log   *snapshot.Log
	fleet *fleet
	feed  *feed
	conn  *grpc.ClientConn
	id    string
	door  *door
	stop  func() // as if it were killed
}

func startReplica(t *testing.T, client *clientv3.Client, id string) *testReplica {
	t.Helper()
	return startReplicaWith(t, client, id, feedConfig{})
}

func startReplicaWith(t *testing.T, client *clientv3.Client, id string, cfg feedConfig) *testReplica {
	t.Helper()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &testReplica{t: t, store: store.New(client), id: id, door: &door{Listener: ln}}
	r.log = snapshot.New(r.store, snapshot.Config{
		Logger:   quiet,
		Progress: func(ctx context.Context) error { return client.RequestProgress(clientv3.WithRequireLeader(ctx)) },
	})
	directory, err := replica.New(client, replica.Config{ID: id, Address: ln.Addr().String(), TTL: time.Second, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	dial := func(address string) (*grpc.ClientConn, error) {
		return grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	r.fleet = newFleet(r.log, fleetConfig{Replica: id, Operations: r.store, Peers: directory, Dial: dial, Logger: quiet})
	cfg.Logger, cfg.Heartbeat, cfg.CatchUp, cfg.RetryRejected = quiet, 50*time.Millisecond, 100*time.Millisecond, 10*time.Millisecond
	r.feed = newFeed(r.log, r.fleet, cfg)
	server := grpc.NewServer(feedServerOptions(cfg)...)
	server.RegisterService(receiving(feedv1.FeedService_ServiceDesc), r.feed)
	adminv1.RegisterFleetServiceServer(server, r.fleet)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = r.log.Run(ctx) })
	running.Go(func() { r.feed.run(ctx) })
	running.Go(func() { _ = directory.Run(ctx) })
	running.Go(func() { _ = server.Serve(r.door) })
	if r.conn, err = dial(ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		r.door.wake()
		server.Stop()
		running.Wait()
		r.fleet.close()
		_ = r.conn.Close()
	})
	t.Cleanup(r.stop)
	<-directory.Listed()
	<-r.log.Ready()
	return r
}

// write puts links of go.test and gives the version; "" deletes.
func (r *testReplica) write(links map[string]string) *linkv1.Version {
	r.t.Helper()
	var writes []store.Write
	for path, destination := range links {
		if destination == "" {
			writes = append(writes, store.Write{Verb: store.Delete, Name: "links/go.test" + path})
			continue
		}
		writes = append(writes, store.Write{Verb: store.Put, Resource: &linkv1.Resource{Kind: &linkv1.Resource_Link{
			Link: &linkv1.Link{Domain: "go.test", Path: path, Destination: destination},
		}}})
	}
	_, revision, err := r.store.Write(r.t.Context(), "test", writes, false)
	if err != nil {
		r.t.Fatalf("write: %v", err)
	}
	return &linkv1.Version{Epoch: r.log.Head().Epoch, Revision: revision}
}

func dest(i int) string { return fmt.Sprintf("https://shop.test/%d", i) }

// testNode is a node as the protocol describes one, and nothing else.
type testNode struct {
	t       *testing.T
	hello   *feedv1.Hello
	entries map[string]string
	bytes   int // received on this stream
	downs   []*feedv1.TakeDown
	silent  bool                                                      // does not acknowledge take-downs
	says    func(*feedv1.SubscribeRequest) []*feedv1.SubscribeRequest // in place of a message; nil: that
	retry   *feedv1.RetryLater
	stream  grpc.BidiStreamingClient[feedv1.SubscribeRequest, feedv1.SubscribeResponse]
	cancel  context.CancelFunc
}

func newNode(t *testing.T, name, region string) *testNode {
	return &testNode{t: t, hello: &feedv1.Hello{Node: name, Region: region}, entries: map[string]string{}}
}

// connect opens a stream; options are of the call.
func (n *testNode) connect(r *testReplica) *testNode {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.t.Context())
	n.cancel, n.bytes = cancel, 0
	n.t.Cleanup(cancel)
	var err error
	if n.stream, err = feedv1.NewFeedServiceClient(r.conn).Subscribe(ctx, grpc.MaxCallRecvMsgSize(64<<20)); err != nil {
		n.t.Fatal(err)
	}
	n.say(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: n.hello}})
	return n
}

func (n *testNode) say(m *feedv1.SubscribeRequest) {
	n.t.Helper()
	all := []*feedv1.SubscribeRequest{m}
	if n.says != nil {
		all = n.says(proto.CloneOf(m))
	}
	for _, m := range all {
		if err := n.stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
			n.t.Fatal(err)
		}
	}
}

func (n *testNode) hash() (h link.SetHash) {
	for key, value := range n.entries {
		h = h.Add(link.HashEntry([]byte(key), []byte(value)))
	}
	return h
}

// frame receives one frame and applies it beside: it gives the kind, the
// version, and whether it verifies. Heartbeats are passed over.
func (n *testNode) frame() (kind string, v *linkv1.Version, ok bool) {
	n.t.Helper()
	var snap map[string]string
	for {
		m, err := n.stream.Recv()
		if err != nil {
			n.t.Fatalf("node %s: %v", n.hello.GetNode(), err)
		}
		n.bytes += proto.Size(m)
		switch f := m.GetFrame().(type) {
		case *feedv1.SubscribeResponse_SnapshotBegin:
			snap = map[string]string{}
		case *feedv1.SubscribeResponse_SnapshotChunk:
			plain, err := s2.Decode(nil, f.SnapshotChunk.GetCompressed())
			if err != nil {
				n.t.Fatal(err)
			}
			var chunk feedv1.SnapshotChunk
			if err := proto.Unmarshal(plain, &chunk); err != nil {
				n.t.Fatal(err)
			}
			for _, e := range chunk.GetEntries() {
				snap[e.GetKey()] = string(e.GetValue())
			}
		case *feedv1.SubscribeResponse_SnapshotEnd:
			n.entries = snap
			return "snapshot", f.SnapshotEnd.GetVersion(), n.hash() == hashOf(f.SnapshotEnd.GetSetHash())
		case *feedv1.SubscribeResponse_Delta:
			d := f.Delta
			if d.GetFrom().GetRevision() != n.hello.GetVersion().GetRevision() {
				n.t.Fatalf("a delta from %v for a node at %v", d.GetFrom(), n.hello.GetVersion())
			}
			for _, key := range d.GetDeletes() {
				delete(n.entries, key)
			}
			for _, e := range d.GetPuts() {
				n.entries[e.GetKey()] = string(e.GetValue())
			}
			return "delta", d.GetTo(), n.hash() == hashOf(d.GetSetHash())
		case *feedv1.SubscribeResponse_Behind:
			return "behind", f.Behind.GetHead(), true
		case *feedv1.SubscribeResponse_RetryLater:
			n.retry = f.RetryLater
			return "retry", nil, true
		case *feedv1.SubscribeResponse_TakeDown:
			n.takenDown(f.TakeDown)
		}
	}
}

// takenDown notes a take-down, and acknowledges it.
func (n *testNode) takenDown(d *feedv1.TakeDown) {
	n.t.Helper()
	n.downs = append(n.downs, d)
	if !n.silent {
		n.say(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_TakenDown{TakenDown: &feedv1.TakenDown{Version: d.GetVersion()}}})
	}
}

// down receives until a take-down comes, and gives the names in it.
func (n *testNode) down() (names []string) {
	n.t.Helper()
	for {
		m, err := n.stream.Recv()
		if err != nil {
			n.t.Fatalf("node %s: %v", n.hello.GetNode(), err)
		}
		if d := m.GetTakeDown(); d != nil {
			n.takenDown(d)
			for _, e := range d.GetEntries() {
				names = append(names, e.GetKey())
			}
			return names
		}
	}
}

// take is frame, acknowledged.
func (n *testNode) take() (kind string, v *linkv1.Version) {
	n.t.Helper()
	kind, v, ok := n.frame()
	if !ok {
		n.t.Fatalf("node %s: a %s to %v does not verify", n.hello.GetNode(), kind, v)
	}
	if kind == "snapshot" || kind == "delta" {
		n.acknowledge(v)
	}
	return kind, v
}

func (n *testNode) acknowledge(v *linkv1.Version) {
	n.t.Helper()
	n.hello.Version, n.hello.SetHash = v, &feedv1.SetHash{Hi: n.hash().Hi, Lo: n.hash().Lo}
	n.say(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Applied{Applied: &feedv1.Applied{Version: v, SetHash: n.hello.SetHash}}})
}

func (n *testNode) reject(v *linkv1.Version, code feedv1.RejectCode) {
	n.t.Helper()
	n.say(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Rejected{Rejected: &feedv1.Rejected{Version: v, Code: code, Reason: "test"}}})
}

// until takes frames until the node is at a version.
func (n *testNode) until(v *linkv1.Version) *testNode {
	n.t.Helper()
	for n.hello.GetVersion().GetRevision() < v.GetRevision() {
		n.take()
	}
	return n
}

// ends gives how the stream ended.
func (n *testNode) ends() error {
	for {
		if _, err := n.stream.Recv(); err != nil {
			return err
		}
	}
}

func TestWriteReachesTheNodeAsOneDelta(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	r.write(map[string]string{"/one": dest(1)})
	n := newNode(t, "n1", "eu").connect(r)
	if kind, _ := n.take(); kind != "snapshot" {
		t.Fatalf("a new node got a %s", kind)
	}
	v := r.write(map[string]string{"/two": dest(2), "/three": dest(3), "/one": ""})
	n.until(v)
	if len(n.entries) != 2 || n.entries["links/go.test/two"] == "" {
		t.Fatalf("the node holds %v", n.entries)
	}
}

func TestNodeThatReconnectsGetsOnlyWhatItMissed(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	for i := range 10 {
		links := map[string]string{}
		for j := range 100 {
			links[fmt.Sprintf("/%d-%d", i, j)] = dest(j)
		}
		r.write(links)
	}
	n := newNode(t, "n1", "eu").connect(r)
	n.until(r.write(map[string]string{"/x": dest(0)}))
	n.cancel()
	var v *linkv1.Version
	for i := range 20 {
		v = r.write(map[string]string{"/x": dest(i)})
	}
	waitHead(t, r, v)
	n.connect(r)
	if kind, got := n.take(); kind != "delta" || got.GetRevision() != v.GetRevision() || n.bytes > 300 {
		t.Fatalf("the node got a %s to %v in %d bytes", kind, got, n.bytes)
	}
}

// waitHead waits until a replica holds a version.
func waitHead(t *testing.T, r *testReplica, v *linkv1.Version) {
	t.Helper()
	deadline := time.After(patience)
	for {
		changed := r.log.Changed()
		if r.log.Head().Revision >= v.GetRevision() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("replica %s does not get to %v", r.id, v)
		}
	}
}

func TestNodeWithAnotherSetHashGetsASnapshot(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	v := r.write(map[string]string{"/one": dest(1)})
	n := newNode(t, "n1", "eu").connect(r).until(v)
	n.cancel()
	n.hello.SetHash.Lo++
	n.connect(r)
	if kind, _ := n.take(); kind != "snapshot" {
		t.Fatalf("it got a %s", kind)
	}
}

func TestStatusWithAnotherHashIsMendedByASnapshot(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	v := r.write(map[string]string{"/one": dest(1)})
	n := newNode(t, "n1", "eu").connect(r).until(v)
	n.say(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Status{Status: &feedv1.Status{Version: v, SetHash: &feedv1.SetHash{Hi: 1}}}})
	if kind, _ := n.take(); kind != "snapshot" || r.feed.metrics.mismatches.Load() != 1 {
		t.Fatalf("it got a %s, %d mismatches", kind, r.feed.metrics.mismatches.Load())
	}
}

func TestRejectedDeltaIsAnsweredWithASnapshotAndThatOnce(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	n := newNode(t, "n1", "eu").connect(r).until(r.write(map[string]string{"/one": dest(1)}))
	held := n.entries
	r.write(map[string]string{"/two": dest(2)})
	_, v, _ := n.frame()
	n.reject(v, feedv1.RejectCode_REJECT_CODE_BAD_ENTRY)
	kind, v, _ := n.frame()
	if kind != "snapshot" {
		t.Fatalf("a rejected delta was answered with a %s", kind)
	}
	n.reject(v, feedv1.RejectCode_REJECT_CODE_BAD_ENTRY)
	// Left alone: heartbeats come, and no frame before there is a newer version.
	for range 5 {
		if m, err := n.stream.Recv(); err != nil || m.GetHeartbeat() == nil {
			t.Fatalf("a parked node was sent %v, %v", m, err)
		}
	}
	n.entries = map[string]string{}
	for k, v := range held {
		n.entries[k] = v
	}
	delete(n.entries, "links/go.test/two")
	n.until(r.write(map[string]string{"/three": dest(3)}))
	list, err := r.fleet.ListNodes(t.Context(), &adminv1.ListNodesRequest{})
	if err != nil || !strings.Contains(list.GetNodes()[0].GetLastRejection(), "test") {
		t.Errorf("the node is listed as %v, %v", list, err)
	}
}

func TestNodeMovesBetweenReplicas(t *testing.T) {
	client := etcdtest.Start(t)
	a, b := startReplica(t, client, "a"), startReplica(t, client, "b")
	v := a.write(map[string]string{"/one": dest(1)})
	n := newNode(t, "n1", "eu").connect(a).until(v)
	a.stop()
	v = b.write(map[string]string{"/two": dest(2)})
	n.connect(b)
	if kind, got := n.take(); kind != "delta" || got.GetRevision() != v.GetRevision() {
		t.Fatalf("on another replica the node got a %s to %v", kind, got)
	}
}
