package guard

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

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
