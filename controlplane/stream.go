package controlplane

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/affleet/affleet/controlplane/internal/snapshot"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// inbox is what a node says, received by a goroutine of its own: that ends with
// the stream, which ends when its handler returns.
type inbox struct {
	first  chan *feedv1.SubscribeRequest             // the first message
	handle chan func(*feedv1.SubscribeRequest) error // holds one: takes in the others
	failed chan error                                // holds one
}

func receiveFrom(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]) *inbox {
	in := &inbox{
		first: make(chan *feedv1.SubscribeRequest), handle: make(chan func(*feedv1.SubscribeRequest) error, 1), failed: make(chan error, 1),
	}
	go func() { in.failed <- in.receive(stream) }()
	return in
}

func (in *inbox) receive(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]) error {
	ctx := stream.Context()
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	var handle func(*feedv1.SubscribeRequest) error
	select {
	case in.first <- m:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	select {
	case handle = <-in.handle:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	for {
		if m, err = stream.Recv(); err != nil {
			return err
		}
		if err := handle(m); err != nil {
			return err
		}
	}
}

// subscription is one stream: what its node holds, and what is under way to it.
//
// What costs little is sent by who finds that it is due, with mu held: the round
// of the fanout, or the goroutine that receives, after an answer. It never
// waits for the node: it sends only while little is unread. All else is
// sent by a courier, a goroutine for the purpose, which may wait in a send for
// as long as the node does not read.
type subscription struct {
	*feed
	stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]
	in     *inbox
	node   *member
	logger *slog.Logger
	over   chan error // holds one: why the stream ends

	mu      sync.Mutex // of what follows
	ended   bool       // nothing is sent any more
	courier bool       // there is one: nobody else sends
	again   bool       // it is to look for more before it ends
	unread  unread
	beat    rawMessage // a heartbeat that the courier is to send; nil: none
	sentAt  time.Time  // when something was sent last, but for take-downs

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
	retry        *time.Timer // fires when a parked stream may go on; nil: never parked
	retryDue     bool
}

// unread is how many bytes the node may not have read, as far as its answers tell:
// a heartbeat has none.
type unread struct{ all, afterFlight, afterDown int }

func (u *unread) sent(n int) {
	u.all += n
	u.afterFlight += n
	u.afterDown += n
}

// defaultUnread is well below the 64 kB that gRPC takes without waiting.
const defaultUnread = 16 << 10

// full says that a send might wait for the node. mu is held.
func (s *subscription) full() bool { return s.unread.all > s.cfg.MaxUnread }

// fail ends the stream, unless something else has.
func (s *subscription) fail(err error) {
	select {
	case s.over <- err:
	default:
	}
}

// run serves the stream until it ends. It waits for:
//
//   - the end of the stream, or an answer that ends it;
//   - another stream of the same node;
//   - what else ends it: a send that fails, or a message that is the last.
//
// It sends nothing but the first heartbeat: so it never waits for a node.
func (s *subscription) run() error {
	// The head that the node has to reach until it is up to date: what it is
	// sent first may be a snapshot from some time ago.
	s.metrics.heartbeats.Add(1)
	first := encodeHeartbeat(s.log.Head(), s.cfg.Heartbeat)
	if err := s.stream.SendMsg(first); err != nil {
		return err
	}
	s.unread.sent(len(first))
	s.sentAt = time.Now()
	s.fan.join(s)
	defer s.fan.leave(s)
	s.in.handle <- s.handle
	s.serve(s.sentAt)
	select {
	case err := <-s.over:
		return err
	case <-s.node.superseded:
		return status.Errorf(codes.Aborted, "another stream of node %s has taken over: if it is not a reconnect, two nodes run under one name; give each its own --node", s.node.name)
	case err := <-s.in.failed:
		return err
	}
}

// close ends all sending.
func (s *subscription) close(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.token.giveBack()
	if s.retry != nil {
		s.retry.Stop()
	}
	s.logger.Info("node disconnected", "revision", s.cursor.Held().Revision, "reason", why)
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

// errAway ends a stream whose node is to come back later, and has been told so.
var errAway = errors.New("the node is to come back for its snapshot")

// serve sends what is due, or has it sent.
func (s *subscription) serve(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serveLocked(now)
}

func (s *subscription) serveLocked(now time.Time) {
	switch {
	case s.ended:
	case s.courier:
		s.again = true
	case !s.quick(now):
		s.courier = true
		go s.deliver() // nobody waits for it: it ends with the stream
	}
}

// quick sends what is due if that costs little, and otherwise says that it does
// not. mu is held.
func (s *subscription) quick(now time.Time) bool {
	view := s.log.View()
	if s.ready() {
		if s.wantSnapshot {
			return false
		}
		frame, ok := s.log.NextDelta(s.cursor)
		if !ok || frame != nil && (frame.Bytes > large || s.full()) {
			return false
		}
		if frame != nil {
			s.parked, s.flight, s.sentAt = false, frame, now
			if !s.sendNow(frame.Messages[0]) {
				return true
			}
			s.unread.afterFlight = 0
			s.metrics.sent[frame.Kind].Add(1)
		}
	}
	for _, d := range s.takeDowns(view) {
		if s.full() {
			return false
		}
		s.downAt = d.Revision
		if !s.sendNow(d.Message) {
			return true
		}
		s.unread.afterDown = 0
		s.metrics.takeDowns.Add(1)
	}
	return true
}

// sendNow sends a message that need not wait for the node. mu is held.
func (s *subscription) sendNow(m []byte) bool {
	s.unread.sent(len(m))
	if err := s.stream.SendMsg(rawMessage(m)); err != nil {
		s.ended = true
		s.fail(err)
		return false
	}
	s.metrics.bytes.Add(uint64(len(m)))
	return true
}

// takesDown sends take-downs, and nothing else.
func (s *subscription) takesDown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended && len(s.takeDowns(s.log.View())) > 0 {
		s.serveLocked(time.Now())
	}
}

// beats sends a heartbeat if nothing was sent for its interval, or has it sent.
func (s *subscription) beats(now time.Time, m rawMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.courier || now.Sub(s.sentAt) < s.cfg.Heartbeat {
		return
	}
	s.metrics.heartbeats.Add(1)
	s.sentAt = now
	if s.full() {
		s.beat, s.courier = m, true
		go s.deliver()
		return
	}
	s.sendNow(m)
}

// deliver is the courier: it sends all that is due, and waits for the node if it
// has to.
func (s *subscription) deliver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for more := true; more; {
		s.again = false
		err := s.sendBeat()
		if err == nil {
			err = s.next()
		}
		if err == nil {
			err = s.sendTakeDowns()
		}
		if err != nil || s.ended {
			s.ended = true
			s.mu.Unlock()
			s.fail(s.end(err))
			s.mu.Lock()
			return
		}
		more = s.again
	}
	s.courier = false
}

