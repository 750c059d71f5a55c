package guard

import (
	"fmt"
	"math"
	"slices"
)

// CountrySettings are of the detector of a sudden change of an affiliate's mix of
// countries.
//
// The mix of an hour is compared with that of the days before by the divergence of
// Jensen and Shannon (Lin, 1991), and by the share of clicks from countries that
// the affiliate hardly ever has. Both must be there over nearly each ten minutes
// of an hour.
//
// A link that goes viral can bring another country, too: then most clicks are on
// one link and from one country, and there are many times the usual. That is not
// said here.
//
// Confidence: 0.96 at the least share of foreign clicks; the doubt falls as that
// share rises.
type CountrySettings struct {
	// Clicks in an hour, the share of foreign ones, and the divergence in bits.
	// Default: 50, 0.3, 0.12.
	Clicks     int
	Share      float64
	Divergence float64
	// Up to which share of the usual clicks a country is foreign. Default: 0.03.
	Foreign float64
}

func (d *CountrySettings) setDefaults() {
	setDefault(&d.Clicks, 50)
	setDefault(&d.Share, 0.3)
	setDefault(&d.Divergence, 0.12)
	setDefault(&d.Foreign, 0.03)
}

const (
	countryClasses = 256
	// countryBase is from how many clicks on it is known what is usual.
	countryBase = 150
	// countryDays is how long an affiliate must be known, in µs: each hour of the
	// day has its own mix.
	countryDays = 3 * 24 * 3600 * 1_000_000
	// countryKnown is how many clicks must be known of an hour of the day.
	countryKnown = 60
)

// countries is an affiliate's mix: of this hour, of the one before, and what is
// usual, where an hour counts sixteen times, and one that is out of the usual once.
type countries struct {
	now, past [countryClasses]uint16
	// By quarters of the day: where an affiliate's own country sleeps, the rest of
	// the world does not.
	base  [4][countryClasses]uint16
	total [4]uint32
	// What is usual of foreign clicks at each hour of the day.
	hours [24]struct{ of, foreign float32 }
}

const (
	usualWeight = 16
	// countryMemory is how many clicks what is usual rests on.
	countryMemory = 4000
	// countryHour is how many clicks what is usual at an hour of the day rests on.
	countryHour = 2000
)

// foreign is the share of foreign clicks that is usual at an hour of the day;
// where little is known of that hour, half more than over the whole day.
func (w *countries) foreign(hour uint32) (share float64) {
	sum := func(from, to uint32) (of, foreign float64) {
		for h := from; h <= to; h++ {
			of += float64(w.hours[h%24].of)
			foreign += float64(w.hours[h%24].foreign)
		}
		return of, foreign
	}
	of, foreign := sum(hour+23, hour+25)
	share = (foreign + 1) / (of + 10)
	if of < countryKnown {
		of, foreign = sum(0, 23)
		share = max(share, 1.5*(foreign+1)/(of+10))
	}
	return min(1, share)
}

func countryClass(code uint16) int {
	return int((uint32(code>>8)*26 + uint32(code&0xff)) % 251)
}

// add counts a click, and says whether its country is foreign.
func (w *countries) add(d *CountrySettings, code uint16, hour uint32) bool {
	if code == 0 {
		return false
	}
	c := countryClass(code)
	count(&w.now[c])
	if n, of := w.usual(c, hour); of == 0 || n >= d.Foreign*of {
		return false
	}
	return true
}

// usual is how many clicks of a class there are of how many that count for an
// hour of the day: those of its quarter, or where these are few, all. 0 of 0 when
// all are few.
func (w *countries) usual(c int, hour uint32) (n, of float64) {
	if q := hour % 24 / 6; w.total[q] >= usualWeight*countryKnown {
		return float64(w.base[q][c]), float64(w.total[q])
	}
	for q := range w.base {
		n += float64(w.base[q][c])
		of += float64(w.total[q])
	}
	if of < usualWeight*countryBase {
		return 0, 0
	}
	return n, of
}

// learn ends an hour. One that is out of the usual counts once, with the weight
// that is given: however many clicks it has, no more than usual. Otherwise what
// goes on for two hours at many times the usual rate would be usual.
func (w *countries) learn(odd bool, oddWeight float64, hour uint32, last []bin) {
	if _, of := w.usual(0, hour); of > 0 {
		part, h := float32(1), &w.hours[hour%24]
		if odd {
			part = float32(oddWeight) / usualWeight
		}
		for i := range uint32(6) {
			b := last[(hour*6+i)%bins]
			h.of += part * float32(b.n)
			h.foreign += part * float32(b.foreign)
		}
		if h.of > countryHour {
			h.of, h.foreign = countryHour, h.foreign*countryHour/h.of
		}
	}
	weight := float64(usualWeight)
	if odd {
		weight = oddWeight
	}
	q := hour % 24 / 6
	for c, n := range w.now {
		w.base[q][c] = uint16(min(float64(w.base[q][c])+float64(n)*weight, 1<<16-1))
	}
	sum := func() (total uint32) {
		for _, n := range w.base[q] {
			total += uint32(n)
		}
		return total
	}
	if w.total[q] = sum(); w.total[q] > usualWeight*countryMemory {
		for c := range w.base[q] {
			w.base[q][c] /= 2
		}
		w.total[q] = sum()
	}
	w.past, w.now = w.now, [countryClasses]uint16{}
}

