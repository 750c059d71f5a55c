package click

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// spoil writes a boot's only segment with some of its clicks damaged.
func spoil(t *testing.T, dir string, segment []byte, ends []int, clicks ...int) {
	t.Helper()
	damaged := bytes.Clone(segment)
	for _, c := range clicks {
		damaged[ends[c-2]+20] ^= 1
	}
	if err := os.WriteFile(filepath.Join(dir, "0000000000000005", "000000000001.seg"), damaged, 0o600); err != nil {
		t.Fatal(err)
	}
}

// dropped checks what a metric says of one reason.
func dropped(t *testing.T, registry *prometheus.Registry, reason DropReason, want uint64) {
	t.Helper()
	var all strings.Builder
	all.WriteString("# HELP aff_clicks_dropped_total Clicks that could not be kept, by reason, since the start. Those of earlier boots count when this process finds them missing.\n# TYPE aff_clicks_dropped_total counter\n")
	for r, name := range reasonNames {
		n := uint64(0)
		if r == reason {
			n = want
		}
		fmt.Fprintf(&all, "aff_clicks_dropped_total{reason=%q} %d\n", name, n)
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(all.String()), "aff_clicks_dropped_total"); err != nil {
		t.Error(err)
	}
}

func TestTheMetricCountsOnceWhatAnEarlierBootHasLost(t *testing.T) {
	dir, segment, ends := image(t, 10)
	spoil(t, dir, segment, ends, 2, 5, 6, 10) // the last of them is the tail
	registry := prometheus.NewRegistry()
	r := open(t, func(c *Config) { c.Dir, c.Boot, c.Registerer = dir, 6, registry })
	l := r.Earlier()[0]
	dropped(t, registry, Corrupt, 0) // nobody has read it yet
	for range 3 {
		if got := readAll(t, l, 0); len(got) != 6 {
			t.Fatalf("%d clicks", len(got))
		}
		dropped(t, registry, Corrupt, 4)
	}
	l.Acknowledge(9)
	l.Tell(4, true)
	waitFor(t, "the earlier boot's folder goes", func() bool { return len(r.Earlier()) == 0 })
	dropped(t, registry, Corrupt, 4)
}

// A cursor starts behind what is acknowledged, and the boot's account holds what was
// found missing before: in the same process, and in the next.
func TestTheAccountHoldsWhatIsMissingBeforeACursor(t *testing.T) {
	dir, segment, ends := image(t, 10)
	spoil(t, dir, segment, ends, 3, 4, 7)
	check := func(l *Log) {
		t.Helper()
		cursor := l.Cursor(l.Acknowledged())
		defer cursor.Close()
		readOn(t, cursor)
		if got := cursor.Ledger(); got.Answered != 10 || got.Recorded != 7 || got.Dropped[Corrupt] != 3 {
			t.Errorf("behind %d: %+v", l.Acknowledged(), got)
		}
	}
	first := open(t, func(c *Config) { c.Dir, c.Boot = dir, 6 })
	l := first.Earlier()[0]
	check(l)
	l.Acknowledge(5)
	check(l)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	second := open(t, func(c *Config) { c.Dir, c.Boot, c.Registerer = dir, 7, registry })
	check(second.Earlier()[0])
	dropped(t, registry, Corrupt, 1) // the others an earlier process has counted
}
