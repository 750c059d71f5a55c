package click

import (
	"errors"
	"os"
	"runtime"
	"slices"
)

// End makes the running log final: what Record is given from now on is
// counted as dropped. Call it when the last request has been answered.
func (r *Recorder) End() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	r.ended = true
	r.log.boot.end(1)
	for {
		s := r.current.Load()
		if s == nil {
			r.log.boot.end(r.first.Load())
			return
		}
		// Taking more than there is seals a segment like any click that
		// does not fit; when a click was sooner, the next one is tried.
		if _, index, p := s.place(int(s.size) + 1); p == last {
			first := s.first.Load() + uint64(index)
			r.first.Store(first)
			s.sealed.Store(int64(index) + 1)
			r.current.Store(nil)
			if s.whole() {
				r.log.boot.end(first)
			}
			return
		}
		runtime.Gosched()
	}
}

// whole says whether each place of a sealed segment that was taken is filled: one that is
// not may never be a click.
func (s *segment) whole() (whole bool) {
	mem := s.bytes()
	err := guarded(mem, func() { _, whole = s.written(segmentHead) })
	return err == nil && whole
}

// Close ends the recorder. What has not been acknowledged, or told, stays in the
// folder for the next boot; at level memory it is lost.
func (r *Recorder) Close() error {
	r.End()
	r.mu.Lock()
	again := r.closed
	r.closed = true
	r.mu.Unlock()
	if again {
		return nil
	}
	close(r.stop)
	r.stopped.Wait()
	for r.giveUpReserve() {
	}
	if r.metrics != nil {
		r.config.Registerer.Unregister(r.metrics)
	}
	if r.sent != nil {
		r.sent.close()
	}
	if r.config.Level == Fsync {
		r.sync()
		_ = syncMemory(r.log.boot.mem) // its loss costs duplicates at most
	}
	r.forget()
	if r.log.Acknowledged() < r.Last() {
		return errors.Join(r.log.boot.close(false), r.release())
	}
	if !r.log.told(r.Last()) || r.sent != nil && r.sent.holds(r.log.boot.dir) {
		return errors.Join(r.log.removeSegments(), r.log.boot.close(false), r.release())
	}
	return errors.Join(r.log.discard(), r.release())
}

// forget accounts for clicks that were only in plain memory and are not published. At
// level memory there is no next boot to tell of them; at others that one finds their
// sequences without clicks, and counts them as lost with the memory: see memory.go.
func (r *Recorder) forget() {
	l := r.log
	l.mu.Lock()
	l.adopt()
	var lost uint64
	for _, s := range l.segments {
		if end, known := s.end(); known && s.plain() && s.first.Load() != 0 {
			if from := max(s.first.Load(), l.Acknowledged()+1); end > from {
				lost += end - from
			}
		}
	}
	l.mu.Unlock()
	switch {
	case lost == 0:
	case r.config.Level == Memory:
		l.Lose(LostMemory, lost)
	default:
		l.boot.give(r.Last())
	}
}

// removeSegments deletes the files of a log of which all is acknowledged, as far as they
// are still there. They stay mapped: a request may have been late.
func (l *Log) removeSegments() error {
	var errs []error
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range slices.Concat(l.segments, l.gone) {
		if s.path == "" {
			continue
		}
		if err := os.Remove(s.path); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// discard removes a log with its folder.
func (l *Log) discard() error { return l.boot.close(true) }

// release lets go of the earlier boots' folders.
func (r *Recorder) release() error {
	var errs []error
	for _, l := range r.earlier {
		errs = append(errs, l.boot.close(false))
	}
	return errors.Join(errs...)
}
