package click

import (
	"math"
	"slices"
	"time"
)

// keepCount is how many segments that are over wait to be used again when the
// spares are there. More of them are what an outage has left.
const keepCount = 2

// goneEvery is how often a file may be removed while there is room, and
// goneAtOnce how many are when there has been time: each is 0.7 to 1.5 ms of work that
// redirects wait for. While a backlog drains, none is.
const (
	goneEvery  = 500 * time.Millisecond
	goneAtOnce = 2
)

// trim removes what is of no more use: segments of earlier boots and of a
// backlog that is gone, what was sent and has been kept for long enough, and
// the folders of earlier boots of which nothing is left, and nothing to tell.
func (r *Recorder) trim() {
	r.log.release(r.pause)
	most := min(goneAtOnce, int(time.Since(r.removedAt)/goneEvery))
	switch {
	case !r.room():
		most = math.MaxInt
	case r.drains():
		most = 0
	case most > 0:
		r.removedAt = time.Now()
	}
	if r.sent != nil {
		for most > 0 && r.sent.trim(time.Now(), false) {
			most--
			r.pause()
		}
	}
	gone := make(map[*Log]bool)
	for _, l := range r.Earlier() {
		empty, err := l.trim(0, most, false, r.pause)
		if err == nil && empty && l.Acknowledged() >= l.last && l.Told() && (r.sent == nil || !r.sent.holds(l.boot.dir)) {
			_ = l.boot.close(true) // what stays is found empty by the next boot
			gone[l] = true
		}
	}
	_, _ = r.log.trim(keepCount, most, r.config.Level == Memory, r.pause) // a file that stays counts as spool
	r.mu.Lock()
	defer r.mu.Unlock()
	r.earlier = slices.DeleteFunc(r.earlier, func(l *Log) bool { return gone[l] })
}

// drains says whether there is more to publish than what has just come.
func (r *Recorder) drains() bool {
	return r.log.backlog() || slices.ContainsFunc(r.Earlier(), func(l *Log) bool { return l.backlog() })
}

// over are the segments, oldest first, of which all is acknowledged and that
// nobody reads. The caller holds the mutex.
func (l *Log) over() (over []*segment) {
	acknowledged := l.Acknowledged()
	for _, s := range l.segments {
		if s.leaving {
			continue
		}
		if end, known := s.end(); !known || end > acknowledged+1 || s.pins > 0 || s.lingers() {
			break
		}
		over = append(over, s)
	}
	return over
}

// reuse takes the oldest segment that is over out of use, and puts it behind
// all others as a spare one whose content is still to be wiped; nil when there
// is none. Plain memory in the place of a file is not taken.
func (l *Log) reuse(memory bool) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.over() {
		if s.plain() != memory || s.damage.Load() != nil {
			continue
		}
		s.first.Store(0)
		s.sealed.Store(0)
		at := slices.Index(l.segments, s)
		l.segments = append(slices.Delete(l.segments, at, at+1), s)
		stepped("reuse: taken")
		return s
	}
	return nil
}

// waiting are the segments at each end of the backlog that keep their pages:
// those behind a publisher that keeps up.
const waiting = 4

// release gives back the pages of segments that wait for long to be read. Only
// the goroutine that also trims and reuses segments may call it.
func (l *Log) release(pause func()) {
	for _, s := range l.longWaiting() {
		s.release(pause)
	}
}

// backlog says whether so many segments wait to be published that it takes a while.
func (l *Log) backlog() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	acknowledged, n := l.Acknowledged(), 0
	for _, s := range l.segments {
		if end, known := s.end(); known && end > acknowledged+1 {
			if n++; n > 4*waiting {
				return true
			}
		}
	}
	return false
}

// longWaiting are those that have their pages. There may be thousands that have not: it
// looks for the first that waits, and then from the newest back.
func (l *Log) longWaiting() (list []*segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	acknowledged := l.Acknowledged()
	first := slices.IndexFunc(l.segments, func(s *segment) bool {
		end, known := s.end()
		return known && end > acknowledged+1
	})
	if first < 0 {
		return nil
	}
	released := 0
	for _, s := range slices.Backward(l.segments[min(first+waiting, len(l.segments)):]) {
		if s.released {
			if released++; released > waiting { // some were passed over, since they were pinned
				break
			}
		} else if _, known := s.end(); known && s.pins == 0 && !s.recovered {
			list = append(list, s)
		}
	}
	return list
}

// trim removes segments that are over, of those that can be used again all but
// keep. All of them give their memory back, but at most so many files go. It gives
// true when the log holds nothing.
func (l *Log) trim(keep, most int, memory bool, pause func()) (empty bool, err error) {
	l.mu.Lock()
	useful := 0
	for _, s := range slices.Backward(l.over()) {
		if s.plain() == memory && useful < keep && s.damage.Load() == nil {
			useful++
			continue
		}
		l.leave(s)
	}
	plain, leaving := l.takeLeavers()
	if len(plain) > 0 {
		l.gone = slices.Concat(plain, l.gone)
	}
	l.gone = append(l.gone, leaving...)
	durable := l.boot.durable && most > 0 && len(l.gone) > len(plain)
	l.mu.Unlock()
	for _, s := range leaving {
		s.mapOut(pause)
		stepped("trim: unmapped")
	}
	if durable {
		// What is removed has been acknowledged for a recovery, too. Where the disk
		// does not take that, clicks that come need the room more.
		_ = syncMemory(l.boot.mem)
	}
	for err == nil {
		s := l.takeGone(func(s *segment) bool { return most > 0 || s.plain() })
		if s == nil {
			break
		}
		if !s.plain() {
			most--
		}
		if err = s.remove(pause); err != nil {
			l.putBack(s) // it is tried again
			break
		}
		stepped("trim: removed")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.segments)+len(l.gone) == 0, err
}

// leave marks a segment that is to be removed, which trim does. The caller holds the mutex.
func (l *Log) leave(s *segment) {
	s.leaving = true
	l.leavers++
}

// takeLeavers takes what is to be removed out of the segments. With each batch of a
// backlog somebody asks for it, of thousands: it looks at them only when there are any. The
// caller holds the mutex.
func (l *Log) takeLeavers() (plain, files []*segment) {
	if l.leavers == 0 {
		return nil, nil
	}
	l.leavers = 0
	l.segments = slices.DeleteFunc(l.segments, func(s *segment) bool {
		switch {
		case !s.leaving:
		case s.plain():
			plain = append(plain, s)
		default:
			files = append(files, s)
		}
		return s.leaving
	})
	return plain, files
}

// takeLeaving takes a segment of so many bytes at least out of the log whose file is
// about to be removed; nil when there is none. trim, which may be about to unmap it just
// now, does so all the same.
func (l *Log) takeLeaving(least int64) *segment {
	return l.takeGone(func(s *segment) bool { return !s.plain() && s.size >= least && s.damage.Load() == nil })
}

// takeGone takes the oldest of the segments that wait to be removed, if that is one that
// fits: there may be thousands.
func (l *Log) takeGone(fits func(*segment) bool) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.gone) == 0 || !fits(l.gone[0]) {
		return nil
	}
	s := l.gone[0]
	l.gone = l.gone[1:]
	l.size -= s.size
	return s
}

// putBack gives back what takeGone gave.
func (l *Log) putBack(s *segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = slices.Insert(l.gone, 0, s)
	l.size += s.size
}
