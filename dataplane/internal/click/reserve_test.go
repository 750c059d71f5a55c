package click

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// stoppable makes the disk of the recorders that are opened next stop when the test says
// so: whoever makes a segment waits until it goes on.
func stoppable(t *testing.T) (stop, goOn func()) {
	t.Helper()
	var disk atomic.Pointer[chan struct{}]
	step = func(name string) {
		if going := disk.Load(); going != nil && name == "create: on the way" {
			<-*going
		}
	}
	goOn = func() {
		if going := disk.Swap(nil); going != nil {
			close(*going)
		}
	}
	t.Cleanup(func() { step = nil }) // behind that of the recorder
	return func() {
		going := make(chan struct{})
		disk.Store(&going)
	}, goOn
}

// ready waits until all segments are there that are made ahead.
func ready(t *testing.T, r *Recorder) {
	t.Helper()
	waitFor(t, "there are spare segments and a reserve", func() bool { return len(r.spares) == spareCount && len(r.reserve) == spareCount })
}

func TestNoClickIsLostWhileTheDiskMakesNoSegment(t *testing.T) {
	for _, test := range []struct {
		name  string
		level Level
		read  bool
	}{{"process", Process, true}, {"fsync", Fsync, true}, {"nobody reads", Process, false}} {
		t.Run(test.name, func(t *testing.T) {
			stop, goOn := stoppable(t)
			r := open(t, func(c *Config) { c.Level, c.Boot, c.MaxBytes = test.level, 5, 16<<20 })
			defer goOn()
			ready(t, r)
			cursor := r.Log().Cursor(0)
			defer cursor.Close()
			stop()
			n, left := uint64(0), uint64(0)
			record := func(count int, next func() bool) {
				for range count {
					waitFor(t, "there is a segment to go on with", next)
					if r.Record(&Event{UserAgent: make([]byte, 1000)}); !r.current.Load().plain() {
						left++
					}
					n++
				}
			}
			record(3000, func() bool { return len(r.spares)+len(r.reserve) > 0 }) // of which some 750 are in the three segments that there are
			if got := r.Ledger(); !errors.Is(r.Degraded(), errHeldUp) || got.Recorded != n || got.Answered != n || left < 500 || left > 1000 {
				t.Fatalf("degraded: %v, %d of %d in files, %+v", r.Degraded(), left, n, got)
			}
			var all []Click
			read := func() {
				if !test.read {
					return
				}
				waitFor(t, "all is read", func() bool {
					all = append(all, readOn(t, cursor)...)
					return uint64(len(all)) >= n
				})
			}
			read() // also what no file comes behind
			goOn()
			waitFor(t, "clicks are in files", func() bool { return !r.current.Load().plain() })
			record(500, func() bool { return len(r.spares) > 0 })
			read()
			for i, c := range all {
				if c.Sequence != uint64(i)+1 {
					t.Fatalf("click %d of %d has sequence %d", i+1, len(all), c.Sequence)
				}
			}
			if got := r.Ledger(); r.Degraded() != nil || test.read && uint64(len(all)) != n || got.Lost() > 0 {
				t.Errorf("degraded: %v, %d of %d clicks, %+v", r.Degraded(), len(all), n, got)
			}
			checkLost(t, copied(t, r), n, left, LostMemory) // it is killed
		})
	}
}

func TestTheReserveKeepsToTheLimitOfTheSpool(t *testing.T) {
	stop, goOn := stoppable(t)
	r := open(t, func(c *Config) { c.MaxBytes = 12 * minSegment })
	defer goOn()
	ready(t, r)
	stop()
	full := func() bool { return r.current.Load() == nil }
	fill := func() {
		waitFor(t, "the spool is full", func() bool {
			for range 50 {
				r.Record(&Event{UserAgent: make([]byte, 1000)})
			}
			return full()
		})
	}
	fill()
	if r.Bytes() > r.config.MaxBytes {
		t.Errorf("%d bytes, of a limit of %d", r.Bytes(), r.config.MaxBytes)
	}
	goOn()
	waitFor(t, "the room that is left is used", func() bool {
		fill()
		return r.Bytes()+minSegment > r.config.MaxBytes
	})
	if r.Bytes() > r.config.MaxBytes || len(r.reserve) > 0 {
		t.Errorf("%d bytes, of a limit of %d, and a reserve of %d", r.Bytes(), r.config.MaxBytes, len(r.reserve))
	}
	r.Log().Acknowledge(r.Last())
	ready(t, r)
}

// A disk that takes files again, after it has failed, may be slow. The spare segments that
// were given up for those files are still to be removed then.
func TestClicksOfTheReserveComeBehindThoseOfTheFilesBefore(t *testing.T) {
	r := still(t, func(c *Config) { c.Level = Process })
	r.fillReserve()
	cause := errors.New("the disk has failed")
	r.degraded.Store(&cause)
	r.heal()
	for !r.current.Load().plain() {
		recordTimes(r, 0, 1)
	}
	last := r.Last()
	for i, c := range readAll(t, r.Log(), 0) {
		if c.Sequence != uint64(i)+1 {
			t.Fatalf("click %d has sequence %d", i+1, c.Sequence)
		}
		last--
	}
	if last != 0 {
		t.Errorf("%d clicks are not read", last)
	}
}

// The reserve is filled while one of it has left it, and has not come to the log.
func TestWhatComesOutOfTheReserveWaitsForNobody(t *testing.T) {
	r := still(t, func(c *Config) { c.Level = Process })
	r.fillReserve()
	for len(r.spares) > 0 {
		recordTimes(r, 0, 1)
	}
	fill := sync.OnceFunc(r.fillReserve)
	step = func(name string) {
		if name == "use: done" {
			fill()
		}
	}
	t.Cleanup(func() { step = nil })
	recorded := make(chan struct{})
	go func() {
		defer close(recorded)
		for r.current.Load() != nil {
			recordTimes(r, 0, 1)
		}
	}()
	select {
	case <-recorded:
	case <-time.After(10 * time.Second):
		t.Error("a click waits for somebody who adopts segments")
		r.Bytes()
		<-recorded
	}
	if n := len(readAll(t, r.Log(), 0)); uint64(n) != r.Last() {
		t.Errorf("%d clicks of %d are read", n, r.Last())
	}
}
