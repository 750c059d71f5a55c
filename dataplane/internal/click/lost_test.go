package click

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// inTheWay makes the folder of a recorder refuse new segments, until the test calls
// what it gives.
func inTheWay(t *testing.T, r *Recorder) (away func()) {
	t.Helper()
	waitFor(t, "there are spare segments", func() bool { return len(r.spares) == spareCount })
	var all []string
	for n := spareCount + 1; n < 50; n++ {
		path := filepath.Join(r.log.boot.dir, fmt.Sprintf("%012d.seg", n))
		if os.Mkdir(path, 0o700) == nil {
			all = append(all, path)
		}
	}
	return func() {
		for _, path := range all {
			_ = os.Remove(path)
		}
	}
}

func TestACleanStopCountsWhatIsOnlyInMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	r := open(t, func(c *Config) { c.Dir, c.Boot = dir, 5 })
	away := inTheWay(t, r)
	e := Event{UserAgent: make([]byte, 1000)}
	const n = 1500 // of which some 750 are in the three segments that there are
	for range n {
		waitFor(t, "there is a segment to go on with", func() bool { return len(r.spares) > 0 })
		r.Record(&e)
	}
	if got := r.Ledger(); r.Degraded() == nil || got.Recorded != n {
		t.Fatalf("degraded: %v, %+v", r.Degraded(), got)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	away()
	s := open(t, func(c *Config) { c.Dir, c.Boot = dir, 6 })
	l := s.Earlier()[0]
	cursor := l.Cursor(0)
	defer cursor.Close()
	read := uint64(len(readOn(t, cursor)))
	account := cursor.Ledger()
	if !l.Ended() || read == 0 || read == n || account.Answered != n || account.Recorded != read || account.Lost() != n-read || account.Dropped[LostMemory] != n-read {
		t.Errorf("%d of %d clicks are left, ended: %t, %+v", read, n, l.Ended(), account)
	}
}

// copied is the spool as a process leaves it that is killed now.
func copied(t *testing.T, r *Recorder) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, filepath.Base(r.log.boot.dir)), os.DirFS(r.log.boot.dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// checkLost checks what the next boot says of a boot of so many clicks, of which some
// are left.
func checkLost(t *testing.T, dir string, n, left uint64, reason DropReason) {
	t.Helper()
	registry := prometheus.NewRegistry()
	r := open(t, func(c *Config) { c.Dir, c.Boot, c.Registerer = dir, 6, registry })
	cursor := r.Earlier()[0].Cursor(0)
	defer cursor.Close()
	read := uint64(len(readOn(t, cursor)))
	account := cursor.Ledger()
	if read != left || account.Answered != n || account.Recorded != left || account.Dropped[reason] != n-left {
		t.Errorf("%d of %d clicks are left, want %d: %+v", read, n, left, account)
	}
	dropped(t, registry, reason, n-left)
}

func TestANodeThatIsKilledLosesWhatIsOnlyInMemoryForThatReason(t *testing.T) {
	r := open(t, func(c *Config) { c.Boot, c.MaxBytes = 5, 16<<20 })
	away := inTheWay(t, r)
	n, left := uint64(0), uint64(0)
	record := func(count int) {
		for range count {
			waitFor(t, "there is a segment to go on with", func() bool { return len(r.spares) > 0 })
			if r.Record(&Event{UserAgent: make([]byte, 1000)}); !r.current.Load().plain() {
				left++
			}
			n++
		}
	}
	record(1500)
	away()
	waitFor(t, "clicks are in files", func() bool { return !r.current.Load().plain() })
	record(100)
	if left == n || left < 200 {
		t.Fatalf("%d of %d clicks are in files", left, n)
	}
	checkLost(t, copied(t, r), n, left, LostMemory)
}

func TestWhatWasInARemovedFolderIsLostWithTheMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	r := open(t, func(c *Config) { c.Dir, c.Boot, c.MaxBytes = dir, 5, 16<<20 })
	record := func(count int) {
		for range count {
			waitFor(t, "there is a segment to go on with", func() bool { return len(r.spares) > 0 })
			r.Record(&Event{UserAgent: make([]byte, 1000)})
		}
	}
	record(600)
	waitFor(t, "the folder is removed", func() bool { return os.RemoveAll(dir) == nil })
	// In this order: the segments of before are orphans by the time that there is a folder.
	waitFor(t, "the recorder heals", func() bool { return r.log.boot.present() && !r.current.Load().plain() })
	record(100)
	waitFor(t, "it is noted that clicks are in files again", func() bool {
		_, memory := r.log.boot.inMemory(601, 602)
		return !memory
	})
	checkLost(t, copied(t, r), 700, 100, LostMemory) // it is killed
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	checkLost(t, dir, 700, 100, LostMemory)
}

