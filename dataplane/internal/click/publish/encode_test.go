package publish

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/natstest"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

func randomClick(rnd *rand.Rand, sequence uint64) click.Click {
	text := func(most int) []byte {
		if rnd.IntN(3) == 0 {
			return nil
		}
		b := make([]byte, rnd.IntN(most+1))
		for i := range b {
			b[i] = byte(rnd.IntN(3)) // repeats
		}
		return b
	}
	c := click.Click{
		Sequence: sequence, Time: rnd.Int64(), Revision: rnd.Int64(), Epoch: 77,
		Link: text(8), Affiliate: text(4), Campaign: text(4), Variant: text(2), Destination: text(300), UserAgent: text(1024),
		Referrer: text(2048), Languages: text(256), Host: text(255), Path: text(2048), Address: text(1),
		Rule: rnd.Uint32(), Status: uint16(rnd.Uint32()), Outcome: uint8(rnd.IntN(10)), Head: rnd.IntN(2) == 0,
	}
	if rnd.IntN(4) == 0 {
		c.Time, c.Revision, c.Rule, c.Status = math.MaxInt64, math.MinInt64, math.MaxUint32, math.MaxUint16
	}
	if rnd.IntN(2) == 0 {
		c.Address = bytes.Repeat([]byte{byte(rnd.Uint32())}, 4+12*rnd.IntN(2))
	}
	if c.Status == 0 {
		c.Status = 302
	}
	if rnd.IntN(2) == 0 {
		c.ASN, c.Country = rnd.Uint32(), [2]byte{'F', 'R'}
		pairs := somePairs()[rnd.IntN(20)]
		c.Parameters, c.Labels = pairs[0], pairs[1]
	}
	return c
}

var somePairs = sync.OnceValue(func() (all [20][2]click.Pairs) {
	rnd := rand.New(rand.NewPCG(4, 5))
	for i := range all {
		all[i][0], all[i][1] = recordedPairs(rnd)
	}
	return all
})

// recordedPairs gives pairs the only way there is: through a record.
func recordedPairs(rnd *rand.Rand) (parameters, labels click.Pairs) {
	pairs := func() (all []click.Pair) {
		for range rnd.IntN(17) {
			name, value := make([]byte, rnd.IntN(65)), make([]byte, rnd.IntN(257))
			for _, b := range [][]byte{name, value} {
				for i := range b {
					b[i] = byte(rnd.Uint32())
				}
			}
			all = append(all, click.Pair{Name: name, Value: value})
		}
		return all
	}
	r, err := click.Open(click.Config{Level: click.Memory, Node: "n", Boot: 1, SegmentBytes: 256 << 10, MaxBytes: 1 << 20})
	if err != nil {
		panic(err)
	}
	defer r.Close()
	r.Record(&click.Event{Parameters: pairs(), Labels: pairs()})
	var c click.Click
	cursor := r.Log().Cursor(0)
	if ok, err := cursor.Next(&c); !ok || err != nil {
		panic(err)
	}
	return c.Parameters, c.Labels // of plain memory, which stays
}

