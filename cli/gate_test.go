package cli_test

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// gate is a way to NATS on which so many bytes come from there, and then nothing
// more until it lets some through.
type gate struct {
	url, to string
	running sync.WaitGroup

	mu   sync.Mutex
	more *sync.Cond
	left int64
	shut bool
	all  []net.Conn
}

func openGate(t *testing.T, nats string) *gate {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{url: "nats://" + ln.Addr().String(), to: strings.TrimPrefix(nats, "nats://")}
	g.more = sync.NewCond(&g.mu)
	g.running.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", g.to)
			if err != nil {
				_ = near.Close()
				continue
			}
			g.mu.Lock()
			g.all = append(g.all, near, far)
			g.mu.Unlock()
			g.running.Go(func() {
				_, _ = io.Copy(far, near) // either end may end it
				_ = far.Close()
			})
			g.running.Go(func() {
				g.pass(near, far)
				_ = near.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		g.mu.Lock()
		g.shut = true
		for _, c := range g.all {
			_ = c.Close()
		}
		g.more.Broadcast()
		g.mu.Unlock()
		g.running.Wait()
	})
	return g
}

// let lets so many bytes through, of those that come from now on.
func (g *gate) let(bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = bytes
	g.more.Broadcast()
}

func (g *gate) pass(to io.Writer, from io.Reader) {
	b := make([]byte, 4<<10)
	for {
		n, err := from.Read(b)
		g.mu.Lock()
		for g.left <= 0 && !g.shut && n > 0 {
			g.more.Wait()
		}
		g.left -= int64(n)
		g.mu.Unlock()
		if _, failed := to.Write(b[:n]); failed != nil || err != nil {
			return
		}
	}
}
