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

func TestFloodOfOneAddressIsFoundWithinADozenClicks(t *testing.T) {
	r := random(t)
	hits := people(r, 0, time.Hour, 2)
	for i := range 200 {
		hits = append(hits, hit{at: 30*time.Minute + time.Duration(i)*50*time.Millisecond, address: bad, agent: "Mozilla/5.0 x", affiliate: 3})
	}
	found := find(t, hits)
	f := guilty(t, found, "flood", band)
	if f.GetClicks() > 20 || f.GetTo().AsTime().Sub(f.GetFrom().AsTime()) > time.Second || f.GetAffiliate() != "aff-3" {
		t.Fatalf("late, or vague: %v", f)
	}
	if id := f.GetSamples()[0]; id.GetNode() != "n1" || id.GetBoot() != 7 || id.GetSequence() == 0 {
		t.Fatalf("sample %v", id)
	}
}

func TestNeighboursAreNotHeldToAccountForOneAddress(t *testing.T) {
	var hits []hit
	for i := range 600 {
		hits = append(hits, hit{at: time.Duration(i) * 100 * time.Millisecond, address: bad, agent: "a"})
		if i%20 == 0 {
			hits = append(hits, hit{at: time.Duration(i)*100*time.Millisecond + time.Millisecond, address: "203.0.113.77", agent: "b"})
		}
	}
	found := find(t, hits)
	guilty(t, found, "flood", band)
	if f := of(found, "flood", "203.0.113.0/24"); len(f) > 0 {
		t.Errorf("its network was found, too: %v", summaries(f))
	}
	for i := range hits { // of several addresses it is the network
		hits[i].address = fmt.Sprintf("203.0.113.%d", 10+i%4)
	}
	guilty(t, find(t, hits), "flood", "203.0.113.0/24")
}

func TestFloodOfATruncatedAddressIsOneOfItsNetwork(t *testing.T) {
	var hits []hit
	for i := range 60 {
		hits = append(hits, hit{at: time.Duration(i) * 100 * time.Millisecond, address: "203.0.113.0", truncated: true, agent: []string{"a", "b", "c"}[i%3]})
	}
	guilty(t, find(t, hits), "flood", "203.0.113.0/24")
	for i := range hits {
		hits[i].address = "2001:db8:7::"
	}
	guilty(t, find(t, hits), "flood", "2001:db8:7::/48")
}

// They are of the whole network, and look like those of one host.
func TestClicksThatTheirClientsHaveTruncatedAreOfNoAddress(t *testing.T) {
	var hits []hit
	for i := range 60 {
		hits = append(hits, hit{at: time.Duration(i) * 100 * time.Millisecond, address: "203.0.113.0", gpc: true, agent: []string{"a", "b", "c"}[i%3]})
	}
	guilty(t, find(t, hits), "flood", "203.0.113.0/24")
}

func TestManyPeopleBehindOneAddressAreNoFlood(t *testing.T) {
	r := random(t)
	hits := people(r, 0, time.Hour, 2)
	for range 6000 { // ten a second, on one link, for ten minutes
		h := person(r, 20*time.Minute+time.Duration(r.Int64N(int64(10*time.Minute))))
		h.address, h.affiliate, h.link, h.referrer = bad, 5, 1, "https://t.co/"
		hits = append(hits, h)
	}
	innocent(t, of(find(t, hits), "flood", band))
	innocent(t, of(find(t, hits), "many_agents", ""))
	innocent(t, of(find(t, hits), "timing", ""))
}

func TestAViralLinkBlocksNobody(t *testing.T) {
	r := random(t)
	hits := people(r, 0, 4*day, 0.5)
	at := 3*day + 12*time.Hour
	for range 6000 {
		h := person(r, at+time.Duration(float64(20*time.Minute)*r.ExpFloat64()))
		h.affiliate, h.link, h.referrer = 7, 2, []string{"https://t.co/", "https://t.co/", ""}[r.IntN(3)]
		if r.IntN(4) > 0 {
			h.agent = fmt.Sprintf("Mozilla/5.0 (iPhone) Instagram %d.%d", r.IntN(40), r.IntN(900))
		}
		if r.IntN(5) == 0 { // of a carrier's gateway
			h.address = fmt.Sprintf("20.7.7.%d", r.IntN(100))
		}
		hits = append(hits, h)
	}
	found := find(t, hits)
	if len(of(found, "flood", "affiliate aff-7")) == 0 {
		t.Error("that an affiliate has ten times its clicks is worth a word")
	}
	innocent(t, found)
}

