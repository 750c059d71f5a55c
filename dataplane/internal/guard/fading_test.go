package guard

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
	"github.com/affleet/affleet/proto/link"
)

// withForeign gives an affiliate whose last bins have so many foreign clicks, each
// beside so many others.
func withForeign(others int, foreign ...int) *affiliate {
	a := &affiliate{bin: 3_000_000}
	for i, n := range foreign {
		b := &a.bins[(a.bin-uint32(len(foreign)-1-i))%bins]
		b.foreign, b.n = uint16(n), uint16(n+others)
	}
	return a
}

// fading are the clicks of each bin of a link that goes viral in the middle of the
// first one, with a tau in minutes.
func fading(r *rand.Rand, people, tau float64, length int) (counts []int) {
	until := func(minutes float64) float64 { return 1 - math.Pow(1+max(0, minutes)/tau, 1-fadeExponent) }
	for i := range length {
		from := float64(10*i) - 5
		counts = append(counts, chance(r, people*(until(from+10)-until(from))))
	}
	return counts
}

// chance is a number of independent clicks of which so many come on average.
func chance(r *rand.Rand, mean float64) (n int) {
	for t := r.ExpFloat64(); t < mean; t += r.ExpFloat64() {
		n++
	}
	return n
}

func TestClicksThatGoOnLastAlsoWhenTheyAreFewerByChance(t *testing.T) {
	// Of a farm; 33 to 41 in the first hour, 21 to 24 in the third.
	farm := []int{33, 30, 34, 41, 33, 28, 24, 21, 23, 24, 27, 23, 36, 27, 28, 39, 27, 23, 39, 32, 24, 35}
	for n := 6; n <= len(farm); n++ {
		if bits := withForeign(2, farm[:n]...).lasting(0.1); bits < lastingBits {
			t.Errorf("after %d bins: %.1f bits", n, bits)
		}
	}
	r := random(t)
	late := 0
	for range 200 {
		var counts []int
		for range 36 {
			counts = append(counts, chance(r, 30))
		}
		for n := 7; n <= len(counts); n++ {
			if withForeign(3, counts[:n]...).lasting(0.1) < lastingBits {
				late++
			}
		}
	}
	if late > 200*30/20 {
		t.Errorf("%d of %d times it cannot be told that a farm goes on", late, 200*30)
	}
}

func TestWhatHasGoneViralHardlyEverLasts(t *testing.T) {
	r := random(t)
	wrong, looks := 0, 0
	for range 2000 {
		people, tau, others := math.Exp(5+4*r.Float64()), 10+15*r.Float64(), r.IntN(60)
		counts := fading(r, people, tau, 36)
		for i := range counts { // of those that others bring, a tenth are usual
			counts[i] += chance(r, float64(others)/9)
		}
		for n := 6; n <= len(counts); n++ {
			hour := 0
			for _, foreign := range counts[n-6 : n] {
				hour += foreign
			}
			if hour < 100 || hour < 6*others { // too few to speak of
				break
			}
			looks++
			if withForeign(others, counts[:n]...).lasting(0.1) >= lastingBits {
				wrong++
			}
		}
	}
	if looks < 10_000 || 1000*wrong > looks {
		t.Errorf("clicks that fade seem to last in %d of %d looks", wrong, looks)
	}
}

func TestALinkThatGoesViralWithinTenMinutesOfThemDoesNotLast(t *testing.T) {
	if bits := withForeign(3, 0, 777, 1272, 822, 652, 497).lasting(0.1); bits >= lastingBits {
		t.Errorf("%.1f bits", bits)
	}
}

