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
// the affiliate hardly ever has. These must be there over nearly each ten minutes
// of an hour, and at most two fifths of them in any: the scanners of a mail come
// with it.
//
// A link that goes viral can bring another country, too: then most clicks are on
// one link and from one country, and there are many times the usual; and what goes
// viral fades, by half within the hour, where a farm goes on. That is not said
// here.
//
// Confidence: 0.96 at the least share of foreign clicks; the doubt falls as that
// share rises.
type CountrySettings struct {
	// Clicks in an hour, the share of foreign ones, and the divergence in bits.
	// Default: 100, 0.3, 0.12.
	Clicks     int
	Share      float64
	Divergence float64
	// Up to which share of the usual clicks a country is foreign. Default: 0.05.
	Foreign float64
}

func (d *CountrySettings) setDefaults() {
	setDefault(&d.Clicks, 100)
	setDefault(&d.Share, 0.3)
	setDefault(&d.Divergence, 0.12)
	setDefault(&d.Foreign, 0.05)
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
// usual, in bits, less what two samples of the same mix would differ by: for k
// classes, (k-1)(1/n+1/m)/(8 ln 2). top is the share of the first country in the
// last hours.
func (w *countries) divergence(hour uint32) (bits, top float64) {
	sum, most, classes := 0.0, 0.0, 0
	for c := range w.now {
		n := float64(w.now[c]) + float64(w.past[c])
		sum += n
		most = max(most, n)
		if u, _ := w.usual(c, hour); n+u > 0 {
			classes++
		}
	}
	_, of := w.usual(0, hour)
	if sum == 0 || of == 0 {
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
	bits -= float64(classes-1) * (1/sum + usualWeight/of) / (8 * math.Ln2)
	return max(0, bits), most / sum
}

// affiliate judges the last hour.
func (d *CountrySettings) affiliate(a *affiliate) (v verdict) {
	a.watchFading()
	hour := a.bin / 6
	if _, of := a.where.usual(0, hour); of == 0 || int64(a.bin)*binSeconds*1e6 < a.first+countryDays {
		return v
	}
	n, foreign, high, judged, most := 0, 0, 0, 0, 0
	for j := range uint32(6) {
		b := a.bins[(a.bin-j)%bins]
		n += int(b.n)
		foreign += int(b.foreign)
		most = max(most, int(b.foreign))
		if b.n >= 4 {
			judged++
			if float64(b.foreign) >= 0.5*d.Share*float64(b.n) {
				high++
			}
		}
	}
	if n < d.Clicks || judged < 5 || high < judged-1 || high < 5 || 5*most > 2*foreign {
		return v
	}
	share := float64(foreign) / float64(n)
	bits, top := a.where.divergence(hour)
	usual := a.where.foreign(hour)
	// Six standard deviations, and by a third: mails bring foreign clicks while an
	// affiliate's own country sleeps.
	least := max(d.Share, usual+0.33, usual+6*math.Sqrt(usual*(1-usual)/float64(n)))
	if share < least || bits < d.Divergence || !a.spread() {
		return v
	}
	if a.viral(top) || a.faded() {
		return v
	}
	v.begin, v.clicks = a.lastHour(), uint64(n)
	v.confidence = 1 - 0.04*d.Share/share
	v.summary = fmt.Sprintf("got %d clicks in an hour of which %s are from countries that it hardly ever has, where %s are usual at this time of the day: the mix differs from the usual by %.2f bits", n, percent(share), percent(usual), bits)
	v.figures = append(v.figures, figure("foreign_share", share, usual, least), figure("divergence_bits", bits, 0, d.Divergence))
	return v
}

// foreignHour says that so many clicks of the hour that ends are foreign that a farm
// may have begun in it: it must not be learned as if it were usual.
func (a *affiliate) foreignHour(d *CountrySettings) bool {
	n, foreign := 0, 0
	for i := range uint32(6) {
		b := a.bins[(a.hour*6+i)%bins]
		n += int(b.n)
		foreign += int(b.foreign)
	}
	return foreign >= fewForeign && float64(foreign) >= d.Share*float64(n)
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
	if topCountry < 0.6 || link < 0.7 || a.lasting() {
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

// halves are the foreign clicks of the last four half hours, the last one first.
func (a *affiliate) halves() (n [4]float64) {
	for i := range uint32(bins) {
		n[i/3] += float64(a.bins[(a.bin-i)%bins].foreign)
	}
	return n
}

// watchFading says for hours of foreign clicks that they are what is left of a link
// that has gone viral, once those of the last half hour are fewer than three
// quarters of those of another one of the last two hours, by one and a half
// standard deviations, and until they rise again as clearly. The rate of what goes
// viral falls with a power of the time (Crane and Sornette, PNAS 2008, with
// exponents above 1): half is left after half an hour, a quarter after one and a
// half. A farm goes on.
func (a *affiliate) watchFading() {
	n := a.halves()
	before := slices.Max(n[1:])
	if max(n[0], before) < fewForeign {
		return
	}
	wide := 1.5 * math.Sqrt(before)
	switch {
	case n[0] > before/0.75+wide:
		a.fadedUntil = 0
	case n[0] < 0.75*before-wide, a.faded():
		a.fadedUntil = (a.bin + fadedBins) * binSeconds
	}
}

// faded says that they are what is left.
func (a *affiliate) faded() bool { return a.bin*binSeconds < a.fadedUntil }

// lasting says that foreign clicks have come evenly for two hours, and were not
// fading before.
func (a *affiliate) lasting() bool { return !a.faded() && a.even() }

// even says that foreign clicks have come evenly for two hours.
func (a *affiliate) even() bool {
	n := a.halves()
	least, most := slices.Min(n[:]), slices.Max(n[:])
	return least >= lastingClicks && least >= 0.8*most-0.5*math.Sqrt(most)
}

// fewForeign are too few in half an hour to see them fade, and lastingClicks are
// the least by which it can be said that they last.
const (
	fewForeign    = 20
	lastingClicks = 40
)

// viralBins is for how long a link is visited that has gone viral, and fadedBins
// for how long what was fading is not taken for what lasts: its tail is slow.
const (
	viralBins = 36
	fadedBins = 36
)

// lastHour is where the last six bins begin, in µs.
func (a *affiliate) lastHour() int64 { return int64(a.bin-5) * binSeconds * 1e6 }
