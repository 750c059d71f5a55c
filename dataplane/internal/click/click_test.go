package click

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// open opens a recorder that closes with the test.
func open(t testing.TB, change ...func(*Config)) *Recorder {
	t.Helper()
	c := Config{Dir: t.TempDir(), Node: "node-1", Region: "eu", Boot: rand.Uint64() | 1, SegmentBytes: minSegment, MaxBytes: 8 << 20, Retention: -1}
	for _, f := range change {
		f(&c)
	}
	r, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// readAll reads what a log holds behind a sequence, as copies.
func readAll(t testing.TB, l *Log, after uint64) []Click {
	t.Helper()
	cursor := l.Cursor(after)
	defer cursor.Close()
	return readOn(t, cursor)
}

// readOn reads what a cursor gives now.
func readOn(t testing.TB, cursor *Cursor) (all []Click) {
	t.Helper()
	for {
		var c Click
		ok, err := cursor.Next(&c)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return all
		}
		for _, f := range []*[]byte{&c.Link, &c.Affiliate, &c.Campaign, &c.Variant, &c.Destination, &c.UserAgent, &c.Referrer, &c.Languages, &c.Host, &c.Path, &c.Address} {
			*f = bytes.Clone(*f)
		}
		c.Parameters.b, c.Labels.b = bytes.Clone(c.Parameters.b), bytes.Clone(c.Labels.b)
		all = append(all, c)
	}
}

