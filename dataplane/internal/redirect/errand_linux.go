package redirect

import "time"

// longest is how long a loop does something for others where it has to answer meanwhile:
// if that takes longer, the loop is busy.
const longest = 50 * time.Millisecond

// errand is work that a loop does for others, between two answers.
type errand struct {
	work func(look func() bool)
	look func() bool
	ran  chan bool // has room for one
}

// Beside runs work on the thread of the event loop, where there is just one, and it has
// little else to do; else it gives false, and has done nothing. It returns when work has.
// Both are counted.
//
// On a core that is shared, each request that comes while another thread computes
// interrupts that, which takes longer than the answer on a virtual machine. Work that
// runs here is not interrupted: it calls look behind each piece, of some µs, in which the
// loop answers what has come meanwhile, and which gives false when it is to come to an end.
// It must not wait for anything: all redirects would. It may not hold what recording a
// click needs while it looks.
func (s *Server) Beside(work func(look func() bool)) bool {
	l := s.only.Load()
	return s.conns.errand(l != nil && l.lend(work))
}

// lend runs work between two turns, of which there is one at a time. Any goroutine may
// call it but the loop's.
func (l *loop) lend(work func(look func() bool)) bool {
	e := &errand{work, l.look, make(chan bool, 1)}
	return l.ask(e) && <-e.ran
}

// ask gives the loop something to be run, unless it has that, or has ended. It does not
// end, and its descriptors stay its own, until it is nudged.
func (l *loop) ask(e *errand) bool {
	l.lending.Lock()
	defer l.lending.Unlock()
	if l.ended || !l.errand.CompareAndSwap(nil, e) {
		return false
	}
	l.nudge()
	return true
}

// runErrand does what the loop was asked for in this turn. A loop that is busy would let
// it wait for ever, where a thread has its share; one that gets busy has it end.
func (l *loop) runErrand() {
	e := l.due
	if e == nil {
		return
	}
	willing := l.standing.far
	if willing {
		now, _ := l.group.srv.clock.read()
		l.dueUntil = now + int64(longest)
		e.work(e.look)
	}
	l.errand.Store(nil)
	l.due = nil
	e.ran <- willing
}

// look answers what has come, and says whether the loop has time to go on with its
// errand. It is called between two turns.
func (l *loop) look() (goOn bool) {
	n, _ := l.wait(0, false)
	if n == 0 && len(l.again) == 0 {
		return true
	}
	l.turn(n)
	now, _ := l.group.srv.clock.read()
	return now < l.dueUntil
}

// refuseErrands ends the one that waits: the loop runs no more.
func (l *loop) refuseErrands() {
	l.lending.Lock()
	defer l.lending.Unlock()
	l.ended = true
	if e := l.errand.Load(); e != nil {
		e.ran <- false
	}
}