// divergence is that of Jensen and Shannon between the last hours and what is
// usual, in bits; top is the share of the first country in the last hours.
func (w *countries) divergence(hour uint32) (bits, top float64) {
	sum, most := 0.0, 0.0
	for c := range w.now {
		n := float64(w.now[c]) + float64(w.past[c])
		sum += n
		most = max(most, n)
	}
	if _, of := w.usual(0, hour); sum == 0 || of == 0 {
		return 0, 0
	}
	for c := range w.now {
		n, of := w.usual(c, hour)
		p, q := (float64(w.now[c])+float64(w.past[c]))/sum, n/of
		m := (p + q) / 2
		if p > 0 {
			bits += p / 2 * math.Log2(p/m)
		}
		if q > 0 {
			bits += q / 2 * math.Log2(q/m)
		}
	}
	return bits, most / sum
}

// affiliate judges the last hour.
func (d *CountrySettings) affiliate(a *affiliate) (v verdict) {
	hour := a.bin / 6
	if _, of := a.where.usual(0, hour); of == 0 || int64(a.bin)*binSeconds*1e6 < a.first+countryDays {
		return v
	}
	n, foreign, high, judged := 0, 0, 0, 0
	for j := range uint32(6) {
		b := a.bins[(a.bin-j)%bins]
		n += int(b.n)
		foreign += int(b.foreign)
		if b.n >= 4 {
			judged++
			if float64(b.foreign) >= 0.5*d.Share*float64(b.n) {
				high++
			}
		}
	}
	if n < d.Clicks || judged < 5 || high < judged-1 || high < 5 {
		return v
	}
	share := float64(foreign) / float64(n)
	bits, top := a.where.divergence(hour)
	usual := a.where.foreign(hour)
	// Six standard deviations, and by a third: mails bring foreign clicks while an
	// affiliate's own country sleeps.
	least := max(d.Share, usual+0.33, usual+6*math.Sqrt(usual*(1-usual)/float64(n)))
	if share < least || bits < d.Divergence || a.viral(top) || !a.spread() {
		return v
	}
	v.begin, v.clicks = a.lastHour(), uint64(n)
	v.confidence = 1 - 0.04*d.Share/share
	v.summary = fmt.Sprintf("got %d clicks in an hour of which %s are from countries that it hardly ever has, where %s are usual at this time of the day: the mix differs from the usual by %.2f bits", n, percent(share), percent(usual), bits)
	v.figures = append(v.figures, figure("foreign_share", share, usual, least), figure("divergence_bits", bits, 0, d.Divergence))
	return v
}

// viral says that what is new may be a link that has gone viral: most clicks are
// on one link and from one country, which is not how it usually is, or they are
// many times the usual. Such a link is visited for hours.
func (a *affiliate) viral(topCountry float64) bool {
	link, n := a.linkBefore, a.nBefore
	if a.window.n >= 30 {
		link = float32(a.window.link.share(a.window.n))
	}
	n = max(n, a.window.n)
	if topCountry < 0.6 || link < 0.7 || a.steady() {
		return false
	}
	median := 0.0
	if usual := a.usual(a.bin / 6); len(usual) > 0 {
		median, _ = robust(usual)
	}
	switch {
	case float64(n) > 5*6*median+30:
		a.viralUntil = (a.bin + viralBins) * binSeconds
		return true
	case a.bin*binSeconds < a.viralUntil:
		return true
	}
	return link > a.linkUsual+0.2
}

// spread says that this hour's clicks come from many networks: a gateway of another
// country is one.
func (a *affiliate) spread() bool {
	n := float64(a.window.n)
	return n >= 20 && a.window.peers.count() >= min(0.5*n, 60)
}

// steady says that clicks have come evenly for five hours. What goes viral does
// not: its rate falls with a power of the time (Crane and Sornette, PNAS 2008, with
// exponents above 1), so that of any hour a third is left four hours later; what is
// usual in the morning grows meanwhile. A farm that clicks for an affiliate with one link goes on.
func (a *affiliate) steady() bool {
	var last [5]float64
	for i := range last {
		h := a.hour - 1 - uint32(i)
		last[i] = float64(a.weeks[h%hoursOfWeek][h/hoursOfWeek%weeksKept]) - 1
	}
	least := slices.Min(last[:])
	return least >= steadyClicks && least >= 0.75*slices.Max(last[:])
}

// steadyClicks are the least of an hour by which that can be said.
const steadyClicks = 100

// viralBins is for how long a link is visited that has gone viral.
const viralBins = 36

// lastHour is where the last six bins begin, in µs.
func (a *affiliate) lastHour() int64 { return int64(a.bin-5) * binSeconds * 1e6 }
