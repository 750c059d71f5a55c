package controlplane

import (
	"errors"
	"time"

	"github.com/affleet/affleet/controlplane/internal/snapshot"
)

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

// sendTakeDowns looks anew behind each: the node may have rejected meanwhile what it
// was to learn others from.
func (s *subscription) sendTakeDowns() error {
	for {
		due := s.takeDowns(s.log.View())
		if len(due) == 0 {
			return nil
		}
		s.downs.sent(due[0])
		if err := s.sendSlowly(due[0].Message); err != nil {
			return err
		}
		s.unread.afterDown = 0
		s.metrics.takeDowns.Add(1)
	}
}
