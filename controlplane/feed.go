package controlplane

import (
	"context"
	"errors"
	"fmt"
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
	metrics feedMetrics

	toldBehind atomic.Int64 // when the log was told that a node was sent away, Unix ns
}

// newFeed makes the FeedService. The server it is registered with needs
// feedServerOptions.
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
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	f := &feed{log: log, fleet: fleet, cfg: cfg}
	f.metrics.register(cfg.Registerer)
	return f
}

// feedServerOptions are what a server of the feed needs: the codec that sends
// shared bytes, and keepalive that finds nodes which are gone without a word.
func feedServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}

// subscription is one stream: what its node holds, and what is under way to it.
type subscription struct {
	*feed
	stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]
	node   *member
	logger *slog.Logger

	cursor snapshot.Cursor
	flight *snapshot.Frame // sent and not answered yet

	rejected     int64 // the revision of the last rejected frame, if parked or resent
	rejections   int   // in a row
	wantSnapshot bool
	parked       bool
	retry        *time.Timer // fires when a parked stream may go on
	retryDue     bool
}

// Subscribe implements feedv1.FeedServiceServer.
func (f *feed) Subscribe(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if err := checkHello(hello); err != nil {
		return err
	}
	s := &subscription{feed: f, stream: stream, logger: f.cfg.Logger.With("node", hello.GetNode(), "region", hello.GetRegion())}
	s.cursor, err = f.resume(stream.Context(), hello)
	if err != nil {
		return s.end(err)
	}
	s.node = f.fleet.join(hello)
	defer f.fleet.leave(s.node)
	f.metrics.streams.Add(1)
	defer f.metrics.streams.Add(-1)
	s.logger.Info("node connected", "revision", s.cursor.Held().Revision, "build", hello.GetBuild())
	err = s.end(s.run())
	s.logger.Info("node disconnected", "revision", s.cursor.Held().Revision, "reason", err)
	return err
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
	for {
		advanced := f.log.View().Advanced()
		cursor, err := f.log.Resume(versionOf(hello.GetVersion()), hashOf(hello.GetSetHash()))
		behind, ok := errors.AsType[*snapshot.BehindError](err)
		if !ok || behind.Head.Epoch != 0 && behind.Head.Epoch != hello.GetVersion().GetEpoch() {
			return cursor, err
		}
		select {
		case <-advanced:
		case <-timeout.C:
			return cursor, err
		case <-ctx.Done():
			return cursor, ctx.Err()
		}
	}
}

// end turns what ended a stream into its status. A node that is ahead of this
// replica is told so.
func (s *subscription) end(err error) error {
	if behind, ok := errors.AsType[*snapshot.BehindError](err); ok {
		s.metrics.behind.Add(1)
		level := slog.LevelDebug
		if behind.Head.Epoch != 0 && s.tellBehind(time.Now()) { // before it has a state, the log says so already
			level = slog.LevelWarn
		}
		s.logger.Log(s.stream.Context(), level, "node is sent to another replica, perhaps others are too", "reason", behind.Reason)
		return s.stream.Send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Behind{
			Behind: &feedv1.Behind{Head: versionProto(behind.Head), Reason: behind.Reason},
		}})
	}
	return err
}

// tellBehind says whether it is time to log that a node was sent away: once a
// minute, for nodes come again every few seconds, and all of them.
func (f *feed) tellBehind(now time.Time) bool {
	last := f.toldBehind.Load()
	return now.Sub(time.Unix(0, last)) > time.Minute && f.toldBehind.CompareAndSwap(last, now.UnixNano())
}

