package click

import (
	"bytes"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/affleet/affleet/dataplane/internal/race"
)

func withoutRaceDetector(t *testing.T) {
	t.Helper()
	if race.Enabled {
		t.Skip("an atomic store that is a fault ends a process with the race detector; make test runs this without it, too")
	}
}

// refuse makes each store to the page with the marks a fault, as where a disk cannot take
// the page.
func refuse(t *testing.T, b *boot) {
	t.Helper()
	if err := unix.Mprotect(b.mem, unix.PROT_READ); err != nil {
		t.Fatal(err)
	}
}

func TestMarksWhosePageCannotBeWrittenGoOnInMemoryUntilThereIsAFile(t *testing.T) {
	withoutRaceDetector(t)
	r := open(t, func(c *Config) { c.Boot, c.MaxBytes = 5, 16<<20 })
	b, l := r.log.boot, r.Log()
	recordTimes(r, 1, 51)
	away := inTheWay(t, r)
	first, err := b.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	refuse(t, b)
	cursor := l.Cursor(0)
	defer cursor.Close()
	if times, told := readDamaged(t, cursor); told != 0 || len(times) != 50 {
		t.Errorf("told %d times, %d clicks", told, len(times))
	}
	l.SetPosition(7)
	l.Tell(3, true)
	l.Acknowledge(20)
	waitFor(t, "somebody is told", func() bool { return r.Degraded() != nil })
	away()
	waitFor(t, "the folder is used again", func() bool { return r.Degraded() == nil })
	l.Acknowledge(30)
	if now, err := b.file.Stat(); err != nil || os.SameFile(first, now) || b.apart() {
		t.Errorf("the marks have no new file: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	next := open(t, func(c *Config) { c.Dir, c.Boot = r.config.Dir, 6 }).Earlier()[0]
	if m := next.boot; m.Boot != 5 || next.Acknowledged() != 30 || next.Position() != 7 || m.cut.Load() != 50 {
		t.Errorf("boot %d, acknowledged %d, position %d, %d were given", m.Boot, next.Acknowledged(), next.Position(), m.cut.Load())
	} else if m.told.Load() != 3 || m.toldEnd.Load() != 1 {
		t.Errorf("%d are told, the end: %d", m.told.Load(), m.toldEnd.Load())
	}
}

func TestNoMarkIsLostWithItsPage(t *testing.T) {
	withoutRaceDetector(t)
	for name, mark := range map[string]func(r *Recorder) bool{
		"what is acknowledged": func(r *Recorder) bool { r.Log().Acknowledge(1); return r.Log().Acknowledged() == 1 },
		"the position":         func(r *Recorder) bool { r.Log().SetPosition(3); return r.Log().Position() == 3 },
		"what was lost":        func(r *Recorder) bool { r.Log().Lose(Corrupt, 2); return r.Ledger().Dropped[Corrupt] == 2 },
		"what is too large": func(r *Recorder) bool {
			r.Record(&Event{Destination: make([]byte, minSegment)})
			return r.Ledger().Dropped[TooLarge] == 1
		},
		"what is told":  func(r *Recorder) bool { r.Log().Tell(4, false); return r.log.boot.told.Load() == 4 },
		"the last told": func(r *Recorder) bool { r.Log().Tell(0, true); return r.log.boot.toldEnd.Load() == 1 },
		"its end":       func(r *Recorder) bool { r.End(); return r.Log().Ended() },
		"what is in memory": func(r *Recorder) bool {
			r.log.boot.mark(func() { r.log.boot.noteUse(true, 2) })
			_, memory := r.log.boot.inMemory(2, 9)
			return memory
		},
	} {
		r := open(t)
		recordTimes(r, 1, 2)
		refuse(t, r.log.boot)
		if !mark(r) {
			t.Errorf("%s is not noted", name)
		}
	}
}

// Pages go, and files take their place, while many count.
func TestMarksAreExactWhileTheirPageMoves(t *testing.T) {
	withoutRaceDetector(t)
	b, err := createBoot(t.TempDir(), Identity{Node: "n", Boot: 5}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close(true)
	var stop atomic.Bool
	var counted atomic.Uint64
	var counting sync.WaitGroup
	for range 4 {
		counting.Go(func() {
			for !stop.Load() {
				b.drop(SpoolFull, 1)
				counted.Add(1)
			}
		})
	}
	for range 50 {
		b.moving.Lock()
		if b.page == b.file { // else somebody has taken long to meet the fault before
			refuse(t, b)
		}
		b.moving.Unlock()
		for before := counted.Load(); counted.Load() < before+100; { // somebody has met it
			runtime.Gosched()
		}
		if err := b.restore(); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	counting.Wait()
	if got := b.dropped[SpoolFull].Load(); got != counted.Load() {
		t.Errorf("%d of %d are counted", got, counted.Load())
	}
}

// What is marked between the copy of a page and its move is in the old file.
func TestMarksCatchUpWithTheirOldPage(t *testing.T) {
	b, err := createBoot(t.TempDir(), Identity{Node: "n", Boot: 5}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close(true)
	l := &Log{boot: b, wake: func() {}}
	before := bytes.Clone(b.mem)
	l.Tell(6, true)
	last := bytes.Clone(b.mem)
	copy(b.mem, before)
	b.catchUp(before, last)
	if b.told.Load() != 6 || b.toldEnd.Load() != 1 {
		t.Errorf("%d are told, the end: %d", b.told.Load(), b.toldEnd.Load())
	}
}
