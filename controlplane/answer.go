package controlplane

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/controlplane/internal/snapshot"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

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
		s.takenDown(versionOf(m.TakenDown.GetVersion()))
	case *feedv1.SubscribeRequest_Status:
		s.fleet.status(s.node, m.Status)
		s.audit(versionOf(m.Status.GetVersion()), hashOf(m.Status.GetSetHash()))
	case *feedv1.SubscribeRequest_Hello:
		return status.Error(codes.InvalidArgument, "a second Hello on one stream")
	}
	return nil // of a newer release
}

func (s *subscription) takenDown(v snapshot.Version) {
	s.metrics.takenDown.Add(1)
	refused, ok := s.downs.answered(v)
	if !ok {
		return
	}
	if v.Revision == s.downs.upTo {
		s.unread.all = min(s.unread.all, s.unread.afterDown)
	}
	s.fleet.takenDown(s.node, refused)
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
	s.wantSnapshot, s.rejected, s.cursor = true, at, s.cursor.Other()
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
	guarded := m.GetCode() == feedv1.RejectCode_REJECT_CODE_GUARDED
	s.fleet.rejected(s.node, fmt.Sprintf("revision %d: %.300s", frame.To.Revision, m.GetReason()), guarded)
	s.metrics.rejected[frame.Kind].Add(1)
	if frame.Kind == snapshot.Delta { // from which it was to learn of take-downs, too
		s.downs.rejected(s.cursor.Held())
		s.fleet.takenDown(s.node, span{})
	}
	// A snapshot of the same would be rejected for the same reason.
	same := guarded || s.rejections > 0 && m.GetCode() == feedv1.RejectCode_REJECT_CODE_BAD_ENTRY
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
