package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/affleet/affleet/controlplane/internal/snapshot"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// inbox is what a node says, received by a goroutine of its own: that ends with
// the stream, which ends when its handler returns.
type inbox struct {
	received chan *feedv1.SubscribeRequest
	failed   chan error // holds one
}

func receiveFrom(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]) *inbox {
	in := &inbox{received: make(chan *feedv1.SubscribeRequest), failed: make(chan error, 1)}
	ctx := stream.Context()
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				in.failed <- err
				return
			}
			select {
			case in.received <- m:
			case <-ctx.Done():
				in.failed <- status.FromContextError(ctx.Err()).Err()
				return
			}
		}
	}()
	return in
}

// subscription is one stream: what its node holds, and what is under way to it.
type subscription struct {
	*feed
	stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]
	in     *inbox
	node   *member
	logger *slog.Logger

	cursor snapshot.Cursor
	flight *snapshot.Frame // sent, or being sent, and not answered yet
	downAt int64           // the revision of the last take-down that was sent

	token   *token // of the snapshot that is to be sent
	waiting bool   // for a token

	rejected     snapshot.Version // of the last rejected frame, if parked or resent
	rejections   int              // in a row
	wantSnapshot bool
	parked       bool
	parkedAt     int64       // what was released when it was parked
	retry        *time.Timer // fires when a parked stream may go on
	retryDue     bool
}

