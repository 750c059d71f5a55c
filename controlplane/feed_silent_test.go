package controlplane

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// network is what is between nodes and a replica. Nobody at its ends hears of it
// when it drops everything, and nobody knows it from a process that was stopped.
type network struct {
	ln    net.Listener
	drops atomic.Bool
	slow  sync.RWMutex // while it is held, nothing arrives
	tasks sync.WaitGroup
}

func startNetwork(t *testing.T, to string) *network {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &network{ln: ln}
	ctx, cancel := context.WithCancel(t.Context())
	n.tasks.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			context.AfterFunc(ctx, func() { _, _ = near.Close(), far.Close() })
			n.tasks.Go(func() { n.carry(near, far) })
			n.tasks.Go(func() { n.carry(far, near) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		cancel()
		n.tasks.Wait()
	})
	return n
}

// carry carries what comes, and that nothing comes any more.
func (n *network) carry(from, to net.Conn) {
	b := make([]byte, 32<<10)
	for {
		size, err := from.Read(b)
		switch {
		case n.drops.Load() && err == nil:
		case n.drops.Load():
			return
		case err != nil:
			_ = to.Close()
			return
		default:
			n.slow.RLock()
			_, _ = to.Write(b[:size]) // if it fails, so does the other way
			n.slow.RUnlock()
		}
	}
}

func TestStreamEndsWhoseNodeHasFallenSilent(t *testing.T) {
	cfg := feedConfig{AskAfter: time.Second, AnswerTimeout: 100 * time.Millisecond} // gRPC asks no sooner
	r := startReplicaWith(t, etcdtest.Start(t), "a", cfg)
	between := startNetwork(t, r.door.Addr().String())
	conn, err := grpc.NewClient(between.ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	far := *r
	far.conn = conn
	v := r.write(map[string]string{"/one": dest(1)})
	newNode(t, "far", "eu").connect(&far).until(v)
	near := newNode(t, "near", "eu").connect(r).until(v)
	between.drops.Store(true)
	for deadline := time.Now().Add(patience); r.feed.metrics.streams.Load() > 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the stream of a node that is gone without a word does not end")
		}
	}
	list, err := r.fleet.ListNodes(t.Context(), &adminv1.ListNodesRequest{})
	if err != nil || len(list.GetNodes()) != 1 || list.GetNodes()[0].GetName() != "near" {
		t.Fatalf("listed are %v, %v", list.GetNodes(), err)
	}
	near.until(r.write(map[string]string{"/one": dest(2)})) // it has nothing to say either, but answers
}

// deaf is a connection of which nothing arrives once it drops what is written.
type deaf struct {
	net.Conn
	drops *atomic.Bool
}

func (d deaf) Write(b []byte) (int, error) {
	if d.drops.Load() {
		return len(b), nil
	}
	return d.Conn.Write(b)
}

func TestNodeThatFellSilentIsGoneAfterHalfAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFake(t, feedConfig{})
		server := grpc.NewServer(feedServerOptions(feedConfig{})...)
		server.RegisterService(receiving(feedv1.FeedService_ServiceDesc), r.feed)
		ln := bufconn.Listen(64 << 10)
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(ln) })
		defer serving.Wait()
		defer server.Stop()
		var drops atomic.Bool
		conn, err := grpc.NewClient("passthrough:///replica", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				conn, err := ln.DialContext(ctx)
				return deaf{conn, &drops}, err
			}))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		stream, err := feedv1.NewFeedServiceClient(conn).Subscribe(r.ctx)
		if err != nil {
			t.Fatal(err)
		}
		hello := &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: &feedv1.Hello{Node: "n", Region: "r"}}}
		if err := stream.Send(hello); err != nil {
			t.Fatal(err)
		}
		if m, err := stream.Recv(); err != nil || m.GetHeartbeat() == nil {
			t.Fatalf("the stream begins with %v, %v", m, err)
		}
		ended := make(chan error, 1)
		go func() {
			for {
				if _, err := stream.Recv(); err != nil {
					ended <- err
					return
				}
			}
		}()
		time.Sleep(time.Hour) // it answers, and stays
		synctest.Wait()
		if n := r.feed.metrics.streams.Load(); n != 1 {
			t.Fatalf("after an hour without a word, with a connection that answers, there are %d streams", n)
		}
		drops.Store(true)
		start := time.Now()
		if err := <-ended; err == io.EOF {
			t.Error("the stream ends in order")
		}
		synctest.Wait()
		if took := time.Since(start); took > 30*time.Second || r.feed.metrics.streams.Load() != 0 {
			t.Errorf("after %s there are %d streams", took, r.feed.metrics.streams.Load())
		}
	})
}
