package click

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// A page of a file that was cut off, and one that may not be touched, are faults as a
// page is that the disk cannot give.

// forbid makes a page of a segment a fault until the test ends.
func forbid(t *testing.T, s *segment, offset int) {
	t.Helper()
	page := s.bytes()[offset : offset+pageSize]
	if err := unix.Mprotect(page, unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.bytes() == nil {
			return // gone
		}
		if err := unix.Mprotect(page, unix.PROT_READ|unix.PROT_WRITE); err != nil {
			t.Error(err)
		}
	})
}

// cutOff cuts off the file of a segment.
func cutOff(t *testing.T, s *segment, size int64) {
	t.Helper()
	if err := os.Truncate(s.path, size); err != nil {
		t.Fatal(err)
	}
}

// all are the segments that a log has now.
func all(l *Log) []*segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.segments)
}

// recordTimes records clicks of about 1 KiB with the times of a range.
func recordTimes(r *Recorder, from, to int) {
	for i := from; i < to; i++ {
		r.Record(&Event{Time: int64(i), UserAgent: make([]byte, 1000)})
	}
}

// readDamaged is readOn where damage is expected: it counts how often it is told of.
func readDamaged(t *testing.T, cursor *Cursor) (times []int64, told int) {
	t.Helper()
	for {
		var c Click
		ok, err := cursor.Next(&c)
		switch {
		case errors.Is(err, ErrDamaged):
			told++
		case err != nil:
			t.Fatal(err)
		case !ok:
			return times, told
		case c.Time != int64(c.Sequence):
			t.Fatalf("sequence %d is click %d", c.Sequence, c.Time)
		default:
			times = append(times, c.Time)
		}
	}
}