// run serves the stream until it ends. It waits for:
//
//   - a message of the node: the answer to what is under way, or its status;
//   - a newer head, while nothing is under way;
//   - the time to retry what the node rejected;
//   - the time for a heartbeat;
//   - another stream of the same node;
//   - the end of the stream.
//
// While the node does not read, run waits in a send, alone.
func (s *subscription) run() error {
	ctx := s.stream.Context()
	received := make(chan *feedv1.SubscribeRequest)
	failed := make(chan error, 1)
	go func() { // ends with the stream, which ends when run returns
		for {
			m, err := s.stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case received <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	// The head that the node has to reach until it is up to date: what it is
	// sent first may be a snapshot from some time ago.
	if err := s.beat(); err != nil {
		return err
	}
	heartbeat := time.NewTicker(s.cfg.Heartbeat)
	defer heartbeat.Stop()
	s.retry = time.NewTimer(time.Hour)
	defer s.retry.Stop()
	for {
		changed := s.log.Changed()
		sent, err := s.next(ctx)
		if err != nil {
			return err
		}
		if sent {
			heartbeat.Reset(s.cfg.Heartbeat)
		}
		if s.flight != nil {
			changed = nil
		}
		select {
		case m := <-received:
			if err := s.handle(m); err != nil {
				return err
			}
		case <-changed:
		case <-s.retry.C:
			s.retryDue = true
		case <-heartbeat.C:
			if err := s.beat(); err != nil {
				return err
			}
		case <-s.node.superseded:
			return status.Errorf(codes.Aborted, "another stream of node %s has taken over: if it is not a reconnect, two nodes run under one name; give each its own --node", s.node.name)
		case err := <-failed:
			return err
		}
	}
}

// next sends what the node misses, unless something is under way or the node
// cannot take it.
func (s *subscription) next(ctx context.Context) (sent bool, err error) {
	if s.flight != nil || s.parked && (!s.retryDue || s.log.Head().Revision <= s.rejected) {
		return false, nil
	}
	s.parked = false
	cursor := s.cursor
	if s.wantSnapshot {
		cursor = cursor.Distrusted(s.rejected)
	}
	frame, err := s.log.Next(ctx, cursor)
	if frame == nil || err != nil {
		return false, err
	}
	for _, m := range frame.Messages {
		if err := s.stream.SendMsg(rawMessage(m)); err != nil {
			return true, err
		}
		s.metrics.bytes.Add(uint64(len(m)))
	}
	s.metrics.sent[frame.Kind].Add(1)
	s.flight = frame
	return true, nil
}

// beat sends a heartbeat.
func (s *subscription) beat() error {
	s.metrics.heartbeats.Add(1)
	return s.stream.Send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Heartbeat{
		Heartbeat: &feedv1.Heartbeat{Head: versionProto(s.log.Head()), Interval: durationpb.New(s.cfg.Heartbeat)},
	}})
}

// handle takes in a message of the node.
func (s *subscription) handle(m *feedv1.SubscribeRequest) error {
	switch m := m.GetMessage().(type) {
	case *feedv1.SubscribeRequest_Applied:
		return s.applied(m.Applied)
	case *feedv1.SubscribeRequest_Rejected:
		return s.refused(m.Rejected)
	case *feedv1.SubscribeRequest_Status:
		s.fleet.status(s.node, m.Status)
	case *feedv1.SubscribeRequest_Hello:
		return status.Error(codes.InvalidArgument, "a second Hello on one stream")
	}
	return nil // of a newer release
}

// answers says whether a message is about what is under way.
func (s *subscription) answers(v *linkv1.Version) error {
	if s.flight == nil {
		return status.Error(codes.InvalidArgument, "an answer, and nothing is under way")
	}
	if versionOf(v) != s.flight.To {
		return status.Errorf(codes.InvalidArgument, "an answer about revision %d while %d is under way", v.GetRevision(), s.flight.To.Revision)
	}
	return nil
}

func (s *subscription) applied(m *feedv1.Applied) error {
	if err := s.answers(m.GetVersion()); err != nil {
		return err
	}
	frame := s.flight
	s.flight = nil
	s.cursor = frame.After()
	s.rejections, s.wantSnapshot = 0, false
	hash := hashOf(m.GetSetHash())
	s.fleet.applied(s.node, frame.To, hash, m.GetLinks())
	s.metrics.applied.Add(1)
	if hash != frame.Hash {
		s.logger.Error("node holds another state than it was sent, it gets a snapshot", "revision", frame.To.Revision)
		s.metrics.mismatches.Add(1)
		s.wantSnapshot, s.rejected = true, frame.To.Revision
	}
	return nil
}

// refused answers a rejection: with a snapshot, unless that would be rejected
// too. The node is then left alone for a while, and until there is a newer
// version.
func (s *subscription) refused(m *feedv1.Rejected) error {
	if err := s.answers(m.GetVersion()); err != nil {
		return err
	}
	frame := s.flight
	s.flight = nil
	s.rejected = frame.To.Revision
	s.fleet.rejected(s.node, fmt.Sprintf("revision %d: %.300s", frame.To.Revision, m.GetReason()))
	s.metrics.rejected[frame.Kind].Add(1)
	again := s.rejections > 0 && m.GetCode() == feedv1.RejectCode_REJECT_CODE_BAD_ENTRY
	s.wantSnapshot = frame.Kind == snapshot.Delta && !again
	s.parked = !s.wantSnapshot
	s.logger.Error("node rejected a frame", "kind", frame.Kind, "revision", frame.To.Revision,
		"code", m.GetCode(), "reason", m.GetReason(), "parked", s.parked)
	if s.parked {
		s.retryDue = false
		s.retry.Reset(s.cfg.RetryRejected << min(s.rejections/2, 5))
	}
	s.rejections++
	return nil
}

// feedMetrics are the feed's counters.
type feedMetrics struct {
	streams                                 atomic.Int64
	sent, rejected                          [snapshot.Snapshot + 1]atomic.Uint64
	applied, heartbeats, behind, mismatches atomic.Uint64
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
