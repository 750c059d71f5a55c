package controlplane

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/affleet/affleet/controlplane/internal/snapshot"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// feedConfig is how the feed works. The zero value works.
type feedConfig struct {
	// Time between heartbeats while nothing else is sent. Default: 5 s.
	Heartbeat time.Duration
	// How long a node that is ahead of this replica is kept waiting before it
	// is sent away. Default: 1 s.
	CatchUp time.Duration
	// How long a node that rejected a snapshot is left alone; doubled each
	// time, up to 32 times. Default: 10 s.
	RetryRejected time.Duration
	// How many snapshots are sent at once. Default: 16.
	Snapshots int
	// After how long a snapshot that is being sent no longer counts: its node
	// reads slowly. Default: 10 s.
	SnapshotTime time.Duration
	// How many streams there may be. Default: 20,000.
	MaxStreams int
	// How many of them may come from one address. Default: 10,000.
	MaxStreamsPerAddress int
	// How many bytes that a node may not have read are no reason to take care.
	// Default: 16 kB.
	MaxUnread int
	// How long a stream may take to say Hello. Default: 5 s.
	HelloTimeout time.Duration
	// After how long a connection on which nothing comes is asked whether anybody
	// is there, and how long an answer may take until it is closed. Default: 20 s,
	// 10 s.
	AskAfter, AnswerTimeout time.Duration
	// Default: slog.Default().
	Logger *slog.Logger
	// Default: none.
	Registerer prometheus.Registerer
}

// feed is the FeedService: one cursor in the log per stream.
type feed struct {
	feedv1.UnimplementedFeedServiceServer
	log     *snapshot.Log
	fleet   *fleet
	cfg     feedConfig
	admit   *admission
	fan     *fanout
	metrics feedMetrics

	toldBehind atomic.Int64 // when the log was told that a node was sent away, Unix ns
}

// newFeed makes the FeedService, whose streams are told of what is new while run
// runs. The server it is registered with needs feedServerOptions.
func newFeed(log *snapshot.Log, fleet *fleet, cfg feedConfig) *feed {
	if cfg.Heartbeat <= 0 {
		cfg.Heartbeat = 5 * time.Second
	}
	if cfg.CatchUp <= 0 {
		cfg.CatchUp = time.Second
	}
	if cfg.RetryRejected <= 0 {
		cfg.RetryRejected = 10 * time.Second
	}
	if cfg.Snapshots <= 0 {
		cfg.Snapshots = 16
	}
	if cfg.SnapshotTime <= 0 {
		cfg.SnapshotTime = 10 * time.Second
	}
	if cfg.MaxStreams <= 0 {
		cfg.MaxStreams = 20_000
	}
	if cfg.MaxStreamsPerAddress <= 0 {
		cfg.MaxStreamsPerAddress = 10_000
	}
	if cfg.MaxUnread <= 0 {
		cfg.MaxUnread = defaultUnread
	}
	if cfg.HelloTimeout <= 0 {
		cfg.HelloTimeout = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	f := &feed{log: log, fleet: fleet, cfg: cfg, admit: newAdmission(&cfg), fan: newFanout(log, cfg.Heartbeat)}
	f.metrics.register(cfg.Registerer)
	return f
}

// maxCalls bounds the calls of one connection: of a node there are two, of another
// replica as many as wait for its nodes.
const maxCalls = 10_000

// run serves the streams until ctx ends.
func (f *feed) run(ctx context.Context) { f.fan.run(ctx) }

// feedServerOptions are what a server of the feed needs: the codec that sends
// shared bytes, keepalive that finds nodes which are gone without a word, and
// what keeps thousands of connections cheap. Windows of a fixed size: to
// estimate one, gRPC would send a ping for every acknowledgement, which doubles
// what one costs. Write buffers are shared, as is gRPC's default: between two
// frames, a stream has none.
func feedServerOptions(cfg feedConfig) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: cmp.Or(cfg.AskAfter, 20*time.Second), Timeout: cmp.Or(cfg.AnswerTimeout, 10*time.Second), MaxConnectionIdle: 30 * time.Minute,
		}),
		grpc.MaxConcurrentStreams(maxCalls),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.StaticStreamWindowSize(1 << 20), // of imports: nodes say little
		grpc.StaticConnWindowSize(4 << 20),
	}
}

// Subscribe implements feedv1.FeedServiceServer.
func (f *feed) Subscribe(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]) error {
	leave, full := f.admit.enter(stream.Context())
	if full != "" {
		return f.sendAway(stream, full, maxRetry)
	}
	defer leave()
	in := receiveFrom(stream)
	hello, err := f.hello(in)
	if err != nil {
		return err
	}
	s := &subscription{
		feed: f, stream: stream, in: in, over: make(chan error, 1),
		logger: f.cfg.Logger.With("node", hello.GetNode(), "region", hello.GetRegion()),
	}
	s.cursor, err = f.resume(stream.Context(), hello)
	if err != nil {
		return s.end(err)
	}
	s.node = f.fleet.join(hello)
	defer f.fleet.leave(s.node)
	f.metrics.streams.Add(1)
	defer f.metrics.streams.Add(-1)
	s.logger.Info("node connected", "revision", s.cursor.Held().Revision, "build", hello.GetBuild())
	err = s.run()
	go s.close(err) // who sends may have it locked until the stream has ended, which it does when this returns
	return err
}

