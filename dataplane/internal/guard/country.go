package guard

import (
	"fmt"
	"math"
)

// CountrySettings are of the detector of a sudden change of an affiliate's mix of
// countries.
//
// The mix of an hour is compared with that of the days before by the divergence of
// Jensen and Shannon (Lin, 1991), and by the share of foreign clicks: those from
// countries that the affiliate hardly ever has, and from one that it has now and then
// and has several times as often now. They must be there over nearly each ten minutes
// of an hour, and at most two fifths of them in any: the scanners of a mail come with
// it.
//
// A link that goes viral can bring another country, too, but what goes viral fades,
// where a farm goes on. Nothing is said before there is enough evidence that the
// foreign clicks do not fade: see lasting.
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
	// What is usual of foreign clicks at each hour of the day, and the share that they
	// had then on the last days, of which each counts twice the one before it.
	hours [24]struct{ of, foreign, again float32 }
	// The class of a country that is foreign because it has risen, and 1; 0: none has.
	risen uint16
}

const (
	usualWeight = 16
	// risenTimes its usual share is what a country has that has risen, of at least
	// risenClicks.
	risenTimes  = 3
	risenClicks = 40
	// countryMemory is how many clicks what is usual rests on.
	countryMemory = 4000
	// countryHour is how many clicks what is usual at an hour of the day rests on.
	countryHour = 2000
)

// foreign is the share of foreign clicks that is usual at an hour of the day; where
// little is known of that hour, half more than over the whole day. A country that has
// risen is foreign with all its clicks.
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
	if w.risen > 0 {
		most, _ := w.most(int(w.risen) - 1)
		share += most
	}
	return min(1, share)
}

func countryClass(code uint16) int {
	return int((uint32(code>>8)*26 + uint32(code&0xff)) % 251)
}

// add counts a click, and says whether its country is foreign.
func (w *countries) add(d *CountrySettings, code uint16) bool {
	if code == 0 {
		return false
	}
	c := countryClass(code)
	count(&w.now[c])
	return w.risen == uint16(c)+1 || w.rare(c, d.Foreign)
}

// rare says that a class is less than a share of the usual clicks in each quarter of
// the day: otherwise what has come for hours would be foreign from one moment on, as
// if it had begun then.
func (w *countries) rare(c int, share float64) bool {
	most, ok := w.most(c)
	return ok && most < share
}

// most is the largest share that a class has of the usual clicks, in any quarter of
// the day of which enough is known, or where there is none, of the whole day.
func (w *countries) most(c int) (share float64, ok bool) {
	for q := range uint32(4) {
		if n, of := w.usual(c, 6*q); of > 0 {
			share, ok = max(share, n/of), true
		}
	}
	return share, ok
}

// watch looks for a country that has risen: it comes too often to be foreign, but has
// a large part of the clicks of this hour and the one before, and several times its
// usual share. It is foreign until it has less than half of that.
func (w *countries) watch(d *CountrySettings) {
	sum, top := 0.0, 0
	n := func(c int) float64 { return float64(w.now[c]) + float64(w.past[c]) }
	for c := range w.now {
		sum += n(c)
		if n(c) > n(top) {
			top = c
		}
	}
	if w.risen > 0 {
		top = int(w.risen) - 1
	}
	most, ok := w.most(top)
	least := max(d.Share, risenTimes*most) * sum
	switch {
	case w.risen > 0 && n(top) < least/2:
		w.risen = 0
	case w.risen == 0 && ok && sum >= risenClicks && n(top) >= least:
		w.risen = uint16(top) + 1
	}
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
	a.where.watch(d)
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
	if share < least || bits < d.Divergence || !a.spread() || a.lasting(usual) < enough(top) {
		return v
	}
	v.begin, v.clicks = a.lastHour(), uint64(n)
	v.confidence = 1 - 0.04*d.Share/share
	v.summary = fmt.Sprintf("got %d clicks in an hour of which %s are from countries that it hardly ever has, where %s are usual at this time of the day: the mix differs from the usual by %.2f bits", n, percent(share), percent(usual), bits)
	v.figures = append(v.figures, figure("foreign_share", share, usual, least), figure("divergence_bits", bits, 0, d.Divergence))
	return v
}

// foreignHour says that so many clicks of the hour that ends are foreign that a farm
// may have begun in it: it must not be learned as if it were usual. Where they were
// as many at the same hour of the days before, they are: that hour's own country
// sleeps, or what is believed to be usual is not. Else only hours that happen to have
// few foreign clicks would be learned.
func (a *affiliate) foreignHour(d *CountrySettings, accused bool) bool {
	n, foreign := 0, 0
	for i := range uint32(6) {
		b := a.bins[(a.hour*6+i)%bins]
		n += int(b.n)
		foreign += int(b.foreign)
	}
	share, again := float64(foreign)/float64(max(1, n)), &a.where.hours[a.hour%24].again
	odd := foreign >= fewForeign && share >= d.Share && share > float64(*again)+0.15
	if n >= 10 && !accused {
		*again += (float32(share) - *again) / 2
	}
	return odd
}

// spread says that this hour's clicks come from many networks: a gateway of another
// country is one.
func (a *affiliate) spread() bool {
	n := float64(a.window.n)
	return n >= 20 && a.window.peers.count() >= min(0.5*n, 60)
}

// fewForeign are too few clicks in an hour to say that a farm may have begun.
const fewForeign = 20

// lastHour is where the last six bins begin, in µs.
func (a *affiliate) lastHour() int64 { return int64(a.bin-5) * binSeconds * 1e6 }