func randomBytes(rnd *rand.Rand, most int) []byte {
	b := make([]byte, rnd.IntN(most+1))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

func randomEvent(rnd *rand.Rand) Event {
	e := Event{
		Time: rnd.Int64(), Epoch: rnd.Uint64(), Revision: rnd.Int64(), Rule: rnd.Uint32(), Status: uint16(rnd.Uint32()),
		Head: rnd.IntN(2) == 0, Outcome: uint8(rnd.IntN(10)),
		LinkDomain: randomBytes(rnd, 20), LinkPath: randomBytes(rnd, 60), Affiliate: randomBytes(rnd, 10),
		Campaign: randomBytes(rnd, 10), Variant: randomBytes(rnd, 5), Destination: randomBytes(rnd, 200),
		UserAgent: randomBytes(rnd, 2*MaxUserAgent), Referrer: randomBytes(rnd, 2*MaxReferrer),
		Languages: randomBytes(rnd, 2*MaxLanguages), Host: randomBytes(rnd, 2*MaxHost), Path: randomBytes(rnd, 2*MaxPath),
	}
	switch rnd.IntN(4) {
	case 0:
		e.Address = netip.AddrFrom4([4]byte(randomFixed(rnd, 4)))
	case 1:
		e.Address = netip.AddrFrom16([16]byte(randomFixed(rnd, 16)))
	case 2:
		e.Address = netip.AddrFrom16(netip.AddrFrom4([4]byte(randomFixed(rnd, 4))).As16())
	}
	if rnd.IntN(2) == 0 {
		e.Path = e.LinkPath
	}
	if rnd.IntN(2) == 0 {
		e.Parameters, e.Labels = randomPairs(rnd), randomPairs(rnd)
		e.ASN, e.Country = rnd.Uint32(), [2]byte{'D', 'E'}
	}
	e.GPC = rnd.IntN(4) == 0
	return e
}

func randomPairs(rnd *rand.Rand) (pairs []Pair) {
	for range rnd.IntN(19) {
		pairs = append(pairs, Pair{Name: randomBytes(rnd, 128), Value: randomBytes(rnd, 256)})
	}
	return pairs
}

// kept are pairs as a record keeps them.
func kept(pairs []Pair, room int) (all []string) {
	for _, p := range pairs {
		if room -= 4 + len(p.Name) + len(p.Value); room < 0 || len(all) == 255 {
			break
		}
		all = append(all, fmt.Sprintf("%q=%q", p.Name, p.Value))
	}
	return all
}

func recorded(pairs Pairs) (all []string) {
	for p, ok := pairs.Next(); ok; p, ok = pairs.Next() {
		all = append(all, fmt.Sprintf("%q=%q", p.Name, p.Value))
	}
	return all
}

func randomFixed(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// check compares a click with the event that it was recorded from.
func check(t *testing.T, e *Event, c *Click, form AddressForm) {
	t.Helper()
	cut := func(b []byte, most int) []byte { return b[:min(len(b), most)] }
	path := cut(e.Path, MaxPath)
	if string(e.Path) == string(e.LinkPath) {
		path = nil
	}
	for _, f := range []struct {
		name      string
		got, want []byte
	}{
		{"link", c.Link, append(bytes.Clone(e.LinkDomain), e.LinkPath...)},
		{"affiliate", c.Affiliate, e.Affiliate},
		{"campaign", c.Campaign, e.Campaign},
		{"variant", c.Variant, e.Variant},
		{"destination", c.Destination, e.Destination},
		{"user agent", c.UserAgent, cut(e.UserAgent, MaxUserAgent)},
		{"referrer", c.Referrer, cut(e.Referrer, MaxReferrer)},
		{"languages", c.Languages, cut(e.Languages, MaxLanguages)},
		{"host", c.Host, cut(e.Host, MaxHost)},
		{"path", c.Path, path},
		{"address", c.Address, wantAddress(e.Address, e.GPC, form)},
	} {
		if !bytes.Equal(f.got, f.want) {
			t.Fatalf("click %d: %s is %q, want %q", c.Sequence, f.name, f.got, f.want)
		}
	}
	if got, want := recorded(c.Parameters), kept(e.Parameters, MaxParameters); !slices.Equal(got, want) {
		t.Fatalf("click %d: parameters %q, want %q", c.Sequence, got, want)
	}
	if got, want := recorded(c.Labels), kept(e.Labels, MaxLabels); !slices.Equal(got, want) {
		t.Fatalf("click %d: labels %q, want %q", c.Sequence, got, want)
	}
	if c.ASN != e.ASN || c.Country != e.Country {
		t.Fatalf("click %d: %d %q, want %d %q", c.Sequence, c.ASN, c.Country, e.ASN, e.Country)
	}
	if c.Time != e.Time || c.Epoch != e.Epoch || c.Revision != e.Revision || c.Rule != e.Rule || c.Status != e.Status || c.Head != e.Head || c.Outcome != e.Outcome {
		t.Fatalf("click %d is %+v, want %+v", c.Sequence, c, e)
	}
}

func wantAddress(a netip.Addr, gpc bool, form AddressForm) []byte {
	if !a.IsValid() {
		return nil
	}
	a = a.Unmap()
	if form == AddressTruncated || gpc {
		bits := 48
		if a.Is4() {
			bits = 24
		}
		p, _ := a.Prefix(bits)
		a = p.Addr()
	}
	return a.AsSlice()
}

func TestRecordedClicksAreReadBackAsTheyWere(t *testing.T) {
	for _, level := range []Level{Memory, Process} {
		for _, form := range []AddressForm{AddressFull, AddressTruncated} {
			t.Run(fmt.Sprintf("%s/%d", level, form), func(t *testing.T) {
				r := open(t, func(c *Config) { c.Level, c.Address = level, form })
				rnd := rand.New(rand.NewPCG(1, uint64(form)))
				events := make([]Event, 600) // several segments
				for i := range events {
					events[i] = randomEvent(rnd)
					r.Record(&events[i])
					for i%16 == 0 && len(r.spares) == 0 {
						time.Sleep(time.Millisecond) // one is being prepared
					}
				}
				if lost := r.Ledger(); lost.Lost() > 0 {
					t.Fatalf("clicks were dropped: %+v", lost)
				}
				clicks := readAll(t, r.Log(), 0)
				if len(clicks) != len(events) {
					t.Fatalf("%d clicks, want %d", len(clicks), len(events))
				}
				for i := range clicks {
					if clicks[i].Sequence != uint64(i+1) {
						t.Fatalf("click %d has sequence %d", i, clicks[i].Sequence)
					}
					check(t, &events[i], &clicks[i], form)
				}
				if got := readAll(t, r.Log(), 555); len(got) != 45 || got[0].Sequence != 556 {
					t.Fatalf("behind 555 there are %d clicks", len(got))
				}
			})
		}
	}
}

func TestAClickThatFitsIntoNoRecordIsCounted(t *testing.T) {
	r := open(t)
	r.Record(&Event{Destination: make([]byte, MaxRecord-fixedBytes)})
	r.Record(&Event{Destination: make([]byte, MaxRecord-fixedBytes+1)})
	r.Record(&Event{Destination: make([]byte, 1<<20)})
	r.Record(&Event{LinkPath: make([]byte, 40<<10), Destination: make([]byte, 40<<10)})
	if got := r.Ledger(); got.Recorded != 1 || got.Dropped[TooLarge] != 3 || got.Answered != 4 {
		t.Fatalf("%+v", got)
	}
	if got := readAll(t, r.Log(), 0); len(got) != 1 || len(got[0].Destination) != MaxRecord-fixedBytes {
		t.Fatalf("%d clicks", len(got))
	}
}

func TestSequencesAreDenseUnderConcurrentWriters(t *testing.T) {
	for _, level := range []Level{Memory, Process} {
		t.Run(string(level), func(t *testing.T) {
			r := open(t, func(c *Config) { c.Level, c.MaxBytes = level, 64<<20 })
			const writers, each = 16, 2000
			var wait sync.WaitGroup
			for w := range writers {
				wait.Go(func() {
					agent := make([]byte, 100)
					for i := range each {
						r.Record(&Event{Time: int64(w), Revision: int64(i), UserAgent: agent})
					}
				})
			}
			recording := make(chan struct{})
			go func() { wait.Wait(); close(recording) }()
			cursor := r.Log().Cursor(0)
			defer cursor.Close()
			next := [writers]int64{}
			var seen uint64
			for done := false; ; {
				var c Click
				ok, err := cursor.Next(&c)
				if err != nil {
					t.Fatal(err)
				}
				if ok {
					if seen++; c.Sequence != seen {
						t.Fatalf("sequence %d after %d", c.Sequence, seen-1)
					}
					if c.Revision < next[c.Time] {
						t.Fatalf("writer %d: click %d after %d", c.Time, c.Revision, next[c.Time])
					}
					next[c.Time] = c.Revision + 1
					r.Log().Acknowledge(c.Sequence)
					continue
				}
				if done {
					break
				}
				select {
				case <-recording:
					done = true
				default:
				}
			}
			account := r.Ledger()
			if account.Answered != writers*each || account.Recorded != seen {
				t.Fatalf("%+v, and %d read", account, seen)
			}
		})
	}
}

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
	for deadline := time.Now().Add(10 * time.Second); r.Bytes() > (1+spareCount+keepCount)*minSegment; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the spool has %d bytes", r.Bytes())
		}
	}
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
		events[i] = randomEvent(rnd)
		first.Record(&events[i])
		time.Sleep(100 * time.Microsecond)
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
	for deadline := time.Now().Add(10 * time.Second); len(second.Earlier()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the earlier boot's folder stays")
		}
	}
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