func TestAnAffiliateWithItsUsualClicksIsNoFlood(t *testing.T) {
	innocent(t, find(t, people(random(t), 0, 6*day, 1)))
}

func TestAnAffiliateIsFloodedForSureWhenItsVisitorsAreOthersToo(t *testing.T) {
	r := random(t)
	hits := people(r, 0, 6*day, 0.5)
	for at := 5 * day; at < 5*day+3*time.Hour; at += time.Duration(r.ExpFloat64() * float64(2*time.Second)) {
		h := person(r, at)
		h.affiliate, h.language, h.country = 7, "en-US,en;q=0.9", []string{"BR", "IN", "VN", "EG", "ID", "TR", "MX"}[r.IntN(7)]
		hits = append(hits, h)
	}
	found := find(t, hits)
	guilty(t, found, "country_mix", "affiliate aff-7")
	guilty(t, found, "flood", "affiliate aff-7")
}

func TestSlowNetworkWithoutAHistoryIsFound(t *testing.T) {
	r := random(t)
	hits := people(r, 0, day, 1)
	for at := time.Duration(0); at < day; at += time.Duration(r.ExpFloat64() * float64(90*time.Second)) {
		h := person(r, at)
		h.address, h.referrer, h.asn = fmt.Sprintf("160.1.2.%d", r.IntN(100)), "", 64500
		h.affiliate, h.link = r.IntN(40), r.IntN(20)
		hits = append(hits, h)
	}
	found := find(t, hits)
	guilty(t, found, "low_and_slow", "160.1.2.0/24")
	guilty(t, found, "low_and_slow", "AS64500")
}

func TestSlowNetworksOfOneSystemAreFoundThroughIt(t *testing.T) {
	r := random(t)
	hits := people(r, 0, day, 1)
	for at := time.Duration(0); at < day; at += time.Duration(r.ExpFloat64() * float64(150*time.Second)) {
		h := person(r, at)
		h.address, h.referrer, h.asn = fmt.Sprintf("160.1.%d.%d", r.IntN(8), r.IntN(100)), "", 64500
		h.affiliate, h.link = r.IntN(40), r.IntN(20)
		hits = append(hits, h)
	}
	found := find(t, hits)
	guilty(t, found, "low_and_slow", "AS64500")
	for i := range 8 {
		guilty(t, found, "low_and_slow", fmt.Sprintf("160.1.%d.0/24", i))
	}
}

func TestAnOfficeIsNotLowAndSlow(t *testing.T) {
	r := random(t)
	hits := people(r, 0, day, 1)
	for at := 8 * time.Hour; at < 18*time.Hour; at += time.Duration(r.ExpFloat64() * float64(40*time.Second)) {
		h := person(r, at)
		h.address, h.asn = "198.51.100.7", 64501
		if r.IntN(3) > 0 {
			h.agent = "Mozilla/5.0 (Windows NT 10.0) Chrome/145.0.0.0"
		}
		hits = append(hits, h)
	}
	innocent(t, find(t, hits))
}

func TestCookieCutterAgentIsFoundAndAPopularOneIsNot(t *testing.T) {
	r := random(t)
	hits := people(r, 0, 6*time.Hour, 2)
	for range 300 {
		h := person(r, time.Duration(r.Int64N(int64(6*time.Hour))))
		h.agent, h.affiliate = "Mozilla/5.0 (Windows NT 6.1) Chrome/81.0.4044.9", 9
		hits = append(hits, h)
	}
	found := find(t, hits)
	f := guilty(t, found, "low_and_slow", `user agent "Mozilla/5.0 (Windows NT 6.1) Chrome/81.0.4044.9"`)
	if string(f.GetSubject().GetUserAgent()) != "Mozilla/5.0 (Windows NT 6.1) Chrome/81.0.4044.9" || f.GetAffiliate() != "aff-9" {
		t.Fatal(f)
	}
	for _, f := range found {
		if f.GetSubject().GetUserAgent() != nil && !strings.Contains(string(f.GetSubject().GetUserAgent()), "Chrome/81") {
			t.Errorf("%s", f.GetSummary())
		}
	}
}

