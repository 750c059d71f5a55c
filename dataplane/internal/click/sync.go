package click

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// At level fsync, a goroutine brings what was recorded to the disk, all that has
// come in one window together, so that a power cut takes the clicks of the last
// window at most, and of the time that the disk took for the one before. A
// redirect never waits for it.
//
// Readers see a click only when it is on the disk. So a sequence that a consumer
// has seen is never given to another click, whatever a power cut leaves: see
// recover, which closes up places that were never filled.

// durable lets readers have everything, as at the other levels.
const allDurable = math.MaxInt64

// syncEvery runs until Close.
func (r *Recorder) syncEvery(window time.Duration) {
	tick := time.NewTicker(window)
	defer tick.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-tick.C:
		}
		r.sync()
	}
}

// sync brings what has been recorded until now to the disk.
func (r *Recorder) sync() {
	before := r.syncFailed.Load()
	works, fails := false, false
	for _, s := range r.log.unsynced() {
		if synced, err := s.sync(); errors.As(err, new(*fault)) {
			r.hurt(s, err)
		} else if err != nil {
			// What the kernel could not write it may have given up. The clicks
			// are still in its memory, as at level process.
			err = fmt.Errorf("sync segment: %w", err)
			fails = true
			r.syncFailed.CompareAndSwap(nil, &err)
			r.degraded.CompareAndSwap(nil, r.syncFailed.Load()) // what has failed otherwise goes on
		} else {
			works = works || synced
		}
		r.log.mu.Lock()
		s.pins--
		r.log.mu.Unlock()
	}
	if before != nil && works && !fails && r.syncFailed.CompareAndSwap(before, nil) {
		r.degraded.CompareAndSwap(before, nil)
	}
}

// unsynced gives the segments with clicks that are not on the disk, pinned.
func (l *Log) unsynced() (all []*segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segments {
		if s.leaving {
			continue
		}
		if s.first.Load() == 0 {
			break // spare
		}
		if s.durable.Load() == allDurable || s.plain() || s.damage.Load() != nil {
			continue
		}
		s.pins++
		all = append(all, s)
	}
	return all
}

// sync brings the clicks to the disk that are there without a hole, and says
// whether there were any.
func (s *segment) sync() (synced bool, err error) {
	mem := s.bytes()
	from := int(s.durable.Load())
	to, whole := from, false
	if err := guarded(mem, func() { to, whole = s.written(from) }); err != nil {
		return false, err
	}
	if to == from && !whole {
		return false, nil
	}
	// The head of the segment is in the first page, and on the disk from the
	// first time on.
	start := 0
	if from > segmentHead {
		start = from &^ (pageSize - 1)
	}
	end := min(len(mem), (to+pageSize-1)&^(pageSize-1))
	err = syncMemory(mem[start:end])
	if whole {
		s.durable.Store(allDurable)
	} else {
		s.durable.CompareAndSwap(int64(from), int64(to)) // not where the file was removed meanwhile: see orphan
	}
	return true, err
}

// written is up to where all places from one on are filled, and whether no others will
// be.
func (s *segment) written(from int) (to int, whole bool) {
	mem, sealed := s.bytes(), s.sealed.Load() != 0
	for to = from; to+8 <= len(mem); {
		length := int(uint32(loadHead(mem, to)))
		if length == 0 {
			break
		}
		to += length
	}
	// Behind the last click there is only the place that did not fit.
	return to, sealed && s.filled(to)
}

// filled says whether a sealed segment has no click behind pos.
func (s *segment) filled(pos int) bool {
	return s.count(pos) == uint64(s.sealed.Load()-1)
}

// count is how many clicks lie before pos, none of which is missing.
func (s *segment) count(pos int) (n uint64) {
	mem := s.bytes()
	for at := segmentHead; at < pos; n++ {
		at += int(uint32(loadHead(mem, at)))
	}
	return n
}

// syncMemory waits until a piece of a mapped file is on the disk. It is replaced
// by tests that record what is written and when.
var syncMemory = func(mem []byte) error {
	for {
		if err := unix.Msync(mem, unix.MS_SYNC); err != unix.EINTR {
			return err
		}
	}
}

// syncFile waits until a file, or the names in a folder, are on the disk. It is replaced
// by tests whose disk fails.
var syncFile = (*os.File).Sync

// syncNew brings a new file's name and content to the disk.
func syncNew(path string) error {
	for _, p := range []string{path, filepath.Dir(path)} {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		if err := errors.Join(syncFile(f), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
