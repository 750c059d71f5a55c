package click

import (
	"os"
	"path/filepath"
	"testing"
)

// End, held up while the spool goes round once, tries to seal the segment that it had
// found to be the current one, and that is about to be so again. If it got that, what it
// has sealed would become current, and all who record would wait for who goes on.
func TestASegmentIsOverUntilItIsTheCurrentOneAgain(t *testing.T) {
	r := filled(t, Process)
	r.Log().Acknowledge(r.Last()) // from here on, segments are used again
	tries := 0
	step = func(name string) {
		if name != "rotate: next in use" {
			return
		}
		for _, s := range all(r.log) {
			if s == r.current.Load() {
				continue
			}
			tries++
			if _, _, p := s.place(int(s.size) + 1); p != closed {
				t.Errorf("segment %d can be sealed, and is about to be the current one", s.number)
				s.state.Store(segmentHead) // the test ends all the same
			}
		}
	}
	defer func() { step = nil }()
	for range 10 {
		recordTimes(r, 0, 200)
		r.refill()
	}
	if tries == 0 {
		t.Error("no segment came to be the current one")
	}
}

// Nobody had read what its last segment holds, so that no mark says that it was there.
func TestABootThatEndedCountsWhatItsLastSegmentHad(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"its head is damaged": func(path string) error {
			return os.WriteFile(path, []byte("AFFSEG damaged, and longer than a head is"), 0o600)
		},
		"it is gone": os.Remove,
	} {
		dir := t.TempDir()
		r := open(t, func(c *Config) { c.Dir, c.Boot = dir, 5 })
		const n = 700
		for range n {
			waitFor(t, "there is a segment to go on with", func() bool { return len(r.spares) > 0 })
			r.Record(&Event{UserAgent: make([]byte, 1000)})
		}
		last := r.current.Load()
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if err := damage(last.path); err != nil {
			t.Fatal(err)
		}
		next := open(t, func(c *Config) { c.Dir, c.Boot = dir, 6 })
		l := next.Earlier()[0]
		cursor := l.Cursor(0)
		read := uint64(len(readOn(t, cursor)))
		account := cursor.Ledger()
		cursor.Close()
		if read == 0 || read != last.first.Load()-1 || account.Answered != n || account.Recorded != read || account.Dropped[Corrupt] != n-read {
			t.Errorf("%s: %d of %d clicks are left: %+v", name, read, n, account)
		}
	}
}

// A request that was held up over the end has taken a place, and fills it no more.
func TestAPlaceThatIsNotFilledBeforeTheEndIsNoClick(t *testing.T) {
	for name, test := range map[string]struct{ before, behind int }{
		"among the last": {5, 5}, "the last": {10, 0}, "of a segment before the last": {5, 700},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			r := open(t, func(c *Config) { c.Dir, c.Boot = dir, 5 })
			recordTimes(r, 0, test.before)
			r.current.Load().place(200)
			for i := range test.behind {
				waitFor(t, "there is a segment to go on with", func() bool { return len(r.spares) > 0 })
				recordTimes(r, test.before+i, test.before+i+1)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			n := uint64(test.before + test.behind)
			for boot := range uint64(2) { // the second does not find the segments any more
				next := open(t, func(c *Config) { c.Dir, c.Boot = dir, 6+boot })
				l := next.Earlier()[0]
				cursor := l.Cursor(l.Acknowledged())
				readOn(t, cursor)
				if account := cursor.Ledger(); account.Answered != n || account.Lost() != 0 {
					t.Errorf("start %d: %+v", boot+1, account)
				}
				cursor.Close()
				l.Acknowledge(n)
				waitFor(t, "the segments go", func() bool {
					paths, err := filepath.Glob(filepath.Join(folderOfBoot(dir, 5), segmentPattern))
					return err == nil && len(paths) == 0
				})
				if err := next.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
