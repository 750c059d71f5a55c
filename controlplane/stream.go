package controlplane

import (
	"errors"
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
)

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
	downs  downs

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
	now := time.Now()
	s.sentAt = now
	s.fan.join(s) // from here on, what mu guards may be somebody else's
	defer s.fan.leave(s)
	s.in.handle <- s.handle
	s.serve(now)
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
		frame, ok := s.log.NextDelta(s.cursor, large)
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
		s.downs.sent(d)
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

// ready says whether the node may be sent a frame. mu is held.
func (s *subscription) ready() bool {
	return s.flight == nil && !s.waiting && (!s.parked || s.unparks())
}

// unparks says whether a stream whose node rejected a snapshot may try again:
// after a while and with something newer, or when an operator has done
// something about it.
func (s *subscription) unparks() bool {
	view := s.log.View()
	head := view.Head()
	return head.Epoch != s.rejected.Epoch || view.Released() != s.parkedAt || s.retryDue && head.Revision > s.rejected.Revision
}

// large is the size, in bytes, above which a frame lets take-downs go ahead, and
// is made and sent beside the rounds.
const large = 256 << 10

// takeDowns are what was taken down and the node is not about to learn from what
// is under way. A node that holds nothing of this epoch serves nothing that
// could be taken down before its first snapshot. mu is held.
func (s *subscription) takeDowns(view *snapshot.View) []*snapshot.TakeDown {
	epoch := view.Head().Epoch
	var learns int64
	switch held := s.cursor.Held(); {
	case held.Epoch == epoch:
		learns = held.Revision
		if s.flight != nil && s.flight.Kind == snapshot.Delta {
			learns = max(learns, s.flight.To.Revision)
		}
	case s.flight != nil && s.flight.To.Epoch == epoch:
		learns = s.flight.To.Revision
	default:
		return nil
	}
	s.downs.begin(epoch, learns)
	return view.TakeDowns(s.downs.upTo)
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
