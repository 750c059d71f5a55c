package feed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

const (
	// maxMessage bounds one message of the control plane, in bytes.
	maxMessage = 64 << 20
	// firstInterval is the heartbeat interval until the control plane says its
	// own; a stream is given up after three of them without a message, or a part of
	// one.
	firstInterval = 5 * time.Second
	// maxInterval bounds what a control plane may say.
	maxInterval = time.Minute
)

// The causes of giving up a stream on which nothing comes.
var (
	errSilent   = errors.New("nothing heard for three heartbeats")
	errNoAnswer = errors.New("no answer in the time that a node has that may begin with another place's state")
)

// session is one stream.
type session struct {
	*Client
	stream grpc.BidiStreamingClient[feedv1.SubscribeRequest, feedv1.SubscribeResponse]
	target string

	sending  sync.Mutex // of stream.Send
	silence  silence
	patience time.Duration   // three heartbeats
	good     bool            // something useful came
	goal     *linkv1.Version // the control plane's head when the stream began, as its first heartbeat says
}

// session connects to a control plane and follows it until the stream ends. It
// says whether the stream was of use. The first message may take so long; 0: as
// long as any.
func (c *Client) session(ctx context.Context, target string, first time.Duration) (good bool, err error) {
	streaming, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := errSilent
	if first > 0 {
		silent = errNoAnswer
	}
	s := &session{Client: c, target: target, patience: 3 * firstInterval, silence: silence{giveUp: func() { cancel(silent) }}}
	options := append([]grpc.DialOption{
		grpc.WithTransportCredentials(counting{c.cfg.Credentials, &s.silence.arrived}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
	}, c.cfg.Dial...)
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		return false, fmt.Errorf("dial: %w", err)
	}
	defer conn.Close()
	s.silence.begin(cmp.Or(first, s.patience), s.patience)
	defer s.silence.stop()
	s.stream, err = feedv1.NewFeedServiceClient(conn).Subscribe(streaming, grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(maxMessage))
	if err != nil {
		return false, fmt.Errorf("subscribe: %w", err)
	}
	if err := s.send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: s.hello()}}); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("hello: %w", err) // io.EOF: receiving says why
	}
	var reporting sync.WaitGroup
	defer reporting.Wait()
	reporting.Go(func() { s.report(streaming) })
	err = s.receive()
	if cause := context.Cause(streaming); errors.Is(cause, silent) {
		err = cause
	}
	cancel(nil)
	s.finish(ctx)
	return s.good, err
}

// hello says who the node is and what it holds.
func (s *session) hello() *feedv1.Hello {
	h := &feedv1.Hello{
		Node: s.cfg.Node, Region: s.cfg.Region, Boot: s.cfg.Boot,
		Build: s.cfg.Build, ListenAddress: s.cfg.Listen,
	}
	if t := verified(s.cfg.Live); t != nil {
		h.Version, h.SetHash = versionProto(t.Version()), hashProto(t.Hash())
	}
	return h
}

// send sends a message; any goroutine may.
func (s *session) send(m *feedv1.SubscribeRequest) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.stream.Send(m)
}

// receive takes in frame after frame until the stream ends.
func (s *session) receive() error {
	s.applier.reset()
	var frame rawFrame
	for {
		if err := s.message(&frame); err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		s.silence.stop()
		err := s.handle(s.applier.take(frame))
		s.silence.wait(s.patience)
		if err != nil {
			return err
		}
	}
}