func TestAFarmBehindWhatHasFadedLasts(t *testing.T) {
	r := random(t)
	counts := fading(r, 2500, 12, 18)
	for range 9 {
		counts = append(counts, chance(r, 90))
	}
	if bits := withForeign(3, counts...).lasting(0.1); bits < lastingBits {
		t.Errorf("%.1f bits", bits)
	}
	// Within the hour in which it begins, because it has risen.
	counts = append(fading(r, 1000, 12, 24), 47, 41, 44, 46, 40, 45)
	if bits := withForeign(3, counts...).lasting(0.1); bits < lastingBits {
		t.Errorf("in its first hour: %.1f bits", bits)
	}
	// Another link goes viral behind a flood.
	counts = append([]int{0, 2500, 3000, 0, 1, 0}, fading(r, 4000, 20, 10)...)
	for n := 7; n <= len(counts); n++ {
		if bits := withForeign(3, counts[:n]...).lasting(0.1); bits >= lastingBits {
			t.Errorf("after %d bins: %.1f bits", n, bits)
		}
	}
}

func TestNothingForeignIsNoEvidence(t *testing.T) {
	for _, a := range []*affiliate{withForeign(0), withForeign(20, 0, 0, 0), withForeign(900, 1)} {
		if bits := a.lasting(0.9); bits != 0 {
			t.Errorf("%.1f bits", bits)
		}
	}
}

// TestManyClicksOfManyCountriesAreScatteredUnlessTheyFade is of what is left of a link
// that has gone viral at an affiliate with much else: most of its clicks are not that
// link's, and of no one country.
func TestManyClicksOfManyCountriesAreScatteredUnlessTheyFade(t *testing.T) {
	r := random(t)
	even := make([]int, 12)
	for i := range even {
		even[i] = 150 + r.IntN(20)
	}
	for _, c := range []struct {
		name      string
		foreign   []int
		scattered bool
	}{
		{"a botnet goes on", even, true},
		{"a viral link fades", fading(r, 9000, 25, 12), false},
	} {
		a := withForeign(60, c.foreign...)
		home, other := countryClass('D'<<8|'E'), countryClass('C'<<8|'Z')
		for q := range a.where.base {
			a.where.base[q][home], a.where.base[q][other], a.where.total[q] = 60*usualWeight, 60*usualWeight, 120*usualWeight
		}
		for i := range 10 {
			a.where.now[100+i] = 50
		}
		a.where.now[home] = 200
		if got := a.scattered(45); got != c.scattered {
			t.Errorf("%s: scattered is %v", c.name, got)
		}
	}
}

// TestAFarmIsUnderAccusationUntilItEnds: it has half of its clicks an hour for a while,
// by chance, and its affiliate has one link only.
func TestAFarmIsUnderAccusationUntilItEnds(t *testing.T) {
	r := random(t)
	hits := people(r, 0, 6*day, 0.5)
	for i := range hits {
		if hits[i].country = "DE"; hits[i].affiliate == 30 {
			hits[i].link = 1
		}
	}
	begin, length := 5*day+8*time.Hour, 10*time.Hour
	for at := begin; at < begin+length; {
		h := person(r, at)
		h.affiliate, h.link, h.country = 30, 1, "PH"
		hits = append(hits, h)
		mean := 20 * time.Second
		if since := at - begin; since > 90*time.Minute && since < 150*time.Minute {
			mean = 29 * time.Second
		}
		at += time.Duration(r.ExpFloat64() * float64(mean))
	}
	accusedUntil(t, find(t, hits), "affiliate aff-30", begin, begin+length)
}

// accusedUntil fails unless country_mix speaks surely within 80 minutes, and again
// within 70 minutes of each time.
func accusedUntil(t *testing.T, found []*clickv1.Finding, subject string, begin, end time.Duration) {
	t.Helper()
	last, most := begin, 80*time.Minute
	for _, f := range of(found, "country_mix", subject) {
		at := f.GetTo().AsTime().Sub(start)
		if at < begin {
			t.Errorf("before it began: %s", f.GetSummary())
		}
		if f.GetConfidence() < link.DefaultMinConfidence {
			continue
		}
		if at-last > most {
			t.Errorf("nothing is said from %s to %s", last, at)
		}
		last, most = at, 70*time.Minute
	}
	if end-last > most {
		t.Errorf("nothing is said from %s on", last)
	}
}

