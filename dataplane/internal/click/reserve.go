package click

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A disk may hold up the goroutine that makes and removes segments for longer than the
// spare ones last: where much is written, Linux makes writers wait for up to 0.2 s at a
// time, and whoever makes or removes a file for the journal. What comes then is recorded
// in segments of plain memory that a goroutine of its own, which waits for no disk, keeps
// in reserve. They have no pages until they are used, and count for the spool's limit.

// errHeldUp is why clicks are in plain memory although nothing has failed.
var errHeldUp = errors.New("the disk is too slow: no segment was ready in time")

// keepReserve fills the reserve until Close.
func (r *Recorder) keepReserve() {
	tick := time.NewTicker(time.Second) // there may be room by now
	defer tick.Stop()
	for {
		r.fillReserve()
		select {
		case <-r.stop:
			return
		case <-r.taken:
		case <-tick.C:
		}
	}
}

// fillReserve makes what is lacking of the reserve, as far as there is room for it.
func (r *Recorder) fillReserve() {
	for have := len(r.reserve); have < cap(r.reserve) && r.hasRoom(int64(have+1)*r.config.SegmentBytes); have = len(r.reserve) {
		s, err := newReserve(r.config.SegmentBytes)
		if err != nil {
			break // tried again at the next tick
		}
		r.reserve <- s // has room: only this goroutine fills it
	}
	r.reopen()
}

// newReserve makes a segment of plain memory that has no pages yet.
func newReserve(size int64) (*segment, error) {
	mem, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("create segment: %w", err)
	}
	s := &segment{salt: rand.Uint32(), size: size}
	s.durable.Store(allDurable)
	s.state.Store(uint64(size) + 1) // as if it were over, until it is used
	s.mem.Store(&mem)
	return s, nil
}

// fromReserve takes a segment to go on with from sequence first; nil when there is none.
func (r *Recorder) fromReserve(first uint64) *segment {
	select {
	case s := <-r.reserve:
		if r.use(s, first) != nil {
			return nil // memory, so it does not fail
		}
		r.log.strays <- s // has room: all but one that is on its way are adopted before the reserve is filled
		select {
		case r.taken <- struct{}{}:
		default: // it is about to be filled
		}
		return s
	default:
		return nil
	}
}

// giveUpReserve gives up a segment of the reserve, and says whether there was one.
func (r *Recorder) giveUpReserve() bool {
	select {
	case s := <-r.reserve:
		s.unmap(r.pause)
		return true
	default:
		return false
	}
}

// adopt puts segments that came out of the reserve behind those that came into use before
// them, and says whether there were any. The caller holds the mutex.
func (l *Log) adopt() (any bool) {
	for {
		select {
		case s := <-l.strays:
			at := len(l.segments)
			for ; at > 0; at-- { // a segment that is spare, or was when it was given up, has no first sequence
				if first := l.segments[at-1].first.Load(); first != 0 && first <= s.first.Load() {
					break
				}
			}
			l.segments = slices.Insert(l.segments, at, s)
			l.size += s.size
			any = true
		default:
			return any
		}
	}
}
