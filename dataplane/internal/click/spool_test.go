package click

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestAFullSpoolCountsDropsAndHealsWhenAcknowledged(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := open(t, func(c *Config) { c.MaxBytes = 4 * minSegment; c.Registerer = registry })
	e := Event{Time: time.Now().UnixMicro(), UserAgent: make([]byte, 1000)}
	n := uint64(0)
	for deadline := time.Now().Add(20 * time.Second); r.Ledger().Dropped[SpoolFull] < 10; n++ {
		if time.Now().After(deadline) {
			t.Fatal("the spool does not fill")
		}
		r.Record(&e)
	}
	if r.Bytes() > 4*minSegment {
		t.Fatalf("the spool has %d bytes", r.Bytes())
	}
	full := r.Ledger()
	if full.Answered != n || full.Recorded+full.Dropped[SpoolFull] != n {
		t.Fatalf("%+v after %d clicks", full, n)
	}
	clicks := readAll(t, r.Log(), 0)
	if uint64(len(clicks)) != full.Recorded {
		t.Fatalf("%d clicks, and %d were recorded", len(clicks), full.Recorded)
	}
	want := fmt.Sprintf(`
# HELP aff_clicks_dropped_total Clicks that could not be kept, by reason, since the start. Those of earlier boots count when this process finds them missing.
# TYPE aff_clicks_dropped_total counter
aff_clicks_dropped_total{reason="corrupt"} 0
aff_clicks_dropped_total{reason="lost_memory"} 0
aff_clicks_dropped_total{reason="spool_full"} %d
aff_clicks_dropped_total{reason="too_large"} 0
# HELP aff_clicks_unacknowledged Clicks that are recorded and not acknowledged.
# TYPE aff_clicks_unacknowledged gauge
aff_clicks_unacknowledged %d
`, full.Dropped[SpoolFull], full.Recorded)
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "aff_clicks_dropped_total", "aff_clicks_unacknowledged"); err != nil {
		t.Fatal(err)
	}
	r.Log().Acknowledge(full.Recorded)
	for deadline := time.Now().Add(20 * time.Second); r.Ledger().Recorded == full.Recorded; n++ {
		if time.Now().After(deadline) {
			t.Fatal("the spool does not heal")
		}
		r.Record(&e)
		time.Sleep(time.Millisecond)
	}
	healed := r.Ledger()
	if healed.Answered != n {
		t.Fatalf("%+v after %d clicks", healed, n)
	}
	if got := readAll(t, r.Log(), full.Recorded); len(got) == 0 || got[0].Sequence != full.Recorded+1 {
		t.Fatalf("after healing: %d clicks", len(got))
	}
}

func TestAcknowledgedSegmentsAreUsedAgainAndNoFileIsMade(t *testing.T) {
	for _, level := range []Level{Memory, Process} {
		t.Run(string(level), func(t *testing.T) {
			r := open(t, func(c *Config) { c.Level, c.MaxBytes = level, 16*minSegment })
			rnd := rand.New(rand.NewPCG(7, 8))
			cursor := r.Log().Cursor(0)
			defer cursor.Close()
			for n := range 20_000 { // some 20 MB through a ring of at most 4 MB
				e := Event{Time: int64(n + 1), UserAgent: randomBytes(rnd, 900), Referrer: randomBytes(rnd, 900)}
				for r.current.Load() == nil || len(r.spares) == 0 {
					time.Sleep(10 * time.Microsecond)
				}
				r.Record(&e)
				var c Click
				if ok, err := cursor.Next(&c); !ok || err != nil || c.Sequence != uint64(n+1) {
					t.Fatalf("click %d: %d, %t, %v", n, c.Sequence, ok, err)
				}
				check(t, &e, &c, AddressTruncated)
				if n%7 == 0 {
					r.Log().Acknowledge(c.Sequence)
				}
			}
			if account := r.Ledger(); account.Recorded != 20_000 || account.Lost() != 0 {
				t.Fatalf("%+v", account)
			}
			r.log.mu.Lock()
			segments := len(r.log.segments)
			r.log.mu.Unlock()
			r.mu.Lock()
			highest := r.number
			r.mu.Unlock()
			if segments > 6 || highest < 40 {
				t.Fatalf("%d segments, up to number %d", segments, highest)
			}
		})
	}
}

func TestSegmentsOfABacklogAreRemovedWhenItIsGone(t *testing.T) {
	r := open(t, func(c *Config) { c.MaxBytes = 16 * minSegment })
	e := Event{UserAgent: make([]byte, 1000)}
	for r.Bytes() < 12*minSegment {
		r.Record(&e)
		for r.current.Load() == nil || len(r.spares) == 0 && r.room() {
			time.Sleep(10 * time.Microsecond)
		}
	}
	r.Log().Acknowledge(r.Last())
	waitFor(t, "segments are removed", func() bool { return r.Bytes() <= (1+spareCount+keepCount)*minSegment })
	files, err := filepath.Glob(filepath.Join(r.log.boot.dir, "*.seg"))
	if err != nil || len(files) > 1+spareCount+keepCount {
		t.Fatalf("%d files, %v", len(files), err)
	}
}