func TestABatchIsWhatProtobufReads(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	e := newEncoder(click.Identity{Node: "n\x01", Region: "", Boot: 0xffee, Address: click.AddressTruncated})
	for round := range 200 {
		first := rnd.Uint64()>>8 + 1
		e.begin(nil, first)
		var clicks []click.Click
		for {
			c := randomClick(rnd, first+uint64(len(clicks)))
			if !e.add(&c) {
				break
			}
			clicks = append(clicks, c)
			if rnd.IntN(100) == 0 {
				break
			}
		}
		account := click.Ledger{Answered: rnd.Uint64(), Recorded: rnd.Uint64()}
		account.Dropped[click.SpoolFull] = uint64(round)
		data := e.end(&account, round%2 == 1)
		if len(data) > maxBatchBytes+200 {
			t.Fatalf("%d bytes", len(data))
		}
		var b clickv1.Batch
		if err := proto.Unmarshal(data, &b); err != nil {
			t.Fatal(err)
		}
		if b.Node != "n\x01" || b.Boot != 0xffee || b.FirstSequence != first || b.Epoch != 77 || b.AddressForm != clickv1.AddressForm_ADDRESS_FORM_TRUNCATED || len(b.Clicks) != len(clicks) {
			t.Fatalf("%v %v %v: %d clicks, want %d", b.Node, b.Boot, b.FirstSequence, len(b.Clicks), len(clicks))
		}
		if l := b.Ledger; l.Answered != account.Answered || l.Recorded != account.Recorded || l.Final != (round%2 == 1) || (round > 0) != (len(l.Dropped) == 1) {
			t.Fatalf("%v, want %+v", l, account)
		}
		public, err := clickstream.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		for i, got := range b.Clicks {
			want := clicks[i]
			text := func(name string, index uint32, want []byte) {
				t.Helper()
				if !bytes.Equal(b.Strings[index], want) {
					t.Fatalf("%s is %q, want %q", name, b.Strings[index], want)
				}
			}
			text("link", got.Link, want.Link)
			text("affiliate", got.Affiliate, want.Affiliate)
			text("campaign", got.Campaign, want.Campaign)
			text("variant", got.Variant, want.Variant)
			text("destination", got.Destination, want.Destination)
			text("user agent", got.UserAgent, want.UserAgent)
			text("referrer", got.Referrer, want.Referrer)
			text("languages", got.Languages, want.Languages)
			text("host", got.Host, want.Host)
			text("path", got.Path, want.Path)
			status := got.Status
			if status == 0 {
				status = 302
			}
			if b.BaseTimeUs+got.TimeUs != want.Time || b.BaseRevision+got.Revision != want.Revision || got.Rule != want.Rule ||
				status != uint32(want.Status) || uint8(got.Outcome) != want.Outcome || (got.Method == clickv1.Method_METHOD_HEAD) != want.Head ||
				!bytes.Equal(got.Address, want.Address) {
				t.Fatalf("%v, want %+v", got, want)
			}
			if got.Asn != want.ASN || string(b.Strings[got.Country]) != strings.Trim(string(want.Country[:]), "\x00") {
				t.Fatalf("%d %q", got.Asn, b.Strings[got.Country])
			}
			pairs := func(name string, indexes []uint32, want click.Pairs) {
				t.Helper()
				for pair, ok := want.Next(); ok; pair, ok = want.Next() {
					if len(indexes) < 2 || !bytes.Equal(b.Strings[indexes[0]], pair.Name) || !bytes.Equal(b.Strings[indexes[1]], pair.Value) {
						t.Fatalf("%s: %v, want %q=%q", name, indexes, pair.Name, pair.Value)
					}
					indexes = indexes[2:]
				}
				if len(indexes) > 0 {
					t.Fatalf("%s: %v too many", name, indexes)
				}
			}
			pairs("parameters", got.Parameters, want.Parameters)
			pairs("labels", got.Labels, want.Labels)
			p := public.Clicks[i]
			if p.Sequence != want.Sequence || p.Link != string(want.Link) || p.UserAgent != string(want.UserAgent) || p.Revision != want.Revision ||
				p.Time.UnixMicro() != time.UnixMicro(want.Time).UnixMicro() || p.Status != int(want.Status) || p.Destination != string(want.Destination) {
				t.Fatalf("%+v, want %+v", p, want)
			}
		}
	}
}

func TestABatchEndsAtAGapAndAtANewEpoch(t *testing.T) {
	e := newEncoder(click.Identity{Node: "n", Boot: 1})
	e.begin(nil, 5)
	for _, c := range []struct {
		click click.Click
		taken bool
	}{
		{click.Click{Sequence: 5, Epoch: 1}, true},
		{click.Click{Sequence: 6, Epoch: 1}, true},
		{click.Click{Sequence: 8, Epoch: 1}, false},
		{click.Click{Sequence: 7, Epoch: 2}, false},
		{click.Click{Sequence: 7, Epoch: 1}, true},
	} {
		if got := e.add(&c.click); got != c.taken {
			t.Errorf("%+v: %t", c.click, got)
		}
	}
}

// The account may change while clicks wait in an open batch.
func TestAReportDoesNotTouchAnOpenBatch(t *testing.T) {
	r := openRecorder(t)
	s := newSource(r.Log(), maxBatchBytes, func() []byte { return nil })
	defer s.cursor.Close()
	now := time.Now()
	r.Record(event(0))
	if b, err := s.fill(now, maxAge, false); b != nil || err != nil {
		t.Fatal(b, err)
	}
	r.Record(&click.Event{Destination: make([]byte, 1<<20)})
	now = now.Add(time.Minute)
	if b := s.report(now, false); b != nil {
		t.Fatalf("%+v", b)
	}
	b, err := s.fill(now, maxAge, false)
	if err != nil || b == nil || b.clicks != 1 {
		t.Fatalf("%+v, %v", b, err)
	}
	decoded, err := clickstream.Decode(b.data)
	if err != nil || len(decoded.Clicks) != 1 || decoded.Ledger.Answered != 2 || decoded.Ledger.Dropped["too_large"] != 1 {
		t.Fatalf("%+v, %v", decoded, err)
	}
	if b := s.report(now.Add(time.Minute), false); b != nil {
		t.Fatalf("told twice: %+v", b)
	}
}

