package click

import (
	"os"
	"slices"
	"testing"
	"time"
)

// killed copies a spool as the death of its process would leave it.
func killed(t *testing.T, spool string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(spool)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A place that was never filled closes up the sequences behind it, for good.
func TestClicksKeepTheirSequencesWhenTheSegmentsBeforeThemAreGone(t *testing.T) {
	r := still(t)
	var recorded int64
	record := func() {
		recorded++
		r.Record(&Event{Time: recorded, UserAgent: make([]byte, 1000)})
	}
	for segments := range 4 {
		for current := r.current.Load(); r.current.Load() == current; {
			record()
			if segments == 0 && recorded == 20 || segments == 2 && recorded%200 == 0 {
				r.current.Load().place(200) // a request that the process dies of
			}
		}
		r.refill()
	}
	dir := killed(t, r.config.Dir)

	for boot, last := uint64(6), int64(0); last < recorded; boot++ {
		next := still(t, func(c *Config) { c.Dir, c.Boot = dir, boot })
		logs := next.Earlier()
		l := logs[slices.IndexFunc(logs, func(l *Log) bool { return l.Identity().Boot == r.config.Boot })]
		cursor := l.Cursor(l.Acknowledged())
		clicks := readOn(t, cursor)
		if account := cursor.Ledger(); account.Lost() != 0 || account.Recorded != uint64(recorded) {
			t.Fatalf("start %d: %d clicks were recorded, the account is %+v", boot, recorded, account)
		}
		cursor.Close()
		for _, c := range clicks {
			if last++; c.Sequence != uint64(last) || c.Time != last {
				t.Fatalf("start %d: click %d has sequence %d, want %d", boot, c.Time, c.Sequence, last)
			}
		}
		last = clicks[min(len(clicks)-1, 150)].Time
		l.Acknowledge(uint64(last))
		next.removedAt = time.Time{}
		next.trim()
		dir = killed(t, dir)
	}
}
