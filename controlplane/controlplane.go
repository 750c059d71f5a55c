// Package controlplane is the write path and the distribution path of a fleet.
//
// A write comes in at admin.go, is validated by proto/link and goes through
// internal/store into etcd, in one transaction, and is answered with its
// revision. Every replica watches etcd: internal/snapshot appends each revision
// to its log, encoded once, and feed.go sends it to each node's stream.
// fleet.go knows the nodes and what they serve, over all replicas.
//
// Replicas share nothing but etcd; any number of them may run, and any of them
// may be killed.
//
// Only affcontrol and programs that embed a control plane need this package;
// others talk gRPC, by the packages under proto/aff.
//
// A Server's methods may be called from any goroutine, Run once.
package controlplane

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/controlplane/internal/replica"
	"github.com/affleet/affleet/controlplane/internal/snapshot"
	"github.com/affleet/affleet/controlplane/internal/store"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// Config is a control plane's. Where a default is named, the zero value stands
// for it.
type Config struct {
	Etcd      []string // URLs of etcd members, at least one
	Listen    string   // host:port for gRPC. Default: :7070
	Advertise string   // host:port at which other replicas reach this one. Default: where it listens
	LogBytes  int64    // of changes kept in memory for nodes that lag. Default: 256 MB

	// What is held back until an operator has looked at it. Default: what
	// removes more than 0.2 of the links within a minute, or makes more than 10
	// times as many, where there are 1,000 or more. Negative: not guarded.
	GuardShrink, GuardGrow float64
	GuardFloor             int64
	// The most resources, and bytes of their keys and values. Default: no limit.
	MaxEntries, MaxBytes int64
	// Bytes of the name and the value of one resource that is written. Default,
	// and at most: 1 MiB, which nodes take by default, and cannot hold more than.
	// Nodes do not serve what is above their own limit; theirs goes up first, and
	// down last.
	MaxEntryBytes int

	Snapshots            int           // that are sent to nodes at once. Default: 16
	MaxStreams           int           // of nodes. Default: 20,000
	MaxStreamsPerAddress int           // of nodes at one address. Default: 10,000
	AuditInterval        time.Duration // about how often the state is compared with etcd. Default: 1 minute; negative: never

	Build      string                // the program's version
	Registerer prometheus.Registerer // default: none
	Log        *slog.Logger          // default: slog.Default()
}

// maxEntryBytes is what a node can hold of one resource. Etcd takes 1.5 MiB in a
// transaction, which has the name twice and who wrote it beside the value.
const maxEntryBytes = 1 << 20

// Validate says what is wrong with the settings, without touching anything.
func (c *Config) Validate() error {
	if len(c.Etcd) == 0 {
		return errors.New("etcd: at least one URL is needed, such as http://127.0.0.1:2379")
	}
	for _, url := range c.Etcd {
		if !strings.Contains(url, "://") {
			return fmt.Errorf("etcd: %q is no URL, such as http://127.0.0.1:2379", url)
		}
	}
	if c.Advertise != "" {
		if _, _, err := net.SplitHostPort(c.Advertise); err != nil {
			return fmt.Errorf("advertise: %q is not host:port", c.Advertise)
		}
	}
	if c.LogBytes < 0 {
		return errors.New("log-bytes: it must not be negative")
	}
	switch {
	case c.GuardShrink > 1:
		return fmt.Errorf("guard-shrink: %v is more than all links", c.GuardShrink)
	case c.GuardGrow > 0 && c.GuardGrow <= 1:
		return fmt.Errorf("guard-grow: %v would hold back every new link", c.GuardGrow)
	case c.MaxEntries < 0 || c.MaxBytes < 0:
		return errors.New("max-entries, max-bytes: they must not be negative")
	case c.MaxEntryBytes < 0 || c.MaxEntryBytes > maxEntryBytes:
		return fmt.Errorf("max-entry-bytes: %d is not 1 to %d bytes", c.MaxEntryBytes, maxEntryBytes)
	case c.Snapshots < 0 || c.MaxStreams < 0 || c.MaxStreamsPerAddress < 0:
		return errors.New("snapshots, max-streams, max-streams-per-address: they must not be negative")
	}
	return nil
}

// Server is a replica of the control plane.
type Server struct {
	cfg      Config
	ln       net.Listener
	etcd     *clientv3.Client
	log      *snapshot.Log
	fleet    *fleet
	feed     *feed
	replicas *replica.Directory
	caps     *caps
	grpc     *grpc.Server
	health   *health.Server
	grace    time.Duration // of calls, when it stops
}

