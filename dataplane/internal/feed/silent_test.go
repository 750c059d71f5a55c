package feed

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
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
		conns := make(chan *deaf, 2)
		c, cfg := startControlNear(t, func(conn net.Conn) net.Conn {
			d := &deaf{Conn: conn}
			conns <- d
			return d
		})
		n := startNodeWith(t, cfg)
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
