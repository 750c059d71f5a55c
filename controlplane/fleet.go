package controlplane

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/affleet/affleet/controlplane/internal/replica"
	"github.com/affleet/affleet/controlplane/internal/snapshot"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	"github.com/affleet/affleet/proto/link"
)

// peers are the other replicas. *replica.Directory is one.
type peers interface {
	Peers() []replica.Peer
	Changed() <-chan struct{}
	Refresh(ctx context.Context) error
	Revision() int64
	PeersAndLeft() (peers, left []replica.Peer)
	Forget(replica.Peer)
}

// fleetConfig says who this replica is and how it reaches the others.
type fleetConfig struct {
	// This replica's id, as nodes are shown with it. Required.
	Replica string
	// The program's version.
	Build string
	// What operators say is kept here. Required.
	Operations operations
	// Default: there are no others.
	Peers peers
	// How another replica is dialed. Required when there are Peers.
	Dial func(address string) (*grpc.ClientConn, error)
	// How long another replica may take to answer. Default: 1 s.
	PeerTimeout time.Duration
	// Default: slog.Default().
	Logger *slog.Logger
}

// fleet is the FleetService, and the registry of the nodes that are connected
// to this replica. All of it may be used from any goroutine.
type fleet struct {
	adminv1.UnimplementedFleetServiceServer
	cfg   fleetConfig
	log   *snapshot.Log
	conns conns

	mu      sync.Mutex
	nodes   map[string]*member // by name
	waiters map[*waiter]struct{}
}

// waiter is who waits for a change of nodes. fleet.mu guards the rest of it.
type waiter struct {
	woken chan struct{} // holds one wake
	// It waits for what nodes serve, and for at least so many reports of that:
	// it is not woken for the others.
	reports int  // 0: it waits for any change
	each    bool // it is to be woken by each report
}

// change is what happened to a node.
type change uint8

const (
	moved  change = iota // it came or went
	served               // it serves something else
	told                 // what else is shown of it is another
)

// member is a connected node. What changes is guarded by fleet.mu.
type member struct {
	name, region, listen, build string
	connected                   time.Time
	superseded                  chan struct{} // closed when another stream has the name

	version       snapshot.Version
	hash          link.SetHash
	downed        span // what it refuses, beside what it does not serve
	lastRejection string
	guards        bool // it holds back by its own guard what it was sent last
	links, spool  int64
	unserved      int64
	rate          float64
}

// newFleet makes the FleetService. close frees its connections.
func newFleet(log *snapshot.Log, cfg fleetConfig) *fleet {
	if cfg.PeerTimeout <= 0 {
		cfg.PeerTimeout = time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &fleet{
		cfg: cfg, log: log, conns: conns{dial: cfg.Dial},
		nodes: make(map[string]*member), waiters: make(map[*waiter]struct{}),
	}
}

// join registers a node. A node of the same name is superseded.
func (f *fleet) join(hello *feedv1.Hello) *member {
	m := &member{
		name: hello.GetNode(), region: hello.GetRegion(), listen: hello.GetListenAddress(), build: hello.GetBuild(),
		connected: time.Now(), superseded: make(chan struct{}),
		version: versionOf(hello.GetVersion()), hash: hashOf(hello.GetSetHash()),
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.nodes[m.name]; old != nil {
		close(old.superseded)
		m.lastRejection = old.lastRejection
	}
	f.nodes[m.name] = m
	f.wake(moved)
	return m
}

// leave takes a node off, unless another stream has its name.
func (f *fleet) leave(m *member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.nodes[m.name] == m {
		delete(f.nodes, m.name)
		f.wake(moved)
	}
}

// applied notes what a node serves.
func (f *fleet) applied(m *member, v snapshot.Version, hash link.SetHash, links int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.version, m.hash, m.links, m.guards = v, hash, links, false
	f.wake(served)
}

// rejected notes why a node did not take a frame, and whether that was its guard.
func (f *fleet) rejected(m *member, reason string, guards bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.lastRejection, m.guards = reason, guards
	f.wake(told)
}

// takenDown notes what a node refuses that was taken down.
func (f *fleet) takenDown(m *member, refused span) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.downed = refused
	f.wake(served)
}

// status notes how a node fares.
func (f *fleet) status(m *member, s *feedv1.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.links, m.rate, m.spool = s.GetLinks(), s.GetRequestsPerSecond(), s.GetSpoolClicks()
	m.unserved = s.GetUnservedEntries()
	if versionOf(s.GetVersion()) == m.version {
		m.hash = hashOf(s.GetSetHash())
	}
	f.wake(told)
}

// wake wakes who waits for a change. f.mu is held.
func (f *fleet) wake(c change) {
	for w := range f.waiters {
		switch {
		case w.reports > 0 && c == told:
		case w.reports > 1 && c == served:
			w.reports--
		default:
			poke(w.woken)
		}
	}
}

// poke leaves one wake in a channel.
func poke(w chan struct{}) {
	select {
	case w <- struct{}{}:
	default:
	}
}

// watch gives a waiter that is woken by every change of the nodes until stop is
// called.
func (f *fleet) watch() (w *waiter, stop func()) {
	w = &waiter{woken: make(chan struct{}, 1)}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiters[w] = struct{}{}
	return w, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.waiters, w)
	}
}

