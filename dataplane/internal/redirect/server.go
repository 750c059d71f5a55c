package redirect

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Server answers redirects on any number of listeners.
type Server struct {
	cfg   Config
	trust trust
	geo   *geoNames
	// Whether clicks have a country: there are databases, or proxies that say.
	knowsPlaces bool
	clock       *clock
	works       sync.Pool // of *work
	limits      limits
	conns       connCounts
	certs       atomic.Pointer[Certs] // of ServeTLS
	only        atomic.Pointer[loop]  // nil unless all that serves, and has since it began, is one loop
	mu          sync.Mutex
	groups      int // that serve
	counts      [countBlocks]counts
	block       atomic.Uint32 // the next work's block of counts
}

const countBlocks = 32

// New checks the settings. Nothing runs before Serve.
func New(cfg Config) (*Server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("redirect settings: %w", err)
	}
	s := &Server{cfg: cfg, clock: newClock()}
	s.trust = trust{proxies: cfg.TrustedProxies, header: cfg.ForwardedHeader}
	s.geo = newGeoNames(cfg.GeoHeaders)
	s.knowsPlaces = s.geo != nil || cfg.Sources.HasGeo()
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

// begin notes that one more group serves.
func (s *Server) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups++
	s.only.Store(nil)
}

// end notes that a group is over.
func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups--
	s.only.Store(nil)
}

// lone notes that a group has one loop, which is all if it is the only group.
func (s *Server) lone(l *loop) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.groups == 1 {
		s.only.Store(l)
	}
}

// Serve answers the connections of ln, and closes it in the end. When ctx ends
// it stops accepting, closes idle connections, and answers what is in flight
// with "Connection: close"; what is not done after the time to drain is cut
// off. It gives nil then, and an error if ln fails before. It may be called
// for several listeners at a time.
//
// Connections that the kernel has established, but that were not accepted yet,
// are in flight as well: for a moment after the end of ctx, at most a tenth of
// the time to drain, the kernel takes no new ones (their clients try again
// within a second, and find who listens then) and Serve accepts what is left.
func (s *Server) Serve(ctx context.Context, ln net.Listener, drain time.Duration) error {
	g := &group{srv: s, conns: map[*conn]struct{}{}}
	return g.serve(ctx, ln, drain)
}

// ServeTLS does the same for connections with TLS. HTTP/1 over TLS runs in the
// same loop as without; HTTP/2 is net/http's, and only the answers are this
// package's. The certificates are read again when they change for as long as
// it serves.
func (s *Server) ServeTLS(ctx context.Context, ln net.Listener, certs *Certs, drain time.Duration) error {
	s.certs.Store(certs)
	g := &group{srv: s, conns: map[*conn]struct{}{}}
	g.tls = tlsConfig(g, certs)
	g.h2 = newHTTP2(s)
	watching, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { certs.watch(watching, s.cfg.Report) })
	running.Go(g.h2.run)
	err := g.serve(ctx, ln, drain)
	stop()
	running.Wait()
	return err
}