// New opens the address. Nothing is answered before Run; a server that is not
// run must be closed. etcd need not be there.
func New(cfg Config) (_ *Server, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Listen == "" {
		cfg.Listen = ":7070"
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	s := &Server{cfg: cfg, health: health.NewServer(), grace: 500 * time.Millisecond}
	if s.ln, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, err
	}
	s.etcd, err = clientv3.New(clientv3.Config{
		Endpoints:            cfg.Etcd,
		DialTimeout:          5 * time.Second,
		DialKeepAliveTime:    5 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		DialOptions:          []grpc.DialOption{soonAgain},
		Logger:               zap.NewNop(), // what matters comes back as errors
	})
	if err != nil {
		_ = s.ln.Close()
		return nil, fmt.Errorf("etcd: %w", err)
	}
	if err := s.assemble(); err != nil {
		return nil, errors.Join(err, s.ln.Close(), s.etcd.Close())
	}
	return s, nil
}

// soonAgain makes a connection that is lost come back soon after its server
// does; by default an attempt may come only every two minutes.
var soonAgain = grpc.WithConnectParams(grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
	MinConnectTimeout: 5 * time.Second,
})

// findsOut makes streams from another replica end when that hangs: within 15 s.
// gRPC asks no sooner, and replicas take no more than a question every 5 s.
var findsOut = grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second})

// followed is the store as the log watches it: over a stream to etcd that no
// other watch has a part in. Etcd says how far a stream is only when all its
// watches are there, and one from the next revision on is not until something is
// written.
type followed struct{ *store.Store }

// Watch is the store's.
func (f followed) Watch(ctx context.Context, after int64) iter.Seq2[store.Batch, error] {
	return f.Store.Watch(alone(ctx), after)
}

// alone makes etcd's client, which has a stream for each outgoing metadata, use
// the log's.
func alone(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "aff-watch", "log")
}

// assemble joins the parts. It touches nothing outside of the process.
func (s *Server) assemble() (err error) {
	resources := store.New(s.etcd)
	resources.LimitEntries(cmp.Or(s.cfg.MaxEntryBytes, maxEntryBytes))
	s.log = snapshot.New(followed{resources}, snapshot.Config{
		LogBytes: s.cfg.LogBytes,
		Guard: snapshot.Guard{
			Shrink: s.cfg.GuardShrink, Grow: s.cfg.GuardGrow, Floor: s.cfg.GuardFloor,
			// Writes are refused at the limits themselves; those under way
			// then need not be held back.
			MaxEntries: s.cfg.MaxEntries + s.cfg.MaxEntries/20, MaxBytes: s.cfg.MaxBytes + s.cfg.MaxBytes/20,
		},
		AuditInterval: s.cfg.AuditInterval,
		Progress:      func(ctx context.Context) error { return s.etcd.RequestProgress(clientv3.WithRequireLeader(alone(ctx))) },
		Logger:        s.cfg.Log,
		Registerer:    s.cfg.Registerer,
	})
	resources.Know(s.log.Known)
	id := strings.ToLower(rand.Text()[:8])
	s.replicas, err = replica.New(s.etcd, replica.Config{ID: id, Address: s.advertised(), Logger: s.cfg.Log})
	if err != nil {
		return err
	}
	s.fleet = newFleet(s.log, fleetConfig{
		Replica:    id,
		Build:      s.cfg.Build,
		Operations: resources,
		Peers:      s.replicas,
		Dial: func(address string) (*grpc.ClientConn, error) {
			return grpc.NewClient(address, soonAgain, findsOut, grpc.WithTransportCredentials(insecure.NewCredentials()))
		},
		Logger: s.cfg.Log,
	})

	metrics := grpcprom.NewServerMetrics()
	if s.cfg.Registerer != nil {
		s.cfg.Registerer.MustRegister(metrics)
	}
	recovered := recovery.WithRecoveryHandlerContext(s.recovered)
	feeding := feedConfig{
		Snapshots: s.cfg.Snapshots, MaxStreams: s.cfg.MaxStreams, MaxStreamsPerAddress: s.cfg.MaxStreamsPerAddress,
		Logger: s.cfg.Log, Registerer: s.cfg.Registerer,
	}
	s.grpc = grpc.NewServer(append(feedServerOptions(feeding),
		grpc.ChainUnaryInterceptor(metrics.UnaryServerInterceptor(), recovery.UnaryServerInterceptor(recovered)),
		grpc.ChainStreamInterceptor(countCalls(metrics.StreamServerInterceptor()), recovery.StreamServerInterceptor(recovered)),
		grpc.MaxRecvMsgSize(16<<20),
		grpc.WaitForHandlers(true), // when it is stopped, nothing uses etcd any more
	)...)
	s.feed = newFeed(s.log, s.fleet, feeding)
	s.grpc.RegisterService(receiving(feedv1.FeedService_ServiceDesc), s.feed)
	s.caps = newCaps(resources, s.cfg.Log)
	s.grpc.RegisterService(receiving(feedv1.CapService_ServiceDesc), s.caps)
	s.grpc.RegisterService(receiving(adminv1.FleetService_ServiceDesc), s.fleet)
	s.grpc.RegisterService(receiving(adminv1.LinkService_ServiceDesc), newAdmin(resources, s.epoch(resources),
		&gate{log: s.log, maxEntries: s.cfg.MaxEntries, maxBytes: s.cfg.MaxBytes}))
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	metrics.InitializeMetrics(s.grpc)
	s.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	return nil
}