func TestALiveCursorPassesAPageThatCannotBeRead(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := open(t, func(c *Config) { c.Registerer = registry })
	recordTimes(r, 1, 101)
	s := r.current.Load()
	cursor := r.Log().Cursor(0)
	defer cursor.Close()
	for range 10 {
		var c Click
		if ok, err := cursor.Next(&c); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	forbid(t, s, 10*pageSize)
	forbid(t, s, 11*pageSize)
	forbid(t, s, 20*pageSize)
	times, told := readDamaged(t, cursor)
	recordTimes(r, 101, 151)
	more, again := readDamaged(t, cursor)
	times = append(times, more...)
	// Of 1,072 bytes each: 3 pages, and what reaches into them.
	if n := len(times); told != 1 || again != 0 || n < 140-15 || n > 140-12 || times[n-1] != 150 {
		t.Errorf("told %d and %d times, %d clicks: %d", told, again, n, times)
	}
	lost := uint64(140 - len(times))
	for _, account := range []Ledger{cursor.Ledger(), r.Ledger()} {
		if account.Answered != 150 || account.Recorded != 150-lost || account.Dropped[Corrupt] != lost {
			t.Errorf("%d are lost: %+v", lost, account)
		}
	}
	dropped(t, registry, Corrupt, lost)
	if r.current.Load() == s {
		t.Error("clicks still go where they cannot be read")
	}
	other := r.Log().Cursor(0) // as when batches are cut again
	defer other.Close()
	if again, told := readDamaged(t, other); len(again) != len(times)+10 || told != 1 {
		t.Errorf("another cursor reads %d clicks, and is told %d times", len(again), told)
	}
	dropped(t, registry, Corrupt, lost)
}

func TestAClickThatWasGivenDoesNotGoWithItsPage(t *testing.T) {
	r := open(t)
	r.Record(&Event{UserAgent: []byte("agent")})
	cursor := r.Log().Cursor(0)
	defer cursor.Close()
	var c Click
	if ok, err := cursor.Next(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	forbid(t, r.current.Load(), 0)
	if string(c.UserAgent) != "agent" {
		t.Errorf("%q", c.UserAgent)
	}
}

// The page of a click goes while somebody reads the click.
func TestWhoTakesClicksIsNotHurtByAPageThatGoes(t *testing.T) {
	r := open(t)
	recordTimes(r, 1, 101)
	cursor := r.Log().Cursor(0)
	defer cursor.Close()
	var c Click
	var times []int64
	calls := 0
	take := func() bool {
		if calls++; calls == 10 {
			page := uintptr(unsafe.Pointer(unsafe.SliceData(c.UserAgent))) - uintptr(unsafe.Pointer(unsafe.SliceData(cursor.mem)))
			forbid(t, r.current.Load(), int(page)&^(pageSize-1))
		}
		if bytes.Count(c.UserAgent, []byte{0}) != 1000 { // reads it
			t.Errorf("click %d is not whole", c.Sequence)
		}
		if len(times) == 50 {
			return false
		}
		times = append(times, int64(c.Sequence))
		return true
	}
	if err := cursor.Each(&c, take); !errors.Is(err, ErrDamaged) || len(times) != 9 || cursor.Position() != 10 {
		t.Fatalf("%v, %d clicks, at %d", err, len(times), cursor.Position())
	}
	// The rest, up to one that is not taken and stays.
	if err := cursor.Each(&c, take); err != nil || len(times) != 50 {
		t.Fatalf("%v, %d clicks", err, len(times))
	}
	lost := int(times[9]) - 10 // what lay in the page, or reached into it
	if lost < 3 || lost > 5 || times[49] != int64(50+lost) || int(cursor.Position()) != 51+lost {
		t.Errorf("%d, at %d", times, cursor.Position())
	}
	rest, told := readDamaged(t, cursor)
	if got := cursor.Ledger(); told != 0 || len(rest) != 50-lost || got.Answered != 100 || got.Dropped[Corrupt] != uint64(lost) {
		t.Errorf("told %d times, %d clicks, %+v", told, len(rest), got)
	}
}

func TestWhatIsMissingAtTheEndOfADamagedSegmentIsCounted(t *testing.T) {
	r := open(t)
	recordTimes(r, 1, 101)
	cutOff(t, r.current.Load(), 10*pageSize)
	cursor := r.Log().Cursor(0)
	defer cursor.Close()
	times, told := readDamaged(t, cursor)
	if told != 1 || len(times) != 38 || cursor.Position() != 101 {
		t.Errorf("told %d times, %d clicks, at %d", told, len(times), cursor.Position())
	}
	r.End()
	r.Log().Acknowledge(100)
	if got := r.Ledger(); got.Answered != 100 || got.Recorded != 38 || got.Dropped[Corrupt] != 62 {
		t.Errorf("%+v", got)
	}
}

func TestACursorPassesWhatCannotBeReadOfAnEarlierBoot(t *testing.T) {
	dir := t.TempDir()
	first := open(t, func(c *Config) { c.Dir, c.Boot = dir, 5 })
	recordTimes(first, 1, 101)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	r := open(t, func(c *Config) { c.Dir, c.Boot = dir, 6 })
	l := r.Earlier()[0]
	cursor := l.Cursor(0)
	defer cursor.Close()
	var c Click
	if ok, err := cursor.Next(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	cutOff(t, all(l)[0], 10*pageSize)
	times, told := readDamaged(t, cursor)
	account := cursor.Ledger()
	if told != 1 || len(times) != 37 || account.Answered != 100 || account.Dropped[Corrupt] != 62 {
		t.Errorf("told %d times, %d clicks, %+v", told, len(times), account)
	}
}

func TestADiskThatTakesNoClickAnyMoreCostsOneAndHeals(t *testing.T) {
	r := open(t, func(c *Config) { c.Boot, c.MaxBytes = 5, 16<<20 })
	recordTimes(r, 1, 51)
	away := inTheWay(t, r)
	for _, s := range all(r.Log()) { // the spare ones too
		cutOff(t, s, 0)
	}
	recordTimes(r, 51, 52)
	if r.Degraded() == nil {
		t.Error("nobody is told")
	}
	for i := 52; i < 2000; i++ {
		waitFor(t, "there is a segment to go on with", func() bool { return r.current.Load() != nil && len(r.spares) > 0 })
		recordTimes(r, i, i+1)
	}
	if !r.current.Load().plain() || r.Degraded() == nil {
		t.Errorf("clicks are not in memory: %v", r.Degraded())
	}
	cursor := r.Log().Cursor(0)
	defer cursor.Close()
	times, told := readDamaged(t, cursor)
	if told != 1 || len(times) != 1999-51 || times[0] != 52 {
		t.Errorf("told %d times, %d clicks, the first is %d", told, len(times), times[0])
	}
	if got := r.Ledger(); got.Answered != 1999 || got.Dropped[Corrupt] != 51 || got.Lost() != 51 {
		t.Errorf("%+v", got)
	}
	away()
	waitFor(t, "clicks are in files", func() bool { return r.Degraded() == nil && !r.current.Load().plain() })
	recordTimes(r, 2000, 2101)
	if times, told = readDamaged(t, cursor); told != 0 || len(times) != 101 {
		t.Errorf("healed: told %d times, %d clicks", told, len(times))
	}
}

func TestTheNextBootCountsAClickWhosePlaceCouldNotBeWritten(t *testing.T) {
	r := open(t, func(c *Config) { c.Boot = 5 })
	waitFor(t, "there are spare segments", func() bool { return len(r.spares) == spareCount })
	recordTimes(r, 1, 11)
	s := r.current.Load()
	_, offset, _ := s.begun()
	forbid(t, s, (int(offset)+pageSize-1)&^(pageSize-1)) // the next page
	recordTimes(r, 11, 31)
	dir := copied(t, r) // nobody has read it
	next := open(t, func(c *Config) { c.Dir, c.Boot = dir, 6 })
	cursor := next.Earlier()[0].Cursor(0)
	defer cursor.Close()
	clicks := readOn(t, cursor)
	if got := cursor.Ledger(); len(clicks) != 29 || got.Answered != 30 || got.Dropped[Corrupt] != 1 {
		t.Errorf("%d clicks, %+v", len(clicks), got)
	}
}

func TestASegmentThatCannotBeWipedIsNotUsedAgain(t *testing.T) {
	r := open(t)
	waitFor(t, "there are spare segments", func() bool { return len(r.spares) == spareCount })
	s := r.current.Load()
	for r.current.Load() == s {
		recordTimes(r, 1, 2)
	}
	waitFor(t, "there are spare segments again", func() bool { return len(r.spares) == spareCount })
	path := s.path
	cutOff(t, s, pageSize)
	r.Log().Acknowledge(r.Last())
	for next := r.current.Load(); r.current.Load() == next; { // the first is wanted now
		recordTimes(r, 1, 2)
	}
	waitFor(t, "the file goes", func() bool {
		r.wakeUp()
		_, err := os.Stat(path)
		return errors.Is(err, os.ErrNotExist)
	})
	waitFor(t, "there are spare segments again", func() bool { return len(r.spares) == spareCount && r.Degraded() == nil })
}

func TestAtLevelFsyncADamagedSegmentHoldsNobodyUp(t *testing.T) {
	r := open(t, func(c *Config) { c.Level, c.Sync = Fsync, time.Hour })
	recordTimes(r, 1, 51)
	r.sync()
	cutOff(t, r.current.Load(), 8*pageSize)
	recordTimes(r, 51, 52) // that one is lost, and tells of the others
	recordTimes(r, 52, 61)
	r.sync()
	cursor := r.Log().Cursor(0)
	defer cursor.Close()
	if times, _ := readDamaged(t, cursor); len(times) != 30+9 || times[38] != 60 {
		t.Errorf("%d clicks: %d", len(times), times)
	}
}

func TestADamagedSegmentStaysForThoseWhoWriteToIt(t *testing.T) {
	r := open(t)
	recordTimes(r, 1, 11)
	s := r.current.Load()
	r.hurt(s, errors.New("test"))
	cursor := r.Log().Cursor(0)
	readDamaged(t, cursor)
	cursor.Close()
	r.Log().Acknowledge(10)
	r.wakeUp()
	r.log.mu.Lock()
	over := len(r.log.over())
	r.log.mu.Unlock()
	if over != 0 || s.bytes() == nil {
		t.Error("it goes at once")
	}
	d := *s.damage.Load()
	d.at = d.at.Add(-lastWriters)
	s.damage.Store(&d)
	waitFor(t, "it goes", func() bool {
		r.wakeUp()
		files, err := filepath.Glob(s.path)
		return err == nil && len(files) == 0
	})
}

func TestAFaultElsewhereGoesOn(t *testing.T) {
	page, err := unix.Mmap(-1, 0, pageSize, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	mem := make([]byte, pageSize)
	for name, f := range map[string]func(){
		"another page": func() { mem[0] = page[0] },
		"a mistake":    func() { panic("mistake") },
		"no pointer":   func() { mem[0] = byte(*(*int)(nil)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: it is hidden", name)
				}
			}()
			_ = guarded(mem, f)
		}()
	}
}
