//go:build linux

package redirect

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// askOnce opens a connection, asks, and expects the answer and a clean end. It
// says how long that took.
func askOnce(addr string) (time.Duration, error) {
	start := time.Now()
	nc, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	if err := nc.SetDeadline(start.Add(10 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(nc, getLast); err != nil {
		return 0, err
	}
	b, err := io.ReadAll(nc)
	if err == nil && !strings.HasPrefix(string(b), "HTTP/1.1 302 ") {
		err = errors.New("got " + string(b))
	}
	return time.Since(start), err
}

func TestNewServerTakesOverWithoutARefusedConnection(t *testing.T) {
	claim, err := NewClaim("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Close()
	addr := claim.Addr().String()
	open := func() *node {
		c, err := NewClaim(addr)
		if err != nil {
			t.Fatal(err)
		}
		ln, err := c.Listen()
		if err != nil {
			t.Fatal(err)
		}
		return serveOn(t, ln, time.Second)
	}
	old := open()
	var asked, slow atomic.Int64
	var clients sync.WaitGroup
	done := make(chan struct{})
	for range 8 {
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				took, err := askOnce(addr)
				if err != nil {
					t.Errorf("connection %d: %v", asked.Load(), err)
					return
				}
				if took > 500*time.Millisecond {
					slow.Add(1)
				}
				asked.Add(1)
			}
		})
	}
	const takeovers = 10
	for range takeovers {
		next := open()
		for before := asked.Load(); asked.Load() < before+50; { // both are under load
			time.Sleep(time.Millisecond)
		}
		served := old.Stats().Redirects
		if err := old.stop(); err != nil {
			t.Fatal(err)
		}
		if late := old.Stats().Redirects - served; late > 8 {
			t.Errorf("the old server answered %d more: the new one is to have all", late)
		}
		if next.Stats().Redirects == 0 {
			t.Error("the new server has answered nothing")
		}
		old = next
	}
	close(done)
	clients.Wait()
	t.Logf("%d connections over %d takeovers, %d took more than half a second", asked.Load(), takeovers, slow.Load())
}

// TestConnectionsInTheQueueAreAnswered stops a server whose listener holds
// connections that it has not accepted, with requests or without.
func TestConnectionsInTheQueueAreAnswered(t *testing.T) {
	ln, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var held []*client
	for i := range 100 {
		nc, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, nc)
		if i%2 == 0 {
			c.send(getA)
		}
		held = append(held, c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // before the first is accepted
	n := startNode(t, 5*time.Second)
	served := make(chan error)
	go func() { served <- n.Serve(ctx, ln, 5*time.Second) }()
	for i, c := range held {
		if i%2 == 1 {
			c.send(getA)
		}
		c.expect(302)
		c.expectEnd()
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if nc, err := net.Dial("tcp", ln.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("afterwards: got %v, %v, want a refused connection", nc, err)
	}
}

func TestAddressInUseIsAnErrorUnlessBothShareIt(t *testing.T) {
	alone, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	if _, err := Listen(alone.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("two that do not share: got %v", err)
	}
	if _, err := NewClaim(alone.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), alone.Addr().String()) {
		t.Errorf("the newer shares: got %v", err)
	}
	claim, err := NewClaim("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := claim.Addr().String()
	if nc, err := net.Dial("tcp", addr); err == nil {
		t.Errorf("a claim takes the connection %v", nc)
	}
	next, err := NewClaim(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if claim.Served() || next.Served() {
		t.Error("an address that two have claimed is served")
	}
	shared, err := claim.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	if _, err := Listen(addr); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the older shares: got %v", err)
	}
	if !next.Served() {
		t.Error("an address on which another listens is not served")
	}
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	accepted, err := shared.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	_ = shared.Close()
	if next.Served() {
		t.Error("an address of which another has connections alone is served")
	}
	ln, err := next.Listen()
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
}

func TestClaimsListenAsListenersDo(t *testing.T) {
	for _, addr := range []string{":0", "127.0.0.1:0", "[::]:0", "[::1]:0", "0.0.0.0:0", "localhost:0"} {
		want, err := Listen(addr)
		if err != nil {
			t.Logf("%s: not on this machine: %v", addr, err)
			continue
		}
		_ = want.Close()
		claim, err := NewClaim(addr)
		if err != nil {
			t.Errorf("%s: %v", addr, err)
			continue
		}
		next, err := NewClaim(claim.Addr().String())
		if err != nil {
			t.Errorf("%s: %v", addr, err)
			continue
		}
		if next.Served() {
			t.Errorf("%s is served before anybody listens", addr)
		}
		ln, err := claim.Listen()
		if err != nil {
			t.Errorf("%s: %v", addr, err)
			continue
		}
		if !next.Served() {
			t.Errorf("%s is not served by who listens", addr)
		}
		_ = next.Close()
		got := ln.Addr().(*net.TCPAddr)
		if !got.IP.Equal(want.Addr().(*net.TCPAddr).IP) || got.Port != claim.Addr().(*net.TCPAddr).Port {
			t.Errorf("%s: got %v, want one like %v", addr, got, want.Addr())
		}
		_ = ln.Close()
	}
	for _, addr := range []string{"127.0.0.1", "127.0.0.1:x", "203.0.113.1:0"} {
		if c, err := NewClaim(addr); err == nil {
			t.Errorf("%s is claimed as %v", addr, c.Addr())
		}
	}
}

func TestConnectionsInheritTheirOptions(t *testing.T) {
	ln, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	here, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	there, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	raw, err := there.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []struct{ level, name, want int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveIdle},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAliveInterval},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveCount},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	} {
		err := raw.Control(func(fd uintptr) {
			if got, err := unix.GetsockoptInt(int(fd), o.level, o.name); got != o.want || err != nil {
				t.Errorf("option %d of level %d is %d, want %d (%v)", o.name, o.level, got, o.want, err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkConnectionPerRequest is a connection, a request and its end; with
// and without what listeners of net.Listen cost on top.
func BenchmarkConnectionPerRequest(b *testing.B) {
	for name, listen := range map[string]func(string) (net.Listener, error){
		"Listen":     Listen,
		"net.Listen": func(addr string) (net.Listener, error) { return net.Listen("tcp", addr) },
	} {
		b.Run(name, func(b *testing.B) {
			ln, err := listen("127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			n := serveOn(b, ln, time.Second)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := askOnce(n.addr); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
