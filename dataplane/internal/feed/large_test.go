package feed

import (
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// An entry that is larger than a setting allows must not keep a node from what is
// written behind it.
func TestEntryThatIsTooLargeIsHeldAndSpoilsNoOthers(t *testing.T) {
	dir := t.TempDir()
	c := startControl(t)
	cfg := Config{Targets: []string{c.address}, Dir: dir, Guard: Guard{MaxEntryBytes: 100}, SaveInterval: time.Hour}
	n := startNodeWith(t, cfg)
	p := c.accept()
	long := "https://x.test/" + strings.Repeat("x", 100)
	s := state{"/a": "https://x.test/a", "/large": long}
	served := func(n *node, large ...string) {
		t.Helper()
		held := n.live.Load()
		if held.Hash() != s.hash() || held.Len() != len(s) || held.Unserved() != len(large) {
			t.Fatalf("%d entries are held, %d of them not served", held.Len(), held.Unserved())
		}
		for path, destination := range s {
			if destination != long {
				wantAnswer(t, n.live, path, destination, link.ToDestination)
			}
		}
		for _, path := range large {
			wantAnswer(t, n.live, path, "", link.ToNotFound)
		}
	}
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	served(n, "/large")
	p.send(s.delta(10, 11, map[string]string{"/b": "https://x.test/b", "/larger": long, "/a": long}))
	p.wantApplied(11)
	served(n, "/large", "/larger", "/a")
	p.send(s.delta(11, 12, map[string]string{"/c": "https://x.test/c", "/larger": "", "/a": "https://x.test/a2"}))
	p.wantApplied(12)
	served(n, "/large")
	for {
		m, err := p.stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if status := m.GetStatus(); status.GetVersion().GetRevision() == 12 {
			if status.GetUnservedEntries() != 1 {
				t.Errorf("the status is %v", status)
			}
			break
		}
	}
	if log := n.logs.String(); !strings.Contains(log, "held and not served") || !strings.Contains(log, "links/go.test/large") || !strings.Contains(log, "at most 100 are served; see --max-entry-bytes") {
		t.Errorf("the log does not say which entry is not served and why:\n%s", log)
	}

	// So it is after the node was killed, by its file and journal, and by a file
	// alone that has all of it.
	wantSaved(n)
	killed := cfg
	killed.Dir, killed.Targets = copyFolder(t, dir), []string{nobody}
	again := startNodeWith(t, killed)
	<-again.Ready()
	served(again, "/large")
	n.stop()
	if held, err := readFile(filepath.Join(dir, currentName)); err != nil || held.Version().Revision != 12 || held.Unserved() != 0 {
		t.Fatalf("without the setting, %d entries of the file are not served: %v", held.Unserved(), err)
	}
	killed.Dir = dir
	again = startNodeWith(t, killed)
	<-again.Ready()
	served(again, "/large")
}

// Each of the deltas of a journal is as it came, also when they are put at once.
func TestJournalOfEntriesThatAreTooLargeAndNotAnyMoreIsReplayed(t *testing.T) {
	dir := t.TempDir()
	c := startControl(t)
	cfg := Config{Targets: []string{c.address}, Dir: dir, Guard: Guard{MaxEntryBytes: 100}, SaveInterval: time.Hour}
	n := startNodeWith(t, cfg)
	p := c.accept()
	s := state{"/a": "https://x.test/a"}
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	wantSaved(n)
	for i, destination := range []string{"https://x.test/" + strings.Repeat("x", 100), "https://x.test/b", "https://x.test/c"} {
		p.send(s.delta(int64(10+i), int64(11+i), map[string]string{"/a": destination}))
		p.wantApplied(int64(11 + i))
	}
	cfg.Dir, cfg.Targets = copyFolder(t, dir), []string{nobody}
	again := startNodeWith(t, cfg)
	<-again.Ready()
	wantHolds(t, again.live, 13, maps.Clone(s))
	if p := again.live.Load(); p.Unserved() != 0 {
		t.Errorf("%d are not served", p.Unserved())
	}
}

// Without an affiliate that is suspended, its links would be served.
func TestAffiliateThatIsTooLargeForALinkIsNotLeftOut(t *testing.T) {
	live := &table.Live{}
	a := newApplier(live, Guard{MaxEntryBytes: 100})
	for _, m := range snapshotOf(version(10),
		affiliateEntry(t, "partner", linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED, "https://x.test/"+strings.Repeat("x", 100)),
		linkEntry(t, &linkv1.Link{Domain: "go.test", Path: "/a", Destination: "https://x.test/a", Affiliate: "partner"}),
	) {
		if o := a.take(wire(t, m)); o.rejection != nil {
			t.Fatal(o.rejection.reason)
		}
	}
	if _, o := decide(live, "go.test", "/a"); o == link.ToDestination || live.Load().Unserved() != 0 {
		t.Errorf("its link is served: %v", o)
	}
}
