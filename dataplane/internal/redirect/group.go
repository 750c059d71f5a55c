package redirect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// group is the connections of one listener.
type group struct {
	srv      *Server
	tls      *tls.Config // nil: no TLS
	h2       *http2      // with tls
	draining atomic.Bool
	woken    sync.Once
	running  sync.WaitGroup // connections
	loops    []*loop        // constant while it serves; none: all connections have goroutines
	deaf     atomic.Bool    // loops accept what is there, and no more
	hushed   sync.WaitGroup // loops that still accept
	unbegun  sync.WaitGroup // loops that have no thread yet
	over     atomic.Bool    // loops end
	mayRise  atomic.Bool    // loops may change their nice value
	failed   chan error     // why a loop cannot accept; has room for one

	othersNice int // of threads that are no loop's, once mayRise

	mu      sync.Mutex
	conns   map[*conn]struct{}
	cutting bool // what is still there is closed
}

// lastAccepts bounds the time to accept what the kernel has established.
const lastAccepts = 300 * time.Millisecond

// serve is Serve for this group.
func (g *group) serve(ctx context.Context, ln net.Listener, drain time.Duration) error {
	g.srv.begin()
	defer g.srv.end()
	tcp, _ := ln.(*net.TCPListener)
	last := min(lastAccepts, drain/10)
	if tcp != nil && g.tls == nil && g.srv.cfg.Loops > 0 && g.srv.cfg.Loops < runtime.GOMAXPROCS(0) {
		if served, err := g.serveLoops(ctx, tcp, last, drain); served {
			return err
		}
	}
	if tcp == nil {
		last = 0
	}
	stop := context.AfterFunc(ctx, func() {
		g.wake()
		if last == 0 {
			_ = ln.Close()
			return
		}
		turnAway(tcp)
		_ = tcp.SetDeadline(time.Now().Add(last))
	})
	err := g.accept(ctx, ln)
	stop()
	_ = ln.Close()
	g.wake()
	var both sync.WaitGroup
	if g.h2 != nil {
		both.Go(func() { g.h2.shutdown(drain - last) })
	}
	g.drain(drain - last)
	both.Wait()
	if ctx.Err() == nil {
		return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
	}
	return nil
}

// wake begins to drain: connections end when they have nothing left to answer.
func (g *group) wake() {
	g.woken.Do(func() {
		g.draining.Store(true)
		g.nudge()
		g.each(func(c *conn) {
			if !c.apart.Load() {
				_ = c.socket.SetReadDeadline(past)
			}
		})
	})
}

// accept starts a goroutine for each connection until ln fails for good.
func (g *group) accept(ctx context.Context, ln net.Listener) error {
	var pause time.Duration
	for {
		nc, err := ln.Accept()
		if err == nil {
			pause = 0
			g.start(nc)
			runtime.Gosched() // many at once must not hold up those that are there
			continue
		}
		if !passing(err) {
			return err
		}
		g.srv.conns.acceptErrors.Add(1)
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			time.Sleep(5 * time.Millisecond) // not more often than that to the end
		}
	}
}

// passing says of an accept error whether the next one may succeed.
func passing(err error) bool {
	for _, e := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED,
		syscall.EPROTO, syscall.EPERM,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// start serves a connection if the limits allow.
func (g *group) start(nc net.Conn) {
	c := &conn{srv: g.srv, group: g, socket: nc, nc: nc, addr: addrOf(nc)}
	if !g.enter(c) {
		_ = nc.Close()
		return
	}
	go c.serve()
}

// enter takes a new connection up, of which the address is known, if the limits
// allow.
func (g *group) enter(c *conn) bool {
	s := g.srv
	trusted := len(s.cfg.TrustedProxies) > 0 && s.trust.trusts(c.addr)
	if !trusted {
		c.client = clientOf(c.addr)
	}
	if !g.admitted(s.limits.admit(c.client)) {
		return false
	}
	c.expectProxy = trusted && s.cfg.ProxyProtocol
	c.believed = trusted && s.cfg.ForwardedHeader != NoForwardedHeader
	c.apart.Store(c.expectProxy || g.tls != nil || c.loop != nil)
	s.conns.accepted.Add(1)
	g.running.Add(1)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns[c] = struct{}{}
	return true
}

// admitted counts a connection that the limits forbid.
func (g *group) admitted(a admission) bool {
	switch a {
	case overLimit:
		g.srv.conns.overLimit.Add(1)
	case overAddrLimit:
		g.srv.conns.overAddrLimit.Add(1)
	}
	return a == admitted
}

// finish closes a connection and forgets it.
func (g *group) finish(c *conn) {
	_ = c.nc.Close()
	g.forget(c)
}

// forget forgets a connection that is closed.
func (g *group) forget(c *conn) {
	g.mu.Lock()
	delete(g.conns, c)
	g.mu.Unlock()
	g.srv.limits.release(c.client)
	g.running.Done()
}

// drain waits until all connections have ended, and closes those that are
// still there after limit.
func (g *group) drain(limit time.Duration) {
	done := make(chan struct{})
	go func() {
		g.running.Wait()
		close(done)
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return
	case <-timer.C:
	}
	g.mu.Lock()
	g.cutting = true
	g.mu.Unlock()
	g.each(func(c *conn) {
		g.srv.conns.cut.Add(1)
		if c.socket != nil {
			_ = c.socket.Close()
		}
	})
	g.nudge() // loops close theirs
	<-done
}

// cuts says that connections are cut off.
func (g *group) cuts() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cutting
}

// settle gives a connection that was a loop's its socket, which the group may
// close from then on.
func (g *group) settle(c *conn, nc net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.socket, c.nc = nc, nc
	if g.cutting {
		_ = nc.Close()
	}
}

// unsettle takes it away again: the loop closes the connection from then on.
func (g *group) unsettle(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.socket = nil
}

// nudge makes the loops look at what the group wants.
func (g *group) nudge() {
	for _, l := range g.loops {
		l.nudge()
	}
}

func (g *group) each(f func(*conn)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		f(c)
	}
}