// handle answers a frame.
func (s *session) handle(o outcome) error {
	s.metrics.frame(o)
	switch {
	case o.err != nil:
		return o.err
	case o.behind != nil:
		return s.behind(o.behind)
	case o.heartbeat != nil:
		s.heartbeat(o.heartbeat)
	case o.retryLater != nil:
		return &laterError{o.retryLater.GetAfter().AsDuration(), o.retryLater.GetReason()}
	case o.kind == kindTakeDown:
		s.metrics.takenDown.Store(int64(len(s.applier.down.refusals)))
		if o.guarded != nil {
			s.guarded(o.guarded)
		}
		return s.send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_TakenDown{TakenDown: &feedv1.TakenDown{Version: o.takenDown}}})
	case o.rejection != nil:
		s.rejected(o)
		return s.send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Rejected{Rejected: &feedv1.Rejected{
			Version: versionProto(o.rejection.version), Code: o.rejection.code, Reason: o.rejection.reason,
		}}})
	case o.applied != nil:
		s.applied(o)
		return s.send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Applied{Applied: &feedv1.Applied{
			Version: versionProto(o.applied.Version()), SetHash: hashProto(o.applied.Hash()), Links: int64(o.applied.Links()),
		}}})
	}
	return nil
}

// connected notes that the stream is of use.
func (s *session) connected() {
	s.good = true
	if !s.metrics.connected.Swap(true) {
		s.cfg.Log.Info("control plane is connected", "target", s.target, "revision", heldVersion(s.cfg.Live).Revision)
	}
}

// rejected notes that a frame was not taken.
func (s *session) rejected(o outcome) {
	r := o.rejection
	held := heldVersion(s.cfg.Live)
	switch r.code {
	case feedv1.RejectCode_REJECT_CODE_OLDER:
		s.metrics.refusesOlder.Store(true)
	case feedv1.RejectCode_REJECT_CODE_GUARDED:
		s.metrics.guarded.Store(true)
	}
	if later(r.version, held) {
		s.metrics.heard(max(r.version.Revision, s.metrics.head.Load()), held)
	}
	if quiet, ok := s.rejects.due(rejectsEvery); ok {
		s.cfg.Log.Error("frame rejected, serving goes on with what is held", "target", s.target, "kind", o.kind,
			"revision", r.version.Revision, "held", held.Revision, "code", r.code, "reason", r.reason, "others", quiet)
	}
}

// guarded notes that a part of a take-down, or all of it, waits for its version.
func (s *session) guarded(why error) {
	s.metrics.guarded.Store(true)
	if quiet, ok := s.rejects.due(rejectsEvery); ok {
		s.cfg.Log.Error("a take-down waits for its version: what it refuses is served until then", "target", s.target, "reason", why, "others", quiet)
	}
}

// How often the log is told about frames that are rejected, and about entries
// that are not served.
const rejectsEvery, unservedEvery = time.Second, 10 * time.Second

// tellUnserved logs that entries of a frame are held and not served.
func (s *session) tellUnserved(o outcome) {
	if o.unserved.n == 0 {
		return
	}
	if quiet, ok := s.unserved.due(unservedEvery); ok {
		s.cfg.Log.Warn("entries are held and not served: requests for them are answered as if they did not exist",
			"revision", o.applied.Version().Revision, "entries", o.unserved.n, "first", o.unserved.first, "in_all", o.applied.Unserved(), "frames_before", quiet,
			"hint", "if the control plane is of a newer release, update this node; if they are too large, raise --max-entry-bytes, and restart it")
	}
}

// applied notes that a new state is live.
func (s *session) applied(o outcome) {
	s.connected()
	s.behindInRow = 0
	s.metrics.refusesOlder.Store(false)
	s.metrics.guarded.Store(false)
	s.metrics.takenDown.Store(int64(len(s.applier.down.refusals)))
	s.metrics.catchUp(o.applied.Version())
	s.metrics.confirm()
	s.tellUnserved(o)
	s.caughtUp()
	if s.keeper != nil {
		s.keeper.changed(o.write)
	}
	if o.kind == kindSnapshot {
		s.cfg.Log.Info("snapshot applied", "target", s.target, "revision", o.applied.Version().Revision, "entries", o.applied.Len())
	}
}