// countCalls counts the messages of all streams but the nodes': the feed has
// counters of its own, and two calls more for each message would be a tenth of
// what it costs.
func countCalls(counting grpc.StreamServerInterceptor) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if info.FullMethod != feedv1.FeedService_Subscribe_FullMethodName {
			return counting(srv, stream, info, handler)
		}
		return counting(srv, stream, info, func(srv any, _ grpc.ServerStream) error { return handler(srv, stream) })
	}
}

// recovered keeps a defect in one call from ending the others.
func (s *Server) recovered(_ context.Context, panicked any) error {
	s.cfg.Log.Error("BUG: a call panicked", "panic", panicked, "stack", string(debug.Stack()))
	return status.Error(codes.Internal, "internal error")
}

// epoch gives the epoch that the replica serves, and asks etcd before it has a
// state.
func (s *Server) epoch(resources *store.Store) func(context.Context) (uint64, error) {
	return func(ctx context.Context) (uint64, error) {
		if epoch := s.log.Head().Epoch; epoch != 0 {
			return epoch, nil
		}
		return resources.Epoch(ctx)
	}
}

// advertised is where other replicas reach this one. A wildcard address is of
// no use to them: the machine's first address that is not loopback stands in.
func (s *Server) advertised() string {
	if s.cfg.Advertise != "" {
		return s.cfg.Advertise
	}
	listen := s.ln.Addr().(*net.TCPAddr)
	if !listen.IP.IsUnspecified() {
		return listen.String()
	}
	ip := net.IPv4(127, 0, 0, 1)
	addrs, _ := net.InterfaceAddrs() // without them, loopback it is
	for _, addr := range addrs {
		if n, ok := addr.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			ip = n.IP
			break
		}
	}
	return net.JoinHostPort(ip.String(), strconv.Itoa(listen.Port))
}

// Addr is the address for gRPC.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Ready is closed once the replica has read the state from etcd.
func (s *Server) Ready() <-chan struct{} { return s.log.Ready() }

// Healthy says whether the replica can serve nodes, and else why not.
func (s *Server) Healthy() error {
	select {
	case <-s.log.Ready():
		return nil
	default:
		return fmt.Errorf("no state yet: waiting for etcd at %s", strings.Join(s.cfg.Etcd, ","))
	}
}

// Close gives back what New has opened, for a server that is not run.
func (s *Server) Close() error {
	s.grpc.Stop()
	s.fleet.close()
	return errors.Join(s.ln.Close(), s.etcd.Close())
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	s.cfg.Log.Info("control plane starts", "listen", s.Addr().String(), "advertise", s.advertised(), "etcd", s.cfg.Etcd, "build", s.cfg.Build)
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error {
		select {
		case <-s.replicas.Listed(): // no node connects before the others can ask for it
			return s.log.Run(ctx)
		case <-ctx.Done():
			return nil
		}
	})
	parts.Go(func() error { return s.replicas.Run(ctx) })
	answering, answered := context.WithCancel(context.WithoutCancel(ctx)) // calls for leases, until there are none
	parts.Go(func() error { return s.caps.run(answering) })
	parts.Go(func() error {
		s.feed.run(ctx)
		return nil
	})
	parts.Go(func() error {
		select {
		case <-s.log.Ready():
			s.health.SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
		case <-ctx.Done():
		}
		return nil
	})
	parts.Go(func() error {
		<-ctx.Done()
		s.cfg.Log.Info("control plane stops")
		s.health.Shutdown()
		s.stopGRPC()
		answered()
		return nil
	})
	parts.Go(func() error { return s.grpc.Serve(s.doors()) })
	err := parts.Wait()
	s.fleet.close()
	if closed := s.etcd.Close(); err == nil && !errors.Is(closed, context.Canceled) {
		err = closed
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// doors is the listener, with as many connections as there may be streams, and
// some more.
func (s *Server) doors() net.Listener {
	cfg := &s.feed.cfg
	return newDoors(s.ln.(*net.TCPListener), cfg.MaxStreams+othersInAll, cfg.MaxStreamsPerAddress+othersEach)
}

// stopGRPC lets calls end for a moment. Streams of nodes do not end by
// themselves: they are cut, and the nodes go to another replica.
func (s *Server) stopGRPC() {
	cut := time.AfterFunc(s.grace, s.grpc.Stop)
	defer cut.Stop()
	s.grpc.GracefulStop()
}
