package feed

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// deaf is a connection of which nothing arrives once it drops what is written.
type deaf struct {
	net.Conn
	drops atomic.Bool
}

func (d *deaf) Write(b []byte) (int, error) {
	if d.drops.Load() {
		return len(b), nil
	}
	return d.Conn.Write(b)
}

// A control plane may say that its heartbeats are a minute apart: a network that drops
// everything is found out sooner than three of them are missing.
func TestNodeLeavesAConnectionThatFellSilentAfterHalfAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := bufconn.Listen(64 << 10)
		c := &control{t: t, server: grpc.NewServer(), peers: make(chan *peer)}
		feedv1.RegisterFeedServiceServer(c.server, c)
		var serving sync.WaitGroup
		serving.Go(func() { _ = c.server.Serve(ln) })
		defer serving.Wait()
		defer c.server.Stop()
		conns := make(chan *deaf, 2)
		n := startNodeWith(t, Config{Targets: []string{"passthrough:///control"}, Dial: []grpc.DialOption{
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				conn, err := ln.DialContext(ctx)
				if err != nil {
					return nil, err
				}
				d := &deaf{Conn: conn}
				conns <- d
				return d, nil
			}),
		}})
		defer n.stop()
		p := c.accept()
		p.send(heartbeat(1, maxInterval))
		time.Sleep(2 * maxInterval) // nothing is said, and the connection answers
		select {
		case <-c.peers:
			t.Fatal("the node has left a connection that answers")
		default:
		}
		(<-conns).drops.Store(true)
		start := time.Now()
		<-c.peers
		if took := time.Since(start); took > 31*time.Second {
			t.Errorf("the node comes again after %s", took)
		}
		if log := n.logs.String(); strings.Contains(log, errSilent.Error()) || !strings.Contains(log, "keepalive") {
			t.Errorf("it was not the connection that told: %s", log)
		}
	})
}