// local are the nodes of this replica, in no order.
func (f *fleet) local(region string) []*adminv1.Node {
	view, now := f.log.View(), time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	nodes := make([]*adminv1.Node, 0, len(f.nodes))
	for _, m := range f.nodes {
		if region == "" || m.region == region {
			nodes = append(nodes, m.show(view, now, f.cfg.Replica))
		}
	}
	return nodes
}

// show is a node as users see it. fleet.mu is held.
func (m *member) show(view *snapshot.View, now time.Time, replica string) *adminv1.Node {
	n := &adminv1.Node{
		Name: m.name, Region: m.region, Version: versionProto(m.version), LastRejection: m.lastRejection,
		Links: m.links, RequestsPerSecond: m.rate, SpoolClicks: m.spool,
		ConnectTime: timestamppb.New(m.connected), Replica: replica, ListenAddress: m.listen, Build: m.build,
		Lag: durationpb.New(0), UnservedEntries: m.unserved,
	}
	if m.downed.has(m.version.Epoch, m.downed.upTo) && m.downed.upTo > m.version.Revision {
		n.TakenDownRevision = m.downed.upTo
	}
	hash, known := view.HashAt(m.version)
	n.SetHashMatch = known && hash == m.hash
	revisions, since := view.Lag(m.version)
	if n.LagRevisions = revisions; revisions > 0 {
		n.Lag = durationpb.New(max(now.Sub(since), 0))
	}
	return n
}

// alarms are what an operator has to look at of this replica.
func (f *fleet) alarms() []string {
	all := f.log.Alarms()
	if !f.log.Following() {
		all = append(all, "replica "+f.cfg.Replica+" does not reach etcd: it takes no writes, and its nodes get none, however little they seem to lag; is etcd running?")
	}
	return all
}

// each gives each alarm once: replicas have most of them in common.
func each(lists ...[]string) (all []string) {
	for _, alarm := range slices.Concat(lists...) {
		if !slices.Contains(all, alarm) {
			all = append(all, alarm)
		}
	}
	return all
}

// merge puts the nodes of several replicas into their order. A node that two
// replicas list is where it connected last.
func merge(lists ...[]*adminv1.Node) []*adminv1.Node {
	all := slices.Concat(lists...)
	slices.SortFunc(all, func(a, b *adminv1.Node) int {
		return cmp.Or(strings.Compare(a.GetName(), b.GetName()),
			b.GetConnectTime().AsTime().Compare(a.GetConnectTime().AsTime()))
	})
	all = slices.CompactFunc(all, func(a, b *adminv1.Node) bool { return a.GetName() == b.GetName() })
	slices.SortFunc(all, func(a, b *adminv1.Node) int {
		return cmp.Or(strings.Compare(a.GetRegion(), b.GetRegion()), strings.Compare(a.GetName(), b.GetName()))
	})
	return all
}

// ListNodes implements adminv1.FleetServiceServer.
func (f *fleet) ListNodes(ctx context.Context, req *adminv1.ListNodesRequest) (*adminv1.ListNodesResponse, error) {
	var lists [][]*adminv1.Node
	var others []string
	if !localOnly(ctx) {
		peers, listed := f.peersAndLeft()
		lists, others = f.listPeers(ctx, req, peers, listed)
	}
	return &adminv1.ListNodesResponse{
		Nodes: merge(append(lists, f.local(req.GetRegion()))...), Head: versionProto(f.log.Head()), Alarms: each(f.alarms(), others),
	}, nil
}

// WatchNodes implements adminv1.FleetServiceServer.
func (f *fleet) WatchNodes(req *adminv1.WatchNodesRequest, stream grpc.ServerStreamingServer[adminv1.WatchNodesResponse]) error {
	interval := time.Second
	if d := req.GetInterval(); d != nil {
		interval = d.AsDuration()
		if d.CheckValid() != nil || interval < 100*time.Millisecond {
			return status.Error(codes.InvalidArgument, "interval: at least 100ms")
		}
	}
	ctx := stream.Context()
	w, stop := f.watch()
	defer stop()
	var others peerNodes
	if !localOnly(ctx) {
		ctx, cancel := context.WithCancel(ctx)
		watching := f.watchPeers(ctx, req, interval, &others, w.woken)
		defer watching.Wait()
		defer cancel()
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select { // at most once per interval
		case <-ctx.Done():
			return ctx.Err()
		case <-pause.C:
		}
		moved := f.log.Changed()
		lists, alarms := others.lists()
		nodes := merge(append(lists, f.local(req.GetRegion()))...)
		if err := stream.Send(&adminv1.WatchNodesResponse{
			Nodes: nodes, Head: versionProto(f.log.Head()), Alarms: each(f.alarms(), alarms),
		}); err != nil {
			return err
		}
		pause.Reset(interval)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.woken:
		case <-moved:
		}
	}
}