func TestOpenRefusesWhatItCannotDo(t *testing.T) {
	for want, change := range map[string]func(*Config){
		`level "disk": there are memory`: func(c *Config) { c.Level = "disk" },
		"needs a folder":                 func(c *Config) { c.Dir = "" },
		"boot must not be 0":             func(c *Config) { c.Boot = 0 },
		"node's name":                    func(c *Config) { c.Node = "" },
		"at least 1048576":               func(c *Config) { c.MaxBytes, c.SegmentBytes = minSegment, minSegment },
		"whole pages":                    func(c *Config) { c.SegmentBytes = minSegment + 1 },
		"not a directory":                func(c *Config) { c.Dir = "/dev/null/spool" },
		"there are full, truncated":      func(c *Config) { c.Address = 4 },
		"a hash key of 31 bytes":         func(c *Config) { c.Address, c.HashKey = AddressHashed, make([]byte, 31) },
		"for hashed addresses only":      func(c *Config) { c.HashKey = make([]byte, 32) },
	} {
		c := Config{Dir: t.TempDir(), Node: "n", Boot: 1}
		change(&c)
		if _, err := Open(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen: " + what)
		}
	}
}

func TestAFolderThatIsRemovedCostsNoClickAndIsMadeAnew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	r, err := Open(Config{Dir: dir, Node: "n", Boot: 5, SegmentBytes: minSegment, MaxBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	// The recorder may be making segments in it at the moment.
	waitFor(t, "the folder is removed", func() bool { return os.RemoveAll(dir) == nil })
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // nothing can be made there
		t.Fatal(err)
	}
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
		r.Record(&e)
		if r.current.Load() == nil || len(r.spares) == 0 {
			time.Sleep(time.Millisecond)
		}
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

func TestClicksAfterTheEndAreCounted(t *testing.T) {
	r := open(t)
	r.Record(&Event{})
	r.End()
	r.Record(&Event{})
	if got := r.Ledger(); got.Recorded != 1 || got.Dropped[LostMemory] != 1 {
		t.Fatalf("%+v", got)
	}
}

func TestRecordDoesNotAllocate(t *testing.T) {
	for _, level := range []Level{Memory, Process} {
		for _, form := range []AddressForm{AddressFull, AddressTruncated, AddressHashed} {
			r := open(t, func(c *Config) {
				c.Level, c.Address, c.SegmentBytes, c.MaxBytes = level, form, 4<<20, 16<<20
				if form == AddressHashed {
					c.HashKey = []byte(secret)
				}
			})
			events := browserEvents(16)
			for i := range events {
				events[i].Address, events[i].GPC = netip.MustParseAddr("203.0.113.9"), i%2 == 0
			}
			i := 0
			if n := testing.AllocsPerRun(2000, func() { r.Record(&events[i&15]); i++ }); n != 0 {
				t.Errorf("level %s, form %d: %v allocations", level, form, n)
			}
		}
	}
}
