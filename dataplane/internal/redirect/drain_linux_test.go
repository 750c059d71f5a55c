package redirect

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// bothEnds gives both ends of a connection.
func bothEnds(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// A request that has arrived when the drain finds its connection idle is answered,
// and a connection without one is closed at once.
func TestDrainOverTLSAnswersWhatHasArrived(t *testing.T) {
	certs, err := OpenCerts(newDir(t))
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Live: &table.Live{}, Clicks: newRecorder(t)}
	cfg.Live.Store(samples(t))
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, arrived := range []bool{true, false} {
		g := &group{srv: s, conns: map[*conn]struct{}{}}
		g.tls = tlsConfig(g, certs)
		near, far := bothEnds(t)
		client := newClient(t, tls.Client(near, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}))
		c := &conn{srv: s, group: g, socket: far, nc: far, served: true}
		if !g.enter(c) {
			t.Fatal("it is refused")
		}
		shaken := make(chan error, 1)
		go func() { shaken <- client.Conn.(*tls.Conn).Handshake() }()
		if _, ok := c.greet(); !ok {
			t.Fatal("no handshake")
		}
		if err := <-shaken; err != nil {
			t.Fatal(err)
		}
		if arrived {
			client.send(getA)
		}
		for c.pending() != arrived {
			time.Sleep(time.Millisecond)
		}
		g.draining.Store(true)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer g.finish(c)
			c.run(nil)
		}()
		if arrived {
			if resp := client.expect(302); !resp.Close {
				t.Error("the last answer does not say Connection: close")
			}
		}
		client.expectEnd()
		_ = client.Close()
		<-ended
		if c.draining != arrived {
			t.Errorf("arrived %t: it was waited for: %t", arrived, c.draining)
		}
	}
}
