package feed

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/test/bufconn"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// slow is a connection over which so many bytes a second arrive, and none of those
// that are on their way once it drops them.
type slow struct {
	net.Conn
	perSecond int
	drops     atomic.Bool
}

func (s *slow) Read(b []byte) (int, error) {
	for {
		n, err := s.Conn.Read(b[:min(len(b), s.perSecond/10)])
		time.Sleep(time.Duration(n) * time.Second / time.Duration(s.perSecond))
		if err != nil || !s.drops.Load() {
			return n, err
		}
	}
}

// startControlNear starts a control plane within a bubble, which takes pings and sends
// none, as a real one does. Nodes get at it through what is made of each connection.
func startControlNear(t *testing.T, through func(net.Conn) net.Conn) (*control, Config) {
	ln := bufconn.Listen(64 << 10)
	server := grpc.NewServer(grpc.StaticStreamWindowSize(1<<20), grpc.StaticConnWindowSize(4<<20),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}))
	c := &control{t: t, server: server, peers: make(chan *peer)}
	feedv1.RegisterFeedServiceServer(c.server, c)
	var serving sync.WaitGroup
	serving.Go(func() { _ = c.server.Serve(ln) })
	t.Cleanup(func() { c.server.Stop(); serving.Wait() })
	dialer := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := ln.DialContext(ctx)
		if err != nil {
			return nil, err
		}
		return through(conn), nil
	})
	return c, Config{Targets: []string{"passthrough:///control"}, Dial: []grpc.DialOption{dialer}}
}

// asItIs gives nodes the connection.
func asItIs(conn net.Conn) net.Conn { return conn }

// large is some megabytes of changes.
func large() map[string]string {
	changes := map[string]string{}
	for i := range 2000 {
		changes[fmt.Sprintf("/%d", i)] = "https://x.test/" + strings.Repeat("a", 2000)
	}
	return changes
}

// A large delta takes four times three heartbeats here; another stream would begin with
// the same.
func TestNodeTakesALargeFrameOverASlowLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, cfg := startControlNear(t, func(conn net.Conn) net.Conn { return &slow{Conn: conn, perSecond: 64 << 10} })
		n := startNodeWith(t, cfg)
		defer n.stop()
		p := c.accept()
		s := state{"/a": "https://x.test/a"}
		p.send(heartbeat(10, firstInterval))
		p.send(s.snapshot(10)...)
		p.wantApplied(10)
		start := time.Now()
		p.send(s.delta(10, 11, large()))
		p.wantApplied(11)
		wantHolds(t, n.live, 11, s)
		if took := time.Since(start); took < 4*3*firstInterval {
			t.Errorf("the line is not slow: the frame took %s", took)
		}
	})
}

func TestNodeLeavesAControlPlaneThatStopsWithinAFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conns := make(chan *slow, 2)
		c, cfg := startControlNear(t, func(conn net.Conn) net.Conn {
			s := &slow{Conn: conn, perSecond: 64 << 10}
			conns <- s
			return s
		})
		n := startNodeWith(t, cfg)
		defer n.stop()
		p := c.accept()
		s := state{"/a": "https://x.test/a"}
		const interval = time.Second
		p.send(heartbeat(10, interval))
		p.send(s.snapshot(10)...)
		p.wantApplied(10)
		delta := s.delta(10, 11, large())
		go func() { _ = p.stream.Send(delta) }()
		time.Sleep(10 * interval)
		select {
		case <-c.peers:
			t.Fatal("the node leaves a control plane from which a frame comes")
		default:
		}
		(<-conns).drops.Store(true)
		start := time.Now()
		c.accept()
		if took := time.Since(start); took > 2*3*interval {
			t.Errorf("the node comes again after %s", took)
		}
		if log := n.logs.String(); !strings.Contains(log, errSilent.Error()) {
			t.Errorf("it was not the silence that told: %s", log)
		}
	})
}

// A control plane of which nothing works but the connection.
func TestNodeLeavesAControlPlaneThatAnswersPingsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, cfg := startControlNear(t, asItIs)
		n := startNodeWith(t, cfg)
		defer n.stop()
		c.accept().send(heartbeat(1, maxInterval))
		start := time.Now()
		select {
		case <-c.peers:
		case <-time.After(6 * maxInterval):
			t.Fatal("the node does not leave a control plane that says nothing")
		}
		if took := time.Since(start); took < 3*maxInterval || took > 3*maxInterval+time.Second {
			t.Errorf("the node comes again after %s", took)
		}
		if log := n.logs.String(); !strings.Contains(log, errSilent.Error()) {
			t.Errorf("it was not the silence that told: %s", log)
		}
	})
}
