package guard

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
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

func TestDeclaredRobotsAreNoSources(t *testing.T) {
	var hits []hit
	for i := range 2000 {
		hits = append(hits, hit{at: time.Duration(i) * 100 * time.Millisecond, address: bad, agent: "Googlebot", labels: "bot"})
	}
	innocent(t, find(t, hits))
}