func TestClicksByTheClockAreFoundAndThoseByChanceAreNot(t *testing.T) {
	for _, c := range []struct {
		name string
		gap  func(r *rand.Rand) float64
		bad  bool
	}{
		{"a clock with a little jitter", func(r *rand.Rand) float64 { return 60 * (1 + 0.02*r.NormFloat64()) }, true},
		{"a sleep between half and one and a half", func(r *rand.Rand) float64 { return 60 * (0.5 + r.Float64()) }, true},
		{"chance", func(r *rand.Rand) float64 { return 60 * r.ExpFloat64() }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := random(t)
			hits := people(r, 0, 3*time.Hour, 1)
			for at := 0.0; at < 3*3600; at += c.gap(r) {
				hits = append(hits, hit{at: time.Duration(at * float64(time.Second)), address: bad, agent: "Mozilla/5.0 y", affiliate: 2, referrer: "https://t.co/"})
			}
			found := find(t, hits)
			if c.bad {
				guilty(t, found, "timing", band)
			} else {
				innocent(t, of(found, "timing", ""))
			}
		})
	}
}

func TestASourceWithoutANightIsFoundAndOneThatSleepsIsNot(t *testing.T) {
	for _, sleeps := range []bool{false, true} {
		r := random(t)
		hits := people(r, 0, 2*day, 1)
		for at := time.Duration(0); at < 2*day; at += time.Duration(r.ExpFloat64() * float64(4*time.Minute)) {
			if h := at.Hours() - 24*math.Floor(at.Hours()/24); sleeps && (h < 6 || h > 23) {
				continue
			}
			hits = append(hits, hit{at: at, address: bad, agent: "Mozilla/5.0 z", affiliate: 2, link: r.IntN(3), language: "de"})
		}
		found := of(find(t, hits), "timing", band)
		if sleeps {
			innocent(t, found)
		} else {
			guilty(t, found, "timing", band)
		}
	}
}

func TestBurstsAreFoundAndABusyAffiliateHasNone(t *testing.T) {
	r := random(t)
	hits := people(r, 0, 4*time.Hour, 1)
	for i := range 6 {
		for range 25 {
			h := person(r, time.Duration(i*30+10)*time.Minute+time.Duration(r.Int64N(int64(time.Second))))
			h.affiliate = 11
			hits = append(hits, h)
		}
	}
	guilty(t, find(t, hits), "bursts", "affiliate aff-11")

	hits = people(r, 0, time.Hour, 1)
	for range 30_000 { // more than eight a second, by chance
		h := person(r, time.Duration(r.Int64N(int64(time.Hour))))
		h.affiliate = 11
		hits = append(hits, h)
	}
	innocent(t, of(find(t, hits), "bursts", ""))
}

func TestOneAddressWithAListOfAgentsIsFoundAndAGatewayDuringAMailIsNot(t *testing.T) {
	r := random(t)
	hits := people(r, 0, 7*time.Hour, 2)
	for at := 6 * time.Hour; at < 7*time.Hour; at += time.Duration(r.ExpFloat64() * float64(8*time.Second)) {
		agent := fmt.Sprintf("Mozilla/5.0 (Windows NT 6.1) Chrome/%d.0.%d.%d", 60+r.IntN(40), 3000+r.IntN(4), r.IntN(3))
		hits = append(hits, hit{at: at, address: bad, agent: agent, affiliate: 4, link: r.IntN(6), language: "de-DE"})
	}
	guilty(t, find(t, hits), "many_agents", band)

	hits = people(r, 0, 7*time.Hour, 2)
	for at := 6 * time.Hour; at < 7*time.Hour; at += time.Duration(r.ExpFloat64() * float64(8*time.Second)) {
		h := person(r, at)
		h.address, h.affiliate, h.link, h.referrer, h.language = bad, 4, r.IntN(3), "", "pl"
		hits = append(hits, h)
	}
	innocent(t, of(find(t, hits), "many_agents", ""))
}

