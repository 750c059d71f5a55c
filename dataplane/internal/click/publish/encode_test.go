package publish

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/snappy"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/click"
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
		Sequence: sequence, Time: rnd.Int64N(time.Date(9998, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()), Revision: rnd.Int64(), Epoch: 77,
		Link: text(8), Affiliate: text(4), Campaign: text(4), Variant: text(2), Destination: text(300), UserAgent: text(1024),
		Referrer: text(2048), Languages: text(256), Host: text(255), Path: text(2048), Address: text(1),
		Rule: rnd.Uint32(), Status: uint16(rnd.Uint32()), Outcome: uint8(rnd.IntN(10)), Head: rnd.IntN(2) == 0,
	}
	if rnd.IntN(4) == 0 {
		c.Time, c.Revision, c.Rule, c.Status = time.Date(9998, 12, 31, 0, 0, 0, 0, time.UTC).UnixMicro(), math.MinInt64, math.MaxUint32, math.MaxUint16
	}
	if rnd.IntN(2) == 0 {
		c.Address = bytes.Repeat([]byte{byte(rnd.Uint32())}, 4+12*rnd.IntN(2))
		c.Truncated = rnd.IntN(2) == 0
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

// unmarshal reads a batch as a consumer in another language does: what was
// compressed is appended, and read once more.
func unmarshal(t *testing.T, data []byte) *clickv1.Batch {
	t.Helper()
	b := new(clickv1.Batch)
	if err := proto.Unmarshal(data, b); err != nil {
		t.Fatal(err)
	}
	if len(b.Snappy) > 0 {
		more, err := snappy.Decode(nil, b.Snappy)
		if err == nil {
			err = (proto.UnmarshalOptions{Merge: true}).Unmarshal(more, b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// noPage is memory that cannot be read, as a page of the spool that the disk cannot give.
var noPage = sync.OnceValue(func() []byte {
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return page
})

// tear adds a click of which a field cannot be read.
func tear(t *testing.T, e *encoder, rnd *rand.Rand, sequence uint64) {
	t.Helper()
	c := randomClick(rnd, sequence)
	all := []*[]byte{&c.Link, &c.Affiliate, &c.Campaign, &c.Variant, &c.Destination, &c.UserAgent, &c.Referrer, &c.Languages, &c.Host, &c.Path, &c.Address}
	*all[rnd.IntN(len(all))] = noPage()[:1+rnd.IntN(16)]
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { _ = recover() }()
	if e.add(&c) {
		t.Error("it was added")
	}
}

func TestABatchIsWhatProtobufReads(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	e := newEncoder(click.Identity{Node: "n\x01", Region: "", Boot: 0xffee, Address: click.AddressTruncated})
	for round := range 200 {
		first := rnd.Uint64()>>8 + 1
		e.begin(nil, first)
		var clicks []click.Click
		for {
			for rnd.IntN(3) == 0 {
				tear(t, e, rnd, first+uint64(len(clicks)))
			}
			c := randomClick(rnd, first+uint64(len(clicks)))
			if !e.add(&c) {
				if len(e.strings) <= maxStrings && len(e.buf)+len(e.records) < e.limit/2 {
					t.Fatalf("a batch of %d clicks is full", len(clicks))
				}
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
		b := unmarshal(t, data)
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
				!bytes.Equal(got.Address, want.Address) || (got.AddressForm == clickv1.AddressForm_ADDRESS_FORM_TRUNCATED) != want.Truncated {
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

// Batches are told apart by a number that comes again.
func TestABatchKnowsNoStringsOfEarlierOnes(t *testing.T) {
	e := newEncoder(click.Identity{Node: "n", Boot: 1})
	first, second := []byte("first"), []byte("second")
	const every = 1<<16 - 1 // 0 is none
	for i := range 3 * every {
		e.begin(nil, 1)
		if i%every == 0 { // and first is not seen until then
			e.index(first)
			if got := e.index(second); got != 2 {
				t.Fatalf("batch %d: string %d", i, got)
			}
			continue
		}
		if got := e.index(second); got != 1 || len(e.strings) != 2 {
			t.Fatalf("batch %d: string %d of %d", i, got, len(e.strings)-1)
		}
	}
}

// A destination is not looked for when its link is new: one that a link has again, in turn
// with others, is still written twice at most.
func TestALinksDestinationsAreWrittenTwiceAtMost(t *testing.T) {
	e := newEncoder(click.Identity{Node: "n", Boot: 1})
	e.begin(nil, 1)
	for i := range 300 {
		c := &click.Click{Sequence: uint64(i + 1), Link: fmt.Appendf(nil, "link-%d", i%2), Destination: fmt.Appendf(nil, "to-%d", i%3)}
		if !e.add(c) {
			t.Fatalf("click %d was not added", i)
		}
	}
	const none, links, destinations = 1, 2, 3
	if got := len(e.strings); got > none+links+2*destinations {
		t.Errorf("there are %d strings", got)
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
	s := newSource(r.Log(), newEncoder(r.Log().Identity()), func() []byte { return nil })
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

// The head of a block is as long as its lengths are.
func TestABlockFollowsItsHeadWhateverItsLength(t *testing.T) {
	e := newEncoder(click.Identity{Node: "n", Boot: 1})
	var account click.Ledger
	var buf []byte
	short, long := 0, 0
	for n := 1; n < 1200; n += 1 + n/8 {
		e.begin(buf, 7)
		for i := range n {
			if !e.add(&click.Click{Sequence: uint64(7 + i), Time: int64(i), Destination: fmt.Appendf(nil, "https://store-%d.example/p/%d", i%7, i*7919)}) {
				t.Fatalf("click %d was not added", i)
			}
		}
		buf = e.end(&account, false)
		batch, err := clickstream.Decode(buf)
		if err != nil || len(batch.Clicks) != n || batch.Clicks[n-1].Destination != fmt.Sprintf("https://store-%d.example/p/%d", (n-1)%7, (n-1)*7919) {
			t.Fatalf("%d clicks: %v, %d", n, err, len(batch.Clicks))
		}
		if plain := len(e.buf) + len(e.records); n > 10 && len(buf) > plain {
			t.Errorf("%d clicks: %d bytes, plain %d", n, len(buf), plain)
		}
		if len(buf) < 1<<14 {
			short++
		} else {
			long++
		}
	}
	if short < 3 || long < 3 {
		t.Errorf("%d short blocks, %d long ones", short, long)
	}
}