// ready says whether the node may be sent a frame. mu is held.
func (s *subscription) ready() bool {
	return s.flight == nil && !s.waiting && (!s.parked || s.unparks())
}

// next sends what the node misses, unless something is under way or the node
// cannot take it. mu is held, but not while it waits.
func (s *subscription) next() error {
	if !s.ready() {
		return nil
	}
	s.parked = false
	held, wants, cursor := s.cursor, s.wantSnapshot, s.cursor
	if wants {
		cursor = cursor.Distrusted(s.rejected.Revision)
	}
	var frame *snapshot.Frame
	err := s.unlocked(func() (err error) {
		frame, err = s.log.Next(s.stream.Context(), cursor)
		return err
	})
	switch {
	case frame == nil || err != nil || s.ended:
		return err
	case s.cursor != held || s.wantSnapshot != wants || !s.ready():
		s.again = true // the node has said something meanwhile
		return nil
	case frame.Kind == snapshot.Snapshot && !s.admitted():
		if cursor.Held().Epoch != 0 {
			s.waiting = true
			go s.awaitToken() // as deliver
			return nil
		}
		after := s.admit.turn(time.Now())
		s.logger.Debug("node is sent away, many want a snapshot", "retry_in", after)
		s.ended = true
		return s.unlocked(func() error {
			return errors.Join(s.sendAway(s.stream, "many nodes want a snapshot", after), errAway)
		})
	}
	return s.send(frame)
}

// unlocked does something that may take long.
func (s *subscription) unlocked(do func() error) error {
	s.mu.Unlock()
	defer s.mu.Lock()
	return do()
}

