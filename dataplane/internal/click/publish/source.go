package publish

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/click"
)

// batch is a message for JetStream. Its range and bytes never change, however
// often it is sent.
type batch struct {
	log     *click.Log  // nil when it was acknowledged before
	again   *click.Sent // not nil: the stream has lost it
	id      string
	subject string
	data    []byte
	first   uint64 // sequence
	last    uint64 // highest sequence in it, or before it when it has no clicks
	clicks  uint64
	lost    uint64 // in the account that it carries
	final   bool

	sent     time.Time // zero: to be sent (again)
	acked    bool
	position uint64 // in the stream, once acknowledged
}

// source cuts the clicks of one log into batches, in order. It belongs to the
// publisher's goroutine.
type source struct {
	log     *click.Log
	subject string
	cursor  *click.Cursor
	encoder *encoder // of all sources, which are published one after the other
	click   click.Click
	opened  time.Time // when the open batch got its first click; zero: none is open
	told    click.Ledger
	toldAt  time.Time
	buffer  func() []byte // gives storage for a batch
	storage []byte        // for the next one; nil: there is none yet
	closed  bool          // an earlier boot's: all is cut
	recut   bool          // ranges may have been cut differently before
	yield   func()        // lets redirects go first
	beside  Beside        // where a backlog is encoded; nil: here
	damaged func(error)   // is told of what cannot be read
}

// yieldEvery is after how many clicks redirects may go first: on a node with one
// core they would wait for all of a tick's clicks, some 100 µs at 50,000 a
// second, and for much more behind an outage.
const yieldEvery = 4

func newSource(log *click.Log, e *encoder, buffer func() []byte) *source {
	id := log.Identity()
	return &source{
		log: log, subject: clickstream.Subject(id.Region, id.Node), cursor: log.Cursor(log.Acknowledged()), encoder: e,
		buffer: buffer, recut: log.Recovered(), yield: runtime.Gosched, damaged: func(error) {},
	}
}

// begin opens a batch.
func (s *source) begin(first uint64) {
	s.encoder.identify(s.log.Identity())
	storage := s.storage
	if s.storage = nil; storage == nil {
		storage = s.buffer()
	}
	s.encoder.begin(storage, first)
}

// fill moves recorded clicks into the open batch, and gives it when it is
// full, maxAge old, or force is set; nil when there is nothing to send yet.
func (s *source) fill(now time.Time, maxAge time.Duration, force bool) (*batch, error) {
	full, n := false, 0
	take := func() bool {
		if n++; n%yieldEvery == 0 {
			s.yield()
		}
		if s.opened.IsZero() {
			s.begin(s.click.Sequence)
			s.opened = now
		}
		full = !s.encoder.add(&s.click)
		return !full
	}
	for {
		if b := s.fillBeside(take, &full); b != nil {
			return b, nil
		}
		err := s.cursor.Each(&s.click, take)
		if s.encoder.clicks == 0 { // what was to be its first could not be read
			s.opened = time.Time{}
		}
		switch {
		case full:
			return s.cut(false), nil
		case errors.Is(err, click.ErrDamaged):
			s.damaged(err)
			if s.log.Recovered() {
				continue // nobody is still writing there
			}
		case err != nil:
			return nil, err
		}
		if !s.opened.IsZero() && (force || now.Sub(s.opened) >= maxAge) {
			return s.cut(false), nil
		}
		return nil, nil
	}
}

// ahead is how much of a backlog that is not in memory is loaded at once: about a batch.
const ahead = 1 << 20

// fillBeside is fill for what there is of a backlog, as far as redirects make room for
// it: see Beside. It gives nil when there is no more of that. What is allocated is so
// before or behind that work: it might have to wait for a collection of garbage.
func (s *source) fillBeside(take func() bool, full *bool) *batch {
	for s.beside != nil && s.cursor.Ahead(ahead) {
		before, stop := s.position(), false
		if s.storage == nil {
			s.storage = s.buffer()
		}
		var look func() bool
		answer := func() { stop = !look() || stop }
		on := func() bool { return !stop && take() }
		ran := s.beside(func(l func() bool) {
			look = l
			own := s.yield
			s.yieldWith(answer)
			s.cursor.Within(&s.click, on)
			if *full {
				s.encoder.seal()
			}
			s.yieldWith(own)
		})
		switch {
		case *full:
			return s.cut(false)
		case !ran || stop || s.position() == before:
			return nil
		}
	}
	return nil
}

func (s *source) yieldWith(f func()) { s.yield, s.encoder.yield = f, f }

// cut ends the open batch.
func (s *source) cut(final bool) *batch {
	e, id := s.encoder, s.log.Identity()
	b := &batch{log: s.log, subject: s.subject, clicks: e.clicks, first: e.first, last: e.first + e.clicks - 1, final: final}
	b.id = fmt.Sprintf("%s-%016x-%d", id.Node, id.Boot, e.first)
	s.told = s.cursor.Ledger()
	switch {
	case b.clicks == 0:
		b.id += fmt.Sprintf("-ledger-%d", s.told.Answered)
		if final {
			b.id += "-final"
		}
	case s.recut:
		b.id += fmt.Sprintf("-%d", b.last)
	}
	b.lost = s.told.Lost()
	b.data = e.end(&s.told, final)
	s.opened = time.Time{}
	return b
}

// report gives a batch without clicks when the account has changed since it
// was last told, or when it is the last one.
func (s *source) report(now time.Time, final bool) *batch {
	if !s.opened.IsZero() {
		return nil // the open batch will tell
	}
	account := s.cursor.Ledger()
	if !final && (account.Lost() == s.told.Lost() || now.Sub(s.toldAt) < time.Second) {
		return nil
	}
	s.toldAt = now
	s.begin(s.position())
	return s.cut(final)
}

// lastWord gives the last batch of an earlier boot, unless the stream has it.
func (s *source) lastWord(now time.Time) *batch {
	if s.log.Told() {
		return nil
	}
	return s.report(now, s.log.Ended())
}

// position is the sequence of the next click that goes into a batch.
func (s *source) position() uint64 { return s.cursor.Position() }