func TestEntropyFallsWithAlikeClicksAndNotWithMoreOfThem(t *testing.T) {
	for _, alike := range []bool{true, false} {
		r := random(t)
		hits := people(r, 0, 4*day, 1)
		for range 1500 {
			h := person(r, 3*day+time.Duration(r.Int64N(int64(2*time.Hour))))
			h.affiliate = 1
			if alike {
				h.agent = "Mozilla/5.0 cut"
			}
			hits = append(hits, h)
		}
		found := find(t, hits)
		if alike {
			guilty(t, found, "entropy", "affiliate aff-1")
		} else {
			innocent(t, of(found, "entropy", ""))
		}
	}
}

func TestLabelledShareIsFoundAndTheScannersOfAMailAreNot(t *testing.T) {
	r := random(t)
	hits := people(r, 0, 2*day, 1)
	for at := day; at < day+3*time.Hour; at += time.Duration(r.ExpFloat64() * float64(8*time.Second)) {
		h := person(r, at)
		h.affiliate, h.labels = 6, "datacenter"
		hits = append(hits, h)
	}
	guilty(t, find(t, hits), "labelled_share", "affiliate aff-6")

	hits = people(r, 0, 2*day, 1)
	for range 300 {
		h := person(r, day+time.Duration(r.ExpFloat64()*float64(4*time.Minute)))
		h.affiliate, h.labels = 6, "datacenter"
		hits = append(hits, h)
	}
	innocent(t, of(find(t, hits), "labelled_share", ""))
}

func TestAnotherCountryIsFoundAndTheNightIsNot(t *testing.T) {
	r := random(t)
	base := func() (hits []hit) { // a country by day, another one by night
		for _, h := range people(r, 0, 6*day, 1) {
			if clock := int(h.at.Hours()) % 24; clock < 6 {
				h.country = []string{"US", "MX", "BR", "CA"}[r.IntN(4)]
			} else {
				h.country = "DE"
			}
			hits = append(hits, h)
		}
		return hits
	}
	hits := base()
	innocent(t, of(find(t, hits), "country_mix", ""))
	for at := 5*day + 12*time.Hour; at < 5*day+16*time.Hour; at += time.Duration(r.ExpFloat64() * float64(20*time.Second)) {
		h := person(r, at)
		h.affiliate, h.country = 2, "VN"
		hits = append(hits, h)
	}
	guilty(t, find(t, hits), "country_mix", "affiliate aff-2")
}

func TestAFarmOnTheOnlyLinkOfAnAffiliateGoesOnAndAViralLinkDoesNot(t *testing.T) {
	base := func(r *rand.Rand) []hit {
		hits := people(r, 0, 6*day, 1)
		for i := range hits {
			if hits[i].country = "DE"; hits[i].affiliate == 30 {
				hits[i].link = 1
			}
		}
		return hits
	}
	foreign := func(r *rand.Rand, at time.Duration) hit {
		h := person(r, 5*day+10*time.Hour+at)
		h.affiliate, h.link, h.country = 30, 1, "VN"
		return h
	}
	t.Run("farm", func(t *testing.T) {
		r := random(t)
		hits := base(r)
		for at := time.Duration(0); at < 6*time.Hour; at += time.Duration(r.ExpFloat64() * float64(18*time.Second)) {
			hits = append(hits, foreign(r, at))
		}
		guilty(t, find(t, hits), "country_mix", "affiliate aff-30")
	})
	t.Run("viral", func(t *testing.T) {
		r := random(t)
		hits := base(r)
		for range 4000 { // half of them within three quarters of an hour
			hits = append(hits, foreign(r, time.Duration(15*(math.Pow(1-0.66*r.Float64(), -2.5)-1)*float64(time.Minute))))
		}
		innocent(t, of(find(t, hits), "country_mix", ""))
	})
}

func TestDeclaredRobotsAreNoSources(t *testing.T) {
	var hits []hit
	for i := range 2000 {
		hits = append(hits, hit{at: time.Duration(i) * 100 * time.Millisecond, address: bad, agent: "Googlebot", labels: "bot"})
	}
	innocent(t, find(t, hits))
}

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
