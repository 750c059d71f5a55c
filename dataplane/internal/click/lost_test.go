package click

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
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
	if !l.Ended() || read == 0 || read == n || account.Answered != n || account.Recorded != read || account.Lost() != n-read {
		t.Errorf("%d of %d clicks are left, ended: %t, %+v", read, n, l.Ended(), account)
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
	if _, err := first.Log().scan(s, 0); err == nil {
		t.Error("nobody is told")
	}
	if s.bytes() != nil || s.sealed.Load() != 1 {
		t.Errorf("mapped: %t, sealed at %d", s.bytes() != nil, s.sealed.Load())
	}
}