// end turns what ended a stream into its status. A node that is ahead of this
// replica is told so.
func (s *subscription) end(err error) error {
	if errors.Is(err, errAway) {
		return nil
	}
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

// run serves the stream until it ends. It waits for:
//
//   - a message of the node: the answer to what is under way, or its status;
//   - a newer head, while nothing is under way;
//   - a take-down, while something is;
//   - a token, when it is to send a snapshot;
//   - the time to retry what the node rejected;
//   - the time for a heartbeat;
//   - another stream of the same node;
//   - the end of the stream.
//
// While the node does not read, run waits in a send, alone.
func (s *subscription) run() error {
	ctx := s.stream.Context()
	// The head that the node has to reach until it is up to date: what it is
	// sent first may be a snapshot from some time ago.
	if err := s.beat(); err != nil {
		return err
	}
	heartbeat := time.NewTicker(s.cfg.Heartbeat)
	defer heartbeat.Stop()
	s.retry = time.NewTimer(time.Hour)
	defer s.retry.Stop()
	defer func() { s.token.giveBack() }()
	for {
		view := s.log.View()
		sent, err := s.next(ctx)
		if err != nil {
			return err
		}
		if err := s.takeDowns(view); err != nil {
			return err
		}
		if sent {
			heartbeat.Reset(s.cfg.Heartbeat)
		}
		changed, downed := view.Changed(), view.Downed()
		if s.flight != nil {
			changed = nil
		}
		var tokens <-chan struct{}
		if s.waiting {
			tokens, changed = s.admit.tokens, nil
		}
		select {
		case m := <-s.in.received:
			if err := s.handle(m); err != nil {
				return err
			}
		case <-changed:
		case <-downed:
		case <-tokens:
			s.token, s.waiting = s.admit.take(), false
		case <-s.retry.C:
			s.retryDue = true
		case <-heartbeat.C:
			if err := s.beat(); err != nil {
				return err
			}
		case <-s.node.superseded:
			return status.Errorf(codes.Aborted, "another stream of node %s has taken over: if it is not a reconnect, two nodes run under one name; give each its own --node", s.node.name)
		case err := <-s.in.failed:
			return err
		}
	}
}

// errAway ends a stream whose node is to come back later, and has been told so.
var errAway = errors.New("the node is to come back for its snapshot")

// next sends what the node misses, unless something is under way or the node
// cannot take it.
func (s *subscription) next(ctx context.Context) (sent bool, err error) {
	if s.flight != nil || s.waiting || s.parked && !s.unparks() {
		return false, nil
	}
	s.parked = false
	cursor := s.cursor
	if s.wantSnapshot {
		cursor = cursor.Distrusted(s.rejected.Revision)
	}
	frame, err := s.log.Next(ctx, cursor)
	if frame == nil || err != nil {
		return false, err
	}
	if frame.Kind == snapshot.Snapshot && !s.admitted() {
		if cursor.Held().Epoch != 0 {
			s.waiting = true
			return false, nil
		}
		after := s.admit.turn(time.Now())
		s.logger.Debug("node is sent away, many want a snapshot", "retry_in", after)
		return false, errors.Join(s.sendAway(s.stream, "many nodes want a snapshot", after), errAway)
	}
	return true, s.send(frame)
}

// unparks says whether a stream whose node rejected a snapshot may try again:
// after a while and with something newer, or when an operator has done
// something about it.
func (s *subscription) unparks() bool {
	view := s.log.View()
	head := view.Head()
	return head.Epoch != s.rejected.Epoch || view.Released() != s.parkedAt || s.retryDue && head.Revision > s.rejected.Revision
}

// admitted says whether a snapshot may be sent now.
func (s *subscription) admitted() bool {
	if s.token != nil {
		return true
	}
	select {
	case <-s.admit.tokens:
		s.token = s.admit.take()
		return true
	default:
		return false
	}
}

// large is the size, in bytes, above which a frame lets take-downs go ahead.
const large = 256 << 10

// send sends a frame. Take-downs go ahead of what is large, and between the
// messages of a snapshot.
func (s *subscription) send(frame *snapshot.Frame) error {
	if frame.Bytes > large {
		if err := s.takeDowns(s.log.View()); err != nil {
			return err
		}
	}
	s.flight = frame
	for i, m := range frame.Messages {
		if i > 0 {
			if err := s.takeDowns(s.log.View()); err != nil {
				return err
			}
		}
		if err := s.stream.SendMsg(rawMessage(m)); err != nil {
			return err
		}
		s.metrics.bytes.Add(uint64(len(m)))
	}
	s.metrics.sent[frame.Kind].Add(1)
	s.token.giveBack()
	s.token = nil
	return nil
}

// takeDowns sends what was taken down and the node is not about to learn from
// what is under way. A node that holds nothing of this epoch serves nothing
// that could be taken down before its first snapshot.
func (s *subscription) takeDowns(view *snapshot.View) error {
	epoch, after := view.Head().Epoch, s.downAt
	switch held := s.cursor.Held(); {
	case held.Epoch == epoch:
		after = max(after, held.Revision)
		if s.flight != nil && s.flight.Kind == snapshot.Delta {
			after = max(after, s.flight.To.Revision)
		}
	case s.flight != nil && s.flight.To.Epoch == epoch:
		after = max(after, s.flight.To.Revision)
	default:
		return nil
	}
	for _, d := range view.TakeDowns(after) {
		if err := s.stream.SendMsg(rawMessage(d.Message)); err != nil {
			return err
		}
		s.downAt = d.Revision
		s.metrics.takeDowns.Add(1)
		s.metrics.bytes.Add(uint64(len(d.Message)))
	}
	return nil
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
	case *feedv1.SubscribeRequest_TakenDown:
		s.metrics.takenDown.Add(1)
		s.fleet.takenDown(s.node, versionOf(m.TakenDown.GetVersion()))
	case *feedv1.SubscribeRequest_Status:
		s.fleet.status(s.node, m.Status)
		s.audit(versionOf(m.Status.GetVersion()), hashOf(m.Status.GetSetHash()))
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

// audit compares what a node says it holds with what it should.
func (s *subscription) audit(at snapshot.Version, hash link.SetHash) {
	known, ok := s.log.View().HashAt(at)
	if !ok || known == hash || at != s.cursor.Held() || s.flight != nil || s.wantSnapshot {
		return
	}
	s.distrust(at)
}

// distrust makes the node get a snapshot.
func (s *subscription) distrust(at snapshot.Version) {
	s.logger.Error("node holds another state than it was sent, it gets a snapshot", "revision", at.Revision)
	s.metrics.mismatches.Add(1)
	s.wantSnapshot, s.rejected = true, at
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
		s.distrust(frame.To)
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
	s.rejected = frame.To
	s.fleet.rejected(s.node, fmt.Sprintf("revision %d: %.300s", frame.To.Revision, m.GetReason()))
	s.metrics.rejected[frame.Kind].Add(1)
	// A snapshot of the same would be rejected for the same reason.
	same := s.rejections > 0 && m.GetCode() == feedv1.RejectCode_REJECT_CODE_BAD_ENTRY || m.GetCode() == feedv1.RejectCode_REJECT_CODE_GUARDED
	s.wantSnapshot = frame.Kind == snapshot.Delta && !same
	s.parked, s.parkedAt = !s.wantSnapshot, s.log.View().Released()
	s.logger.Error("node rejected a frame", "kind", frame.Kind, "revision", frame.To.Revision,
		"code", m.GetCode(), "reason", m.GetReason(), "parked", s.parked)
	if s.parked {
		s.retryDue = false
		s.retry.Reset(s.cfg.RetryRejected << min(s.rejections/2, 5))
	}
	s.rejections++
	return nil
}