// heartbeat notes that the control plane lives, and that the node is at its
// head if it is.
func (s *session) heartbeat(h *feedv1.Heartbeat) {
	s.connected()
	if d := h.GetInterval().AsDuration(); d > 0 {
		s.patience = 3 * min(max(d, 10*time.Millisecond), maxInterval)
	}
	if s.goal == nil || s.goal.GetEpoch() != h.GetHead().GetEpoch() { // of an epoch that is over, nothing comes any more
		s.goal = h.GetHead()
	}
	s.caughtUp()
	held := heldVersion(s.cfg.Live)
	if held.Epoch == 0 || held.Epoch != h.GetHead().GetEpoch() {
		return
	}
	s.metrics.heard(h.GetHead().GetRevision(), held)
	if held.Revision >= h.GetHead().GetRevision() {
		s.metrics.confirm()
	}
	if held.Revision <= h.GetHead().GetRevision() {
		s.behindInRow = 0
		s.metrics.refusesOlder.Store(false)
	}
}

// caughtUp makes the node ready once it serves what the control plane had when
// the stream began. A control plane of the release before does not say what
// that is; then the first state has to do.
func (s *session) caughtUp() {
	held := heldVersion(s.cfg.Live)
	if held.Epoch == 0 || s.goal != nil && (held.Epoch != s.goal.GetEpoch() || held.Revision < s.goal.GetRevision()) {
		return
	}
	s.holdsState()
	s.levelOnce.Do(func() { close(s.level) })
}

// behind gives the reason for going elsewhere. It raises the alarm when there is
// nowhere else to go: a control plane that has just started may be behind, and
// one that lost what nodes hold is so for ever.
func (s *session) behind(b *feedv1.Behind) error {
	head, held := versionOf(b.GetHead()), heldVersion(s.cfg.Live)
	err := fmt.Errorf("control plane is behind: %s", b.GetReason())
	switch {
	case head.Epoch == 0 || held.Epoch == 0:
		return err
	case head.Epoch == held.Epoch:
		if s.behindInRow++; s.behindInRow < max(len(s.cfg.Targets), minBehind) {
			return err
		}
	}
	s.metrics.refusesOlder.Store(true)
	if _, ok := s.older.due(tellEvery); ok {
		s.cfg.Log.Error("control plane holds an older version than this node, or another epoch: this node goes on with what it holds", "target", s.target,
			"epoch", fmt.Sprintf("%016x", head.Epoch), "revision", head.Revision,
			"held_epoch", fmt.Sprintf("%016x", held.Epoch), "held", held.Revision, "hint", afterRestore)
	}
	return err
}

// minBehind is how many times in a row a node is told that a control plane is
// behind until that is an alarm.
const minBehind = 3

// report sends the node's status until ctx ends.
func (s *session) report(ctx context.Context) {
	tick := time.NewTicker(s.cfg.StatusInterval)
	defer tick.Stop()
	for {
		status := &feedv1.Status{}
		if s.cfg.Status != nil {
			if given := s.cfg.Status(); given != nil {
				status = given
			}
		}
		if t := verified(s.cfg.Live); t != nil {
			status.Version, status.SetHash = versionProto(t.Version()), hashProto(t.Hash())
			status.Links, status.UnservedEntries = int64(t.Links()), int64(t.Unserved())
		}
		if s.send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Status{Status: status}}) != nil {
			return // receiving says why
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// verified is the table that the live one is shown instead of, nil if there is no
// state.
func verified(live *table.Live) *table.Table {
	if t := live.Load(); t != nil {
		return t.Verified()
	}
	return nil
}

// heldVersion is the live version; the zero one if there is no state.
func heldVersion(live *table.Live) table.Version {
	if t := live.Load(); t != nil {
		return t.Version()
	}
	return table.Version{}
}

func versionProto(v table.Version) *linkv1.Version {
	return &linkv1.Version{Epoch: v.Epoch, Revision: v.Revision}
}
