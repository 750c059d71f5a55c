package guard

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/affleet/affleet/proto/link"
)

// What is honest and comes beside an attack, or looks like one at first.

func TestABurstOfOneAddressIsFoundAlthoughNothingComesAfterIt(t *testing.T) {
	r := random(t)
	hits := people(r, 0, time.Hour, 2)
	for i := range 480 {
		hits = append(hits, hit{at: 30*time.Minute + time.Duration(i)*time.Millisecond, address: bad, agent: "Mozilla/5.0 x", affiliate: 3})
	}
	f := guilty(t, find(t, hits), "flood", band)
	if f.GetClicks() > 20 || f.GetTo().AsTime().Sub(f.GetFrom().AsTime()) > 50*time.Millisecond {
		t.Errorf("late: %v", f)
	}
}

func TestManyClicksBesideFewOddOnesAreNotHeldAgainstTheirAffiliate(t *testing.T) {
	for _, c := range []struct {
		name, detector, country string
		odd                     func(r *rand.Rand, at time.Duration) hit
	}{
		{"a mail beside a script", "entropy", "IE", func(_ *rand.Rand, at time.Duration) hit {
			return hit{at: at, address: bad, agent: "Mozilla/5.0 clock", affiliate: 7, country: "DE", language: "de"}
		}},
		{"a link that goes viral beside a farm", "country_mix", "BR", func(r *rand.Rand, at time.Duration) hit {
			h := person(r, at)
			h.affiliate, h.country = 7, "VN"
			return h
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := random(t)
			hits := people(r, 0, 6*day, 0.5)
			for at := 5 * day; at < 6*day; at += 30 * time.Second {
				hits = append(hits, c.odd(r, at))
			}
			many := 5*day + 20*time.Hour
			for range 200 {
				h := person(r, many+time.Duration(r.Int64N(int64(10*time.Minute))))
				h.affiliate, h.link, h.referrer = 7, 1, ""
				if r.IntN(5) == 0 {
					h.country = c.country
				}
				hits = append(hits, h)
			}
			found := find(t, hits)
			guilty(t, found, c.detector, "affiliate aff-7") // of what is odd, and rightly so
			flood := of(found, "flood", "affiliate aff-7")
			if len(flood) == 0 {
				t.Error("that an affiliate has many times its clicks is worth a word")
			}
			innocent(t, flood)
		})
	}
}

func TestAnAffiliateOfWhichOnlyAViralDayIsKnownHasNoUsualEntropy(t *testing.T) {
	windows := func(e *entropies, r *rand.Rand, hour uint32, n, agents int) (sure bool) {
		settings := EntropySettings{}
		settings.setDefaults()
		for i := range n {
			for range entropyClicks {
				ev := event{agent: word{key: mix(uint64(r.IntN(agents)))}}
				ev.prefixKey[kindNetwork] = r.Uint64()
				e.add(&ev)
			}
			sure = sure || e.close(&settings, hour+uint32(i)).confidence >= link.DefaultMinConfidence
			e.open(0)
		}
		return sure
	}
	for _, days := range []uint32{1, 4} {
		var e entropies
		for d := range days { // eight hours of a link in many apps, then a quiet evening
			if windows(&e, random(t), 24*d, 8, 100) {
				t.Error("what is usual is accused")
			}
		}
		if sure := windows(&e, random(t), 24*(days-1)+12, 4, 8); sure != (days > 1) {
			t.Errorf("of %d days: accused is %v", days, sure)
		}
	}
}

// TestANeighbourDoesNotWidenABlock: a network is found again by 16 clicks, one of
// which is a neighbour's, for another affiliate.
func TestANeighbourDoesNotWidenABlock(t *testing.T) {
	for _, first := range []bool{true, false} {
		var hits []hit
		for i := range 200 {
			hits = append(hits, hit{at: time.Duration(i) * 3 * time.Minute, address: "203.0.113.0", truncated: true, agent: "clock", affiliate: 5})
			if i%15 == 7 || i == 0 && first {
				hits = append(hits, hit{at: time.Duration(i)*3*time.Minute + time.Second, address: "203.0.113.0", truncated: true, agent: "b", affiliate: i % 5})
			}
		}
		found := of(find(t, hits), "timing", "203.0.113.0/24")
		if len(found) < 3 {
			t.Fatalf("found %v", summaries(found))
		}
		for _, f := range found {
			if f.GetAffiliate() != "aff-5" || f.GetAffiliateShare() < 0.8 || f.GetAffiliateShare() == 1 {
				t.Errorf("%s %.3f: %s", f.GetAffiliate(), f.GetAffiliateShare(), f.GetSummary())
			}
		}
	}
}

func TestTheFirstClickAfterAScriptHasStoppedIsNotTakenForIt(t *testing.T) {
	var hits []hit
	script := func(n int) {
		for i := range n {
			hits = append(hits, hit{at: time.Duration(i) * 105 * time.Second, address: "203.0.113.0", truncated: true, agent: "clock", affiliate: 5})
		}
	}
	// It is found at its 25th click, and would be found anew 50 minutes later: it
	// stops just before, and hours later a neighbour comes.
	script(52)
	end := hits[51].at
	if before := of(find(t, hits), "timing", ""); len(before) != 1 {
		t.Fatalf("found %v", summaries(before))
	}
	for i := range 3 {
		hits = append(hits, hit{at: end + 7*time.Hour + time.Duration(i*i)*11*time.Minute, address: "203.0.113.0", truncated: true, agent: "b", affiliate: 5 + i})
	}
	if after := of(find(t, hits), "timing", ""); len(after) != 1 {
		t.Errorf("the neighbour is accused: %v", summaries(after))
	}
}

func TestTheShareOfAMajorityIsKnownWithinWhatCameBeforeIt(t *testing.T) {
	r := random(t)
	for range 1000 {
		var c counted
		n, own := 1+r.IntN(40), 0
		others := r.Float64()
		for range n {
			h := uint32(1)
			if r.Float64() < others {
				h = 2 + uint32(r.IntN(5))
			} else {
				own++
			}
			c.add(h)
		}
		least, most := c.least(uint32(n)), c.share(uint32(n))
		share := float64(own) / float64(n)
		if c.hash == 1 && (least > share+1e-9 || most < share-1e-9) || 2*own > n && c.hash != 1 {
			t.Fatalf("%d of %d: at least %.3f, at most %.3f", own, n, least, most)
		}
		if c.hash == 1 && least < float64(c.lead)/float64(n)-1e-9 {
			t.Fatalf("%.3f is less than the lead says", least)
		}
	}
}
