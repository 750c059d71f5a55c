package click

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
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
			if n := testing.AllocsPerRun(1, func() {
				for i := range 2000 { // of one run: what one in two allocates is rounded down to nothing
					r.Record(&events[i&15])
				}
			}); n > 20 { // some are of the goroutine that makes segments
				t.Errorf("level %s, form %d: %v allocations by 2000 clicks", level, form, n)
			}
		}
	}
}