func TestClicksOfAnEarlierBootAreRecoveredUnderItsIdentity(t *testing.T) {
	dir := t.TempDir()
	first, err := Open(Config{Dir: dir, Node: "old-name", Region: "us", Boot: 7, Address: AddressFull, SegmentBytes: minSegment, MaxBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	events := make([]Event, 300)
	for i := range events {
		waitFor(t, "there is a segment to go on with", func() bool { return len(first.spares) > 0 })
		events[i] = randomEvent(rnd)
		first.Record(&events[i])
	}
	readAll(t, first.Log(), 0)
	first.Log().Acknowledge(100)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := open(t, func(c *Config) { c.Dir, c.Boot = dir, 8 })
	earlier := second.Earlier()
	if len(earlier) != 1 || len(second.Warnings()) > 0 {
		t.Fatalf("%d earlier logs, warnings %v", len(earlier), second.Warnings())
	}
	l := earlier[0]
	if id := l.Identity(); id != (Identity{"old-name", "us", 7, AddressFull}) {
		t.Fatalf("%+v", id)
	}
	clicks := readAll(t, l, l.Acknowledged())
	if len(clicks) != 200 || clicks[0].Sequence != 101 {
		t.Fatalf("%d clicks", len(clicks))
	}
	for i := range clicks {
		check(t, &events[100+i], &clicks[i], AddressFull)
	}
	if n := second.Unacknowledged(); n != 200 {
		t.Fatalf("%d unacknowledged", n)
	}
	l.Acknowledge(300)
	l.Tell(0, true)
	waitFor(t, "the earlier boot's folder goes", func() bool { return len(second.Earlier()) == 0 })
	if _, err := os.Stat(filepath.Join(dir, "0000000000000007")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("folder of the earlier boot: %v", err)
	}
}

func TestTheFolderOfALivingProcessIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	a := open(t, func(c *Config) { c.Dir = dir })
	a.Record(&Event{Status: 302})
	b := open(t, func(c *Config) { c.Dir = dir })
	if len(b.Earlier()) != 0 || len(b.Warnings()) != 0 {
		t.Fatalf("%d logs were taken, %v", len(b.Earlier()), b.Warnings())
	}
	if got := readAll(t, a.Log(), 0); len(got) != 1 {
		t.Fatalf("%d clicks", len(got))
	}
}

func TestAFolderThatIsRemovedCostsNoClickAndIsMadeAnew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	r, err := Open(Config{Dir: dir, Node: "n", Boot: 5, SegmentBytes: minSegment, MaxBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	// The recorder may be making segments in it at the moment, or the folder anew.
	waitFor(t, "nothing can be made there", func() bool { return os.RemoveAll(dir) == nil && os.WriteFile(dir, nil, 0o600) == nil })
	e := Event{UserAgent: make([]byte, 1000)}
	for i := range 2000 {
		if i%50 == 0 { // no faster than segments are made, also of a busy machine
			waitFor(t, "there is a segment to go on with", func() bool { return r.current.Load() != nil && len(r.spares) > 0 })
		}
		r.Record(&e)
	}
	waitFor(t, "the recorder is degraded", func() bool { return r.Degraded() != nil })
	if account := r.Ledger(); account.Recorded != 2000 || account.Lost() != 0 {
		t.Fatalf("%+v", account)
	}
	r.Record(&Event{Destination: make([]byte, 1<<20)}) // counted, and not forgotten
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the recorder heals", func() bool { return r.Degraded() == nil })
	if got := readAll(t, r.Log(), 0); len(got) != 2000 {
		t.Fatalf("%d clicks", len(got))
	}
	r.Log().Acknowledge(2000)
	for range 1000 { // these are in files again
		waitFor(t, "there is a segment to go on with", func() bool { return len(r.spares) > 0 })
		r.Record(&e)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	second := open(t, func(c *Config) { c.Dir, c.Boot, c.MaxBytes = dir, 6, 16<<20 })
	if len(second.Earlier()) != 1 || len(second.Warnings()) != 0 {
		t.Fatalf("%d logs, %v", len(second.Earlier()), second.Warnings())
	}
	l := second.Earlier()[0]
	if got := readAll(t, l, l.Acknowledged()); len(got) != 1000 || got[0].Sequence != 2001 || l.dropped()[TooLarge] != 1 {
		t.Fatalf("%d clicks, dropped %v", len(got), l.dropped())
	}
}
