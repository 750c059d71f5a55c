package guard

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/clickstream"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
	"github.com/affleet/affleet/proto/link"
)

// hit is a click in the making.
type hit struct {
	at                                          time.Duration // after start
	address, agent, referrer, language, country string
	affiliate, link                             int
	asn                                         uint32
	labels                                      string // separated by commas
	truncated                                   bool   // by the node's policy
	gpc                                         bool   // by the client, under a policy that records addresses in full
}

// start is a Monday, at midnight.
var start = time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)

// message makes the bytes of one node's batch.
func message(t testing.TB, first uint64, hits []hit) []byte {
	t.Helper()
	b := &clickv1.Batch{Node: "n1", Region: "eu", Boot: 7, FirstSequence: first, BaseTimeUs: start.UnixMicro(), Strings: [][]byte{nil}, AddressForm: clickv1.AddressForm_ADDRESS_FORM_FULL}
	index := map[string]uint32{"": 0}
	at := func(s string) uint32 {
		i, ok := index[s]
		if !ok {
			i = uint32(len(b.Strings))
			index[s] = i
			b.Strings = append(b.Strings, []byte(s))
		}
		return i
	}
	for _, h := range hits {
		c := &clickv1.Click{
			TimeUs: h.at.Microseconds(), UserAgent: at(h.agent), Referrer: at(h.referrer), Languages: at(h.language), Country: at(h.country), Asn: h.asn,
			Affiliate: at(fmt.Sprintf("aff-%d", h.affiliate)), Link: at(fmt.Sprintf("go.example.com/a%d/%d", h.affiliate, h.link)),
		}
		if h.address != "" {
			c.Address = netip.MustParseAddr(h.address).AsSlice()
		}
		if h.truncated {
			b.AddressForm = clickv1.AddressForm_ADDRESS_FORM_TRUNCATED
		}
		if h.gpc {
			c.AddressForm = clickv1.AddressForm_ADDRESS_FORM_TRUNCATED
		}
		for l := range strings.SplitSeq(h.labels, ",") {
			if l != "" {
				c.Labels = append(c.Labels, at(l), at("test"))
			}
		}
		b.Clicks = append(b.Clicks, c)
	}
	data, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// feed gives an engine clicks in the order of their times, in batches of a size.
func feed(t testing.TB, e *Engine, hits []hit, size int) {
	t.Helper()
	slices.SortStableFunc(hits, func(a, b hit) int { return int(a.at - b.at) })
	for first := uint64(1); len(hits) > 0; {
		n := min(size, len(hits))
		b, err := clickstream.Decode(message(t, first, hits[:n]))
		if err != nil {
			t.Fatal(err)
		}
		e.Add(b)
		first += uint64(n)
		hits = hits[n:]
	}
}

// find gives what an engine of small tables finds in clicks.
func find(t testing.TB, hits []hit) (found []*clickv1.Finding) {
	t.Helper()
	e, err := NewEngine(small(), func(f *clickv1.Finding) { found = append(found, f) })
	if err != nil {
		t.Fatal(err)
	}
	feed(t, e, hits, 200)
	for _, f := range found {
		check(t, f)
	}
	return found
}

func small() Settings {
	return Settings{Addresses: 1 << 12, Networks: 1 << 12, Agents: 1 << 10, ASNs: 1 << 8, Affiliates: 1 << 8}
}

// check looks at what every finding must have.
func check(t testing.TB, f *clickv1.Finding) {
	t.Helper()
	switch {
	case f.GetConfidence() <= 0 || f.GetConfidence() > 1 || math.IsNaN(f.GetConfidence()):
		t.Errorf("confidence %v: %v", f.GetConfidence(), f)
	case f.GetSubject().GetSubject() == nil, f.GetId() == "", f.GetClicks() == 0, len(f.GetFigures()) == 0, len(f.GetSamples()) == 0 || len(f.GetSamples()) > 16:
		t.Errorf("it lacks something: %v", f)
	case f.GetFrom().AsTime().After(f.GetTo().AsTime()):
		t.Errorf("its span is %v to %v", f.GetFrom().AsTime(), f.GetTo().AsTime())
	case !strings.HasPrefix(f.GetSummary(), SubjectName(f.GetSubject())):
		t.Errorf("the summary is of another subject: %s", f.GetSummary())
	}
	if _, ok := link.CheckDetector(f.GetDetector()); !ok {
		t.Errorf("no policy knows the detector %s", f.GetDetector())
	}
}

// of chooses findings of a detector about a subject, as SubjectName gives it.
func of(found []*clickv1.Finding, detector, subject string) (chosen []*clickv1.Finding) {
	for _, f := range found {
		if f.GetDetector() == detector && (subject == "" || SubjectName(f.GetSubject()) == subject) {
			chosen = append(chosen, f)
		}
	}
	return chosen
}

// sure fails when there is a finding that the default policy would block for, or
// that speaks surely of an affiliate.
func innocent(t *testing.T, found []*clickv1.Finding) {
	t.Helper()
	for _, f := range found {
		if f.GetConfidence() >= link.DefaultMinConfidence {
			t.Errorf("%s %.3f: %s", f.GetDetector(), f.GetConfidence(), f.GetSummary())
		}
	}
}

// guilty fails without a sure finding.
func guilty(t *testing.T, found []*clickv1.Finding, detector, subject string) *clickv1.Finding {
	t.Helper()
	for _, f := range of(found, detector, subject) {
		if f.GetConfidence() >= link.DefaultMinConfidence {
			return f
		}
	}
	t.Fatalf("%s has not found %s; found was %v", detector, subject, summaries(found))
	return nil
}

func summaries(found []*clickv1.Finding) (all []string) {
	for _, f := range found {
		all = append(all, fmt.Sprintf("%s %.3f: %s", f.GetDetector(), f.GetConfidence(), f.GetSummary()))
	}
	return all
}

// browsers are what people use, the common ones first.
func browser(r *rand.Rand) string {
	return fmt.Sprintf("Mozilla/5.0 (%s) Chrome/%d.0.0.0", []string{"Windows NT 10.0", "Android 10; K", "iPhone", "Macintosh"}[r.IntN(4)], 145-int(r.ExpFloat64()*4))
}

var tongues = []string{"de-DE,de;q=0.9", "de", "en-US,en;q=0.9", "de-DE,de;q=0.9,en;q=0.8", "fr-FR,fr;q=0.9"}

// person is a click of anybody, on a link of anybody.
func person(r *rand.Rand, at time.Duration) hit {
	a := min(r.IntN(40), r.IntN(40))
	return hit{
		at: at, address: fmt.Sprintf("20.%d.%d.%d", r.IntN(200), r.IntN(250), 1+r.IntN(250)), agent: browser(r), asn: uint32(100 + r.IntN(50)),
		referrer: []string{"", fmt.Sprintf("https://site-%d.example/", a), "https://t.co/", "https://www.google.com/"}[r.IntN(4)],
		language: tongues[r.IntN(len(tongues))], country: []string{"DE", "DE", "DE", "AT", "CH", "US"}[r.IntN(6)], affiliate: a, link: min(r.IntN(20), r.IntN(20)),
	}
}

// people click by chance at a mean rate a second, over a span, less at night.
func people(r *rand.Rand, from, length time.Duration, rate float64) (hits []hit) {
	for at := from; at < from+length; at += time.Duration(r.ExpFloat64() / rate * float64(time.Second)) {
		if h := at.Hours(); r.Float64() < 0.6-0.4*math.Cos(2*math.Pi*(h-3)/24) {
			hits = append(hits, person(r, at))
		}
	}
	return hits
}

func random(t *testing.T) *rand.Rand {
	seed := uint64(len(t.Name())) * 7919
	return rand.New(rand.NewPCG(seed, 1))
}

const (
	day  = 24 * time.Hour
	bad  = "203.0.113.9"
	band = "203.0.113.9/32"
)

func TestANodeWhoseClockIsAheadMovesNoWindows(t *testing.T) {
	e, err := NewEngine(small(), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := clickstream.Decode(message(t, 1, []hit{{at: 90 * day, address: bad}}))
	if err != nil {
		t.Fatal(err)
	}
	b.Stored = start.Add(time.Minute)
	e.Add(b)
	if got := e.Stats().Watermark; !got.Equal(b.Stored) {
		t.Fatalf("the watermark is %v", got)
	}
}