// hello gives the first message of a stream, which does not have all the time
// in the world.
func (f *feed) hello(in *inbox) (*feedv1.Hello, error) {
	timeout := time.NewTimer(f.cfg.HelloTimeout)
	defer timeout.Stop()
	select {
	case m := <-in.first:
		return m.GetHello(), checkHello(m.GetHello())
	case err := <-in.failed:
		return nil, err
	case <-timeout.C:
		return nil, status.Errorf(codes.DeadlineExceeded, "no Hello within %s", f.cfg.HelloTimeout)
	}
}

// sendAway ends a stream that there is no room for.
func (f *feed) sendAway(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse], reason string, after time.Duration) error {
	f.metrics.away.Add(1)
	return stream.Send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_RetryLater{
		RetryLater: &feedv1.RetryLater{After: durationpb.New(after), Reason: reason},
	}})
}

// checkHello says what is wrong with the first message.
func checkHello(hello *feedv1.Hello) error {
	switch {
	case hello == nil:
		return status.Error(codes.InvalidArgument, "the first message of a stream is Hello")
	case !validID(hello.GetNode()):
		return status.Errorf(codes.InvalidArgument, "node %.150q: a node's name is 1 to 128 of A-Z a-z 0-9 _ . -", hello.GetNode())
	case !validID(hello.GetRegion()):
		return status.Errorf(codes.InvalidArgument, "region %.150q: a region's name is 1 to 128 of A-Z a-z 0-9 _ . -", hello.GetRegion())
	}
	return nil
}

// validID says whether s may name a node, a region or a replica.
func validID(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '.', c == '-':
		default:
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 128
}

// resume gives the cursor of a node. It gives this replica a moment to catch up
// with a node that comes from another one.
func (f *feed) resume(ctx context.Context, hello *feedv1.Hello) (snapshot.Cursor, error) {
	timeout := time.NewTimer(f.cfg.CatchUp)
	defer timeout.Stop()
	held := versionOf(hello.GetVersion())
	for {
		advanced := f.log.View().Advanced()
		cursor, err := f.log.Resume(held, hashOf(hello.GetSetHash()))
		behind, ok := errors.AsType[*snapshot.BehindError](err)
		if !ok || behind.Head.Epoch != 0 && behind.Head.Epoch != held.Epoch {
			return cursor, err
		}
		f.log.Nudge()
		select {
		case <-advanced:
		case <-timeout.C:
			f.log.NodeAhead(held)
			return cursor, err
		case <-ctx.Done():
			return cursor, ctx.Err()
		}
	}
}

// tellBehind says whether it is time to log that a node was sent away: once a
// minute, for nodes come again every few seconds, and all of them.
func (f *feed) tellBehind(now time.Time) bool {
	last := f.toldBehind.Load()
	return now.Sub(time.Unix(0, last)) > time.Minute && f.toldBehind.CompareAndSwap(last, now.UnixNano())
}

// feedMetrics are the feed's counters.
type feedMetrics struct {
	streams                                 atomic.Int64
	sent, rejected                          [snapshot.Snapshot + 1]atomic.Uint64
	applied, heartbeats, behind, mismatches atomic.Uint64
	away, takeDowns, takenDown              atomic.Uint64
	bytes                                   atomic.Uint64
}

func (m *feedMetrics) register(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	count := func(name, help string, c *atomic.Uint64, labels prometheus.Labels) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return float64(c.Load()) }))
	}
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "aff_feed_streams", Help: "Nodes connected to this replica."},
		func() float64 { return float64(m.streams.Load()) }))
	const frames, framesHelp = "aff_feed_frames_total", "Frames sent to nodes, by kind."
	const rejected, rejectedHelp = "aff_feed_rejected_total", "Frames that nodes rejected, by kind."
	for _, kind := range []snapshot.FrameKind{snapshot.Delta, snapshot.Snapshot} {
		count(frames, framesHelp, &m.sent[kind], prometheus.Labels{"kind": kind.String()})
		count(rejected, rejectedHelp, &m.rejected[kind], prometheus.Labels{"kind": kind.String()})
	}
	count(frames, framesHelp, &m.heartbeats, prometheus.Labels{"kind": "heartbeat"})
	count(frames, framesHelp, &m.behind, prometheus.Labels{"kind": "behind"})
	count(frames, framesHelp, &m.away, prometheus.Labels{"kind": "retry_later"})
	count(frames, framesHelp, &m.takeDowns, prometheus.Labels{"kind": "take_down"})
	count("aff_feed_taken_down_total", "Take-downs that nodes acknowledged.", &m.takenDown, nil)
	count("aff_feed_applied_total", "Frames that nodes applied.", &m.applied, nil)
	count("aff_feed_hash_mismatches_total", "Applied frames after which a node held another state than it was sent.", &m.mismatches, nil)
	count("aff_feed_bytes_total", "Bytes of frames sent to nodes.", &m.bytes, nil)
}

func versionOf(v *linkv1.Version) snapshot.Version {
	return snapshot.Version{Epoch: v.GetEpoch(), Revision: v.GetRevision()}
}

func versionProto(v snapshot.Version) *linkv1.Version {
	if v == (snapshot.Version{}) {
		return nil
	}
	return &linkv1.Version{Epoch: v.Epoch, Revision: v.Revision}
}

func hashOf(h *feedv1.SetHash) link.SetHash { return link.SetHash{Hi: h.GetHi(), Lo: h.GetLo()} }