// awaitToken waits until a snapshot may be sent.
func (s *subscription) awaitToken() {
	select {
	case <-s.admit.tokens:
	case <-s.stream.Context().Done():
		return
	}
	t := s.admit.take()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = false
	if s.ended {
		t.giveBack()
		return
	}
	s.token = t
	s.serveLocked(time.Now())
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
// messages of a snapshot. mu is held, but not while it sends.
func (s *subscription) send(frame *snapshot.Frame) error {
	if frame.Bytes > large {
		if err := s.sendTakeDowns(); err != nil {
			return err
		}
	}
	s.flight, s.sentAt = frame, time.Now()
	token := s.token
	s.token = nil
	defer token.giveBack()
	for i, m := range frame.Messages {
		if i > 0 {
			if err := s.sendTakeDowns(); err != nil {
				return err
			}
		}
		if err := s.sendSlowly(m); err != nil {
			return err
		}
	}
	s.unread.afterFlight = 0
	s.metrics.sent[frame.Kind].Add(1)
	return nil
}

// sendSlowly sends a message, for as long as it takes.
func (s *subscription) sendSlowly(m []byte) error {
	s.unread.sent(len(m))
	s.metrics.bytes.Add(uint64(len(m)))
	return s.unlocked(func() error { return s.stream.SendMsg(rawMessage(m)) })
}

func (s *subscription) sendBeat() error {
	if m := s.beat; m != nil {
		s.beat = nil
		return s.sendSlowly(m)
	}
	return nil
}

func (s *subscription) sendTakeDowns() error {
	for _, d := range s.takeDowns(s.log.View()) {
		s.downAt = d.Revision
		if err := s.sendSlowly(d.Message); err != nil {
			return err
		}
		s.unread.afterDown = 0
		s.metrics.takeDowns.Add(1)
	}
	return nil
}

// takeDowns are what was taken down and the node is not about to learn from what
// is under way. A node that holds nothing of this epoch serves nothing that
// could be taken down before its first snapshot. mu is held.
func (s *subscription) takeDowns(view *snapshot.View) []*snapshot.TakeDown {
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
	return view.TakeDowns(after)
}

// encodeHeartbeat gives a heartbeat, encoded.
func encodeHeartbeat(head snapshot.Version, interval time.Duration) rawMessage {
	b, err := proto.Marshal(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Heartbeat{
		Heartbeat: &feedv1.Heartbeat{Head: versionProto(head), Interval: durationpb.New(interval)},
	}})
	if err != nil {
		panic("BUG: marshal a heartbeat: " + err.Error())
	}
	return b
}

// handle takes in a message of the node. What it makes due is sent at once, but
// in a busy feed: the next round does it then.
func (s *subscription) handle(m *feedv1.SubscribeRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	if err := s.take(m); err != nil {
		return err
	}
	if s.flight == nil && (s.wantSnapshot || !s.fan.busy.Load()) {
		s.serveLocked(time.Now())
	}
	return nil
}

func (s *subscription) take(m *feedv1.SubscribeRequest) error {
	switch m := m.GetMessage().(type) {
	case *feedv1.SubscribeRequest_Applied:
		return s.applied(m.Applied)
	case *feedv1.SubscribeRequest_Rejected:
		return s.refused(m.Rejected)
	case *feedv1.SubscribeRequest_TakenDown:
		if m.TakenDown.GetVersion().GetRevision() == s.downAt {
			s.unread.all = min(s.unread.all, s.unread.afterDown)
		}
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

// landed takes what was under way as answered.
func (s *subscription) landed() *snapshot.Frame {
	frame := s.flight
	s.flight, s.unread.all = nil, min(s.unread.all, s.unread.afterFlight)
	return frame
}

func (s *subscription) applied(m *feedv1.Applied) error {
	if err := s.answers(m.GetVersion()); err != nil {
		return err
	}
	frame := s.landed()
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
	frame := s.landed()
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
		s.park(s.cfg.RetryRejected << min(s.rejections/2, 5))
	}
	s.rejections++
	return nil
}

// park leaves the stream alone for a time. mu is held.
func (s *subscription) park(wait time.Duration) {
	s.retryDue = false
	if s.retry != nil {
		s.retry.Reset(wait)
		return
	}
	s.retry = time.AfterFunc(wait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.retryDue = true
		s.serveLocked(time.Now())
	})
}