// browserClicks are clicks as browsers make them: 1,000 links with 45-byte
// destinations, 100 user agents, a few referrers and languages.
func browserClicks(n int) []click.Click {
	rnd := rand.New(rand.NewPCG(1, 2))
	clicks := make([]click.Click, n)
	for i := range clicks {
		link, agent := rnd.IntN(1000), rnd.IntN(100)
		clicks[i] = click.Click{
			Sequence: uint64(i + 1), Time: int64(1_700_000_000_000_000 + i*7), Epoch: 0xabcdef0123456789, Revision: 4711,
			Link: fmt.Appendf(nil, "go.example.com/go/summer-%06d", link), Affiliate: fmt.Appendf(nil, "aff_%03d", link%50),
			Campaign: fmt.Appendf(nil, "summer-%d", link%7), Destination: fmt.Appendf(nil, "https://store.example.com/p/%06d?ref=aff_%03d", link, link%50),
			Status: 302, Address: []byte{byte(rnd.IntN(223)), byte(rnd.IntN(256)), byte(rnd.IntN(256)), 0},
			UserAgent: fmt.Appendf(nil, "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.%d.%d Safari/537.36", 100+agent%30, 4000+agent*13, agent),
			Referrer:  fmt.Appendf(nil, "https://www.example-%d.com/", rnd.IntN(20)),
			Languages: []byte([]string{"en-US,en;q=0.9", "de-DE,de;q=0.9,en;q=0.8", "fr-FR,fr;q=0.9"}[rnd.IntN(3)]),
			Host:      []byte("go.example.com"),
		}
	}
	return clicks
}

func BenchmarkEncode(b *testing.B) {
	clicks := browserClicks(1 << 16)
	e := newEncoder(click.Identity{Node: "node-1", Region: "eu", Boot: 1, Address: click.AddressTruncated})
	var buf []byte
	var account click.Ledger
	total, open := 0, false
	b.ReportAllocs()
	for i := range b.N {
		c := &clicks[i%len(clicks)]
		c.Sequence = uint64(i + 1)
		if !open {
			e.begin(buf, c.Sequence)
			open = true
		}
		if !e.add(c) {
			buf = e.end(&account, false)
			total += len(buf)
			e.begin(buf, c.Sequence)
			e.add(c)
		}
	}
	total += len(e.end(&account, false))
	b.ReportMetric(float64(total)/float64(b.N), "bytes/click")
}

// BenchmarkCompress is what a stream with S2 compression would save of each
// message, and what that costs whoever compresses.
func BenchmarkCompress(b *testing.B) {
	const n = 500 // about what fits into a batch
	e := newEncoder(click.Identity{Node: "node-1", Region: "eu", Boot: 1, Address: click.AddressTruncated})
	e.begin(nil, 1)
	clicks := browserClicks(n)
	for i := range clicks {
		if !e.add(&clicks[i]) {
			b.Fatalf("only %d clicks fit", i)
		}
	}
	var account click.Ledger
	data := e.end(&account, false)
	var buf []byte
	done := 0
	b.ResetTimer()
	for ; done < b.N; done += n {
		buf = s2.Encode(buf[:cap(buf)], data)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(done), "s2-ns/click")
	b.ReportMetric(float64(len(buf))/n, "s2-bytes/click")
	b.ReportMetric(float64(len(data))/n, "bytes/click")
}

// BenchmarkPublish measures the way of clicks from a full spool to a file-backed
// stream of a server beside it, acknowledgements included: with what was sent
// kept, and without. cpu-ns/click is of this process alone.
func BenchmarkPublish(b *testing.B) {
	for name, retention := range map[string]time.Duration{"kept": time.Hour, "not-kept": -1} {
		b.Run(name, func(b *testing.B) { benchmarkPublish(b, retention) })
	}
}

func benchmarkPublish(b *testing.B, retention time.Duration) {
	s := natstest.StartProcess(b)
	r := openRecorder(b, func(c *click.Config) { c.MaxBytes, c.Retention = 12<<30, retention })
	clicks := browserClicks(4096)
	for i := range b.N {
		c := &clicks[i%len(clicks)]
		e := click.Event{
			Time: c.Time, Epoch: c.Epoch, Revision: c.Revision, LinkPath: c.Link, Affiliate: c.Affiliate, Campaign: c.Campaign,
			Destination: c.Destination, Status: c.Status, UserAgent: c.UserAgent, Referrer: c.Referrer, Languages: c.Languages, Host: c.Host,
		}
		for recorded := r.Ledger().Recorded; r.Ledger().Recorded == recorded; {
			r.Record(&e)
		}
	}
	b.ResetTimer()
	before := processTime(b)
	p, _ := start(b, s.URL(), r)
	flush(b, p)
	b.StopTimer()
	spent := processTime(b) - before
	if p.published.Load() != uint64(b.N) {
		b.Fatalf("%d of %d were published", p.published.Load(), b.N)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "clicks/s")
	b.ReportMetric(float64(spent)/float64(b.N), "cpu-ns/click")
}

// processTime is the time that this process has computed, in ns.
func processTime(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