func TestAFarmOfACountryThatComesNowAndThenIsFound(t *testing.T) {
	r := random(t)
	hits := people(r, 0, 6*day, 0.5)
	for i := range hits { // one in twelve is of the farm's country
		hits[i].country = "DE"
		if r.IntN(12) == 0 {
			hits[i].country = "VN"
		}
	}
	begin, length := 5*day+9*time.Hour, 6*time.Hour
	for at := begin; at < begin+length; at += time.Duration(r.ExpFloat64() * float64(20*time.Second)) {
		h := person(r, at)
		h.affiliate, h.country = 30, "VN"
		hits = append(hits, h)
	}
	accusedUntil(t, find(t, hits), "affiliate aff-30", begin, begin+length)
}

func TestACountryOfTheEveningIsNotForeignAtNight(t *testing.T) {
	var d CountrySettings
	d.setDefaults()
	var w countries
	for day := range uint32(3) {
		for hour := range uint32(24) {
			for i := range 40 {
				code := uint16('C'<<8 | 'Z')
				if hour >= 18 && i < 4 { // a tenth of them
					code = 'G'<<8 | 'B'
				}
				w.add(&d, code)
			}
			w.learn(false, 1, 24*day+hour, make([]bin, bins))
		}
	}
	if w.add(&d, 'G'<<8|'B') || !w.add(&d, 'V'<<8|'N') {
		t.Error("what came all evening would be new at midnight")
	}
}

func TestForeignClicksThatComeEachDayAtTheSameHourAreUsualThen(t *testing.T) {
	var d CountrySettings
	d.setDefaults()
	hour := func(a *affiliate, h uint32, foreign, n uint16, accused bool) bool {
		a.hour = h
		for i := range uint32(6) {
			a.bins[(h*6+i)%bins] = bin{n: n, foreign: foreign}
		}
		return a.foreignHour(&d, accused)
	}
	for _, accused := range []bool{false, true} {
		a := &affiliate{}
		for day := range uint32(5) {
			if odd := hour(a, 24*day+17, 12, 22, accused); odd != (accused || day < 2) {
				t.Errorf("day %d, accused is %v: odd is %v", day, accused, odd)
			}
		}
		if !hour(a, 24*5+18, 12, 22, accused) {
			t.Error("an hour that had none is not odd")
		}
	}
}

// The law is that of videos; what fades by another one, to a half within an hour, is no
// farm either.
func TestClicksThatFadeByAnotherLawDoNotLast(t *testing.T) {
	half := func(bins float64) func(i float64) float64 {
		return func(i float64) float64 { return math.Exp2(-i / bins) }
	}
	power := func(exponent, tau float64) func(i float64) float64 {
		return func(i float64) float64 { return math.Pow(1+i/tau, -exponent) }
	}
	for _, c := range []struct {
		name  string
		rate  func(bin float64) float64
		lasts bool
	}{
		{"half of it in 20 minutes", half(2), false},
		{"half of it in an hour", half(6), false},
		{"a slower power, at once", power(1, 1), false},
		{"a slower power", power(1.2, 3), false},
		{"a faster power", power(2, 3), false},
		{"half of it in four hours", half(24), true},
		{"an even rate", half(math.Inf(1)), true},
	} {
		for _, n := range []int{12, 18, bins} {
			x, all := make([]float64, n), 0.0
			for i := range x {
				x[i] = c.rate(float64(i))
				all += x[i]
			}
			for i := range x {
				x[i] *= 1000 / all
			}
			if bits := evenToFading(x, make([]float64, n), 0); bits > lastingBits != c.lasts {
				t.Errorf("%s, seen for %d minutes: %.0f bits that it lasts", c.name, 10*n, bits)
			}
		}
	}
}
