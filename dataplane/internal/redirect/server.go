package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/table"
)

// Config is a Server's. The zero values of the optional fields work.
type Config struct {
	Live   *table.Live     // Required. While it holds no table, requests get 503
	Clicks *click.Recorder // Required. Records every redirect before it is written

	MaxHead      int           // bytes of a request head, at least 1 KiB. Default: 16 KiB
	HeadTimeout  time.Duration // from a head's first byte to its last. Default: 5 s
	IdleTimeout  time.Duration // without a request. Default: 75 s
	WriteTimeout time.Duration // until a client has read its answers. Default: 10 s

	// Connections at a time; one more is closed at once. Default: 65,536, but at
	// most three quarters of the descriptors that the process may open.
	MaxConns int
	// Connections at a time from one IPv4 address or IPv6 /64. Behind a load
	// balancer, whose address is then everybody's, set it to MaxConns. Default: a
	// quarter of MaxConns.
	MaxConnsPerAddr int

	Registerer prometheus.Registerer // optional
}

const minHead = 1 << 10

func (c *Config) setDefaults() error {
	defaults := []struct {
		d       *time.Duration
		name    string
		regular time.Duration
	}{
		{&c.HeadTimeout, "head", 5 * time.Second},
		{&c.IdleTimeout, "idle", 75 * time.Second},
		{&c.WriteTimeout, "write", 10 * time.Second},
	}
	for _, t := range defaults {
		if *t.d == 0 {
			*t.d = t.regular
		}
		if *t.d < 0 {
			return fmt.Errorf("%s timeout %v: it must be positive", t.name, *t.d)
		}
	}
	if c.MaxHead == 0 {
		c.MaxHead = 16 << 10
	}
	if c.MaxConns == 0 {
		c.MaxConns = min(65536, descriptors()/4*3)
	}
	if c.MaxConnsPerAddr == 0 {
		c.MaxConnsPerAddr = max(1, c.MaxConns/4)
	}
	switch {
	case c.Live == nil:
		return errors.New("a live table is required")
	case c.Clicks == nil:
		return errors.New("a click recorder is required")
	case c.MaxHead < minHead:
		return fmt.Errorf("a head of at most %d bytes: at least %d must be allowed", c.MaxHead, minHead)
	case c.MaxConns < 0 || c.MaxConnsPerAddr < 0:
		return errors.New("a limit of connections must not be negative")
	}
	return nil
}

// descriptors gives how many files this process may have open.
func descriptors() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return int(min(limit.Cur, 1<<30))
}

// Server answers redirects on any number of listeners.
type Server struct {
	cfg    Config
	clock  *clock
	works  sync.Pool // of *work
	limits limits
	conns  connCounts
	counts [countBlocks]counts
	block  atomic.Uint32 // the next work's block of counts
}

const countBlocks = 32

// New checks the settings. Nothing runs before Serve.
func New(cfg Config) (*Server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("redirect settings: %w", err)
	}
	s := &Server{cfg: cfg, clock: newClock()}
	s.works.New = s.newWork
	s.limits = limits{max: cfg.MaxConns, maxPerAddr: cfg.MaxConnsPerAddr, byAddr: map[netip.Prefix]int{}}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(collector{s}); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return s, nil
}

func (s *Server) nextCounts() *counts { return &s.counts[s.block.Add(1)%countBlocks] }

// Serve answers the connections of ln, and closes it in the end. When ctx ends
// it stops accepting, closes idle connections, and answers what is in flight
// with "Connection: close"; what is not done after the time to drain is cut
// off. It gives nil then, and an error if ln fails before. It may be called
// for several listeners at a time.
func (s *Server) Serve(ctx context.Context, ln net.Listener, drain time.Duration) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	g := &group{srv: s, conns: map[*conn]struct{}{}}
	err := g.accept(ctx, ln)
	_ = ln.Close()
	g.drain(drain)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
}

// group is the connections of one listener.
type group struct {
	srv      *Server
	draining atomic.Bool
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[*conn]struct{}
}

// accept starts a goroutine for each connection until ln fails for good.
func (g *group) accept(ctx context.Context, ln net.Listener) error {
	var pause time.Duration
	for {
		nc, err := ln.Accept()
		if err == nil {
			pause = 0
			g.start(nc)
			continue
		}
		if !passing(err) || ctx.Err() != nil {
			return err
		}
		g.srv.conns.acceptErrors.Add(1)
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
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
	addr := addrOf(nc)
	counts := &g.srv.conns
	switch g.srv.limits.admit(addr) {
	case overLimit:
		counts.overLimit.Add(1)
		_ = nc.Close()
		return
	case overAddrLimit:
		counts.overAddrLimit.Add(1)
		_ = nc.Close()
		return
	}
	counts.accepted.Add(1)
	c := &conn{srv: g.srv, group: g, nc: nc, addr: addr}
	g.mu.Lock()
	g.conns[c] = struct{}{}
	g.mu.Unlock()
	g.running.Add(1)
	go c.serve()
}

// finish closes a connection and forgets it.
func (g *group) finish(c *conn) {
	_ = c.nc.Close()
	g.mu.Lock()
	delete(g.conns, c)
	g.mu.Unlock()
	g.srv.limits.release(c.addr)
	g.running.Done()
}

// drain wakes all connections so that they end when they have nothing left to
// answer, and closes those that are still there after limit.
func (g *group) drain(limit time.Duration) {
	g.draining.Store(true)
	g.each(func(c *conn) { _ = c.nc.SetReadDeadline(past) })
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
	g.each(func(c *conn) {
		g.srv.conns.cut.Add(1)
		_ = c.nc.Close()
	})
	<-done
}

func (g *group) each(f func(*conn)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		f(c)
	}
}