func TestTheNoteOfWhatIsInMemoryHasALimit(t *testing.T) {
	m := new(marks)
	for at := uint64(10); at <= 20*(spanCount+5); at += 20 {
		m.noteUse(true, at)
		m.noteUse(true, at+5)
		m.noteUse(false, at+10)
	}
	const last = 10 + 20*(spanCount-2)
	for at := uint64(1); at < 20*(spanCount+5); at++ {
		want := at%20 >= 10 || at >= last // the last one goes on
		end, memory := m.inMemory(at, 1<<40)
		if memory != want || at < last && end != at/10*10+10 {
			t.Fatalf("from %d: to %d in memory: %t, want %t", at, end, memory, want)
		}
	}
	m.acknowledged.Store(29) // all of the first
	m.noteUse(false, 5000)
	m.noteUse(true, 6000)
	m.noteUse(false, 7000) // no room to end it
	for at, want := range map[uint64]bool{4999: true, 5000: false, 5999: false, 6000: true, 7000: true} {
		if _, memory := m.inMemory(at, at+1); memory != want {
			t.Errorf("%d in memory: %t", at, memory)
		}
	}
}

func TestAStopAtLevelMemoryCountsWhatWasNotPublished(t *testing.T) {
	r := open(t, func(c *Config) { c.Level = Memory })
	for range 10 {
		r.Record(&Event{Status: 302})
	}
	r.Log().Acknowledge(3)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if l := r.Ledger(); l.Answered != 10 || l.Recorded != 3 || l.Dropped[LostMemory] != 7 {
		t.Errorf("%+v", l)
	}
}

// A page that the disk does not give is a fault of the process that reads it.
func TestASegmentThatCannotBeReadDoesNotEndTheProcess(t *testing.T) {
	dir := t.TempDir()
	first := open(t, func(c *Config) { c.Dir, c.Boot = dir, 5 })
	for range 10 {
		first.Record(&Event{UserAgent: make([]byte, 1000)})
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	path := first.Log().segments[0].path
	s, err := openSegment(path, 5)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, pageSize); err != nil {
		t.Fatal(err)
	}
	damaged, err := first.Log().scan(s, 0)
	if err == nil {
		t.Error("nobody is told")
	}
	if s.bytes() != nil || s.sealed.Load() != 4 || damaged != 1 || len(s.holes) > 0 { // three clicks are in the first page
		t.Errorf("mapped: %t, sealed at %d, %d damaged, holes: %v", s.bytes() != nil, s.sealed.Load(), damaged, s.holes)
	}
}

// What lies behind a page that cannot be read is found at the next start.
func TestAPageThatCannotBeReadCostsOnlyTheClicksInIt(t *testing.T) {
	dir := t.TempDir()
	first := open(t, func(c *Config) { c.Dir, c.Boot = dir, 5 })
	recordTimes(first, 1, 101)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := openSegment(first.Log().segments[0].path, 5)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.mapIn(); err != nil {
		t.Fatal(err)
	}
	forbid(t, s, 2*pageSize)
	forbid(t, s, 7*pageSize)
	if damaged, err := first.Log().scan(s, 0); err == nil || damaged != 0 || s.sealed.Load() != 101 || len(s.holes) > 0 {
		t.Errorf("%v: %d damaged, sealed at %d, holes: %v", err, damaged, s.sealed.Load(), s.holes)
	}
}
