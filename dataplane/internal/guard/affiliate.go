package guard

import (
	"unsafe"

	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// Times, in seconds.
const (
	binSeconds  = 600
	hourSeconds = 3600
	hoursOfWeek = 168
	weeksKept   = 4
	bins        = 36
)

// oddSeconds is for how long clicks count as out of the usual after it was said
// last: it is looked at each ten minutes.
const oddSeconds = 2 * binSeconds

// bin is ten minutes of an affiliate's clicks, but those of declared robots.
type bin struct{ n, labelled, foreign uint16 }

// affiliate is one of them. It has no pointers: a checkpoint holds its bytes.
type affiliate struct {
	first int64 // µs
	bin   uint32
	bins  [bins]bin

	// Clicks of each hour of the week, in the last weeks, and one more; 0 is none.
	hour     uint32
	thisHour uint32
	weeks    [hoursOfWeek][weeksKept]uint16

	window features // of an hour
	where  countries
	labels labels

	// The share of the first link, usually.
	linkUsual float32

	words entropies
	burst bursts

	oddUntil     uint32 // seconds: entropy or countries were not as usual lately
	alikeUntil   uint32 // seconds: the entropy of clicks that are as many as a flood's was not
	foreignUntil uint32 // seconds: likewise, their countries were not
	looked       uint32
	found        [numDetectors]uint32
	taken        uint32
	samples      [sourceSamples]sample
}

// affiliates holds as many as it was made for, as table does.
type affiliates struct {
	table  table // its slots are not used
	all    []affiliate
	byHash map[uint32]int32
}

func (a *affiliates) init(slots int) {
	a.table.init(slots, true)
	a.table.slots = nil
	a.all = make([]affiliate, len(a.table.keys))
	a.byHash = make(map[uint32]int32)
}

func (a *affiliates) bytes() int64 {
	n := int64(len(a.all)) * int64(unsafe.Sizeof(affiliate{})+8+unsafe.Sizeof(meta{})+16)
	for _, s := range a.table.names {
		n += int64(len(s))
	}
	return n + int64(len(a.byHash))*16
}

// name is the id of an affiliate by the hash that features have.
func (a *affiliates) name(hash uint32) string {
	if i, ok := a.byHash[hash]; ok {
		return a.table.names[i]
	}
	return ""
}

func (a *affiliates) get(ev *event) int {
	i, isNew := a.table.find(ev.affiliate.key, uint32(ev.at/60e6))
	if isNew {
		if old := (&word{key: a.table.victim}).small(); a.table.victim != 0 && a.byHash[old] == int32(i) {
			delete(a.byHash, old)
		}
		a.all[i] = affiliate{first: ev.at}
		a.table.names[i] = string([]byte(ev.affiliate.text)) // the batch goes
		a.byHash[ev.affiliate.small()] = int32(i)
	}
	return i
}

// affiliate counts a click for its affiliate, and looks at that.
func (e *Engine) affiliate(ev *event) {
	i := e.affiliates.get(ev)
	a := &e.affiliates.all[i]
	second := uint32(ev.at / 1e6)
	if now := second / binSeconds; now > a.bin {
		if a.bin > 0 {
			e.closeBin(i, ev.at)
		}
		a.openBin(now)
	}
	if now := second / hourSeconds; now > a.hour {
		a.closeHour(now, &e.settings.Country)
	}
	if ev.robot {
		return
	}
	a.samples[sampleSlot(a.taken)] = sample{ev.boot, ev.sequence}
	a.taken++
	a.thisHour++
	b := &a.bins[a.bin%bins]
	count(&b.n)
	a.labels.n++
	if ev.labelled {
		count(&b.labelled)
		a.labels.labelled++
	}
	if a.where.add(&e.settings.Country, ev.country) {
		count(&b.foreign)
	}
	a.window.add(ev, uint32(ev.prefixKey[kindNetwork]>>32))
	if a.burst.add(&e.settings.Bursts, second) {
		e.affiliateFinding(detectBursts, i, ev.at, e.settings.Bursts.verdict(&a.burst, second))
	}
	if a.words.add(ev) {
		v := a.words.close(&e.settings.Entropy, second/hourSeconds)
		if v.confidence > 0 {
			a.oddUntil = second + oddSeconds
			if rate := float64(v.clicks) / float64(ev.at-v.begin); rate >= e.settings.Flood.Least/(binSeconds*1e6) {
				a.alikeUntil = a.oddUntil
			}
			e.affiliateFinding(detectEntropy, i, ev.at, v)
		}
		a.words.open(ev.at)
	}
	if due(&a.looked, second, 10) && float64(b.n) >= e.settings.Flood.Least {
		e.lookAffiliate(i, ev.at)
	}
}

func count(n *uint16) {
	if *n < 1<<16-1 {
		*n++
	}
}

// sampleSlot is where the next sample goes: the first half stays, the other
// turns.
func sampleSlot(taken uint32) uint32 {
	const half = sourceSamples / 2
	if taken < half {
		return taken
	}
	return half + taken%half
}

// openBin begins ten minutes, and forgets those in between.
func (a *affiliate) openBin(now uint32) {
	for i := max(a.bin+1, now-min(now, bins-1)); i <= now; i++ {
		a.bins[i%bins] = bin{}
	}
	a.bin = now
}

// closeBin looks at the last hour.
func (e *Engine) closeBin(i int, at int64) {
	a := &e.affiliates.all[i]
	if v := e.settings.Labelled.affiliate(a); v.confidence > 0 {
		e.affiliateFinding(detectLabelled, i, at, v)
	}
	if v := e.settings.Country.affiliate(a); v.confidence > 0 {
		a.oddUntil = uint32(at/1e6) + oddSeconds
		if float64(v.clicks) >= e.settings.Flood.Least*hourSeconds/binSeconds {
			a.foreignUntil = a.oddUntil
		}
		e.affiliateFinding(detectCountry, i, at, v)
	}
	e.lookAffiliate(i, at)
}

// closeHour learns what is usual.
func (a *affiliate) closeHour(now uint32, country *CountrySettings) {
	if a.hour > 0 {
		odd, weight := a.oddUntil > a.hour*hourSeconds, 1.0
		if usual := a.usual(a.hour); len(usual) >= 6 {
			median, _ := robust(usual)
			odd = odd || float64(a.thisHour) > 3*6*median+20
			weight = min(1, (6*median+1)/float64(max(1, a.thisHour)))
		}
		odd = a.foreignHour(country, a.oddUntil > a.hour*hourSeconds) || odd
		a.where.learn(odd, weight, a.hour, a.bins[:])
		a.labels.learn(odd)
		if n := a.window.n; n > 0 && !odd {
			a.linkUsual += (float32(a.window.link.share(n)) - a.linkUsual) / 16
		}
		for h := a.hour; h < now && h < a.hour+2*hoursOfWeek; h++ {
			n := uint32(0)
			if h == a.hour {
				n = a.thisHour
			}
			a.weeks[h%hoursOfWeek][h/hoursOfWeek%weeksKept] = uint16(min(n, 1<<16-2) + 1)
		}
	}
	a.hour, a.thisHour = now, 0
	a.window = features{}
}

// usual are the clicks in ten minutes of what is like this hour: the hours
// beside it in the weeks that are known; where these are few, the same hours of
// other days.
func (a *affiliate) usual(hour uint32) (values []float64) {
	add := func(h uint32) {
		for w := range a.weeks[h%hoursOfWeek] {
			if n := a.weeks[h%hoursOfWeek][w]; n > 0 {
				values = append(values, float64(n-1)/6)
			}
		}
	}
	for h := hour + hoursOfWeek - 1; h <= hour+hoursOfWeek+1; h++ {
		add(h)
	}
	if len(values) >= 6 {
		return values
	}
	for day := uint32(1); day < 7; day++ {
		for h := hour + hoursOfWeek - 1; h <= hour+hoursOfWeek+1; h++ {
			add(h + 24*day)
		}
	}
	return values
}

// lookAffiliate looks at the rate.
func (e *Engine) lookAffiliate(i int, at int64) {
	a := &e.affiliates.all[i]
	now := float64(a.bins[a.bin%bins].n)
	if now < e.settings.Flood.Least {
		return
	}
	odd := a.odd(uint32(at/1e6), now, e.settings.Country.Share) || a.scattered(e.settings.Flood.Least/2)
	why := ""
	if odd {
		why = ", and countries or user agents are not as usual"
	}
	v := e.settings.Flood.affiliate(now, a.usual(a.bin/6), odd, why)
	if v.confidence == 0 {
		return
	}
	v.begin, v.clicks = int64(a.bin)*binSeconds*1e6, uint64(now)
	e.affiliateFinding(detectFlood, i, at, v)
}

// odd says that the many clicks of this bin are what was not as usual lately. They
// need not be: beside a script that clicks now and then, and makes the affiliate's
// clicks of hours alike, a mail goes round.
func (a *affiliate) odd(second uint32, now, foreign float64) bool {
	return a.alikeUntil > second || a.foreignUntil > second && float64(a.bins[a.bin%bins].foreign) >= foreign/2*now
}

// scattered says that the many clicks of the last half hour come from other
// countries than usual, and from no country in particular: a link that goes viral
// has one, and is one, and the scanners of a mail are through by then. What is left
// of a link that has gone viral, at an affiliate with much else, is neither: it fades.
func (a *affiliate) scattered(least float64) bool {
	for j := range uint32(3) {
		if float64(a.bins[(a.bin-j)%bins].n) < least {
			return false
		}
	}
	if a.window.n >= 30 && float32(a.window.link.share(a.window.n)) > a.linkUsual+0.2 {
		return false
	}
	hour := a.bin / 6
	if a.lasting(a.where.foreign(hour)) < fadedBits {
		return false
	}
	bits, top := a.where.divergence(hour)
	return bits >= 0.18 && top < oneCountry && int64(a.bin)*binSeconds*1e6 >= a.first+countryDays
}

func (e *Engine) affiliateFinding(d detector, i int, at int64, v verdict) {
	a := &e.affiliates.all[i]
	if v.confidence == 0 || !e.again(&a.found[d], at) {
		return
	}
	name := e.affiliates.table.names[i]
	subject := &clickv1.Subject{Subject: &clickv1.Subject_Affiliate{Affiliate: name}}
	e.emit(d, subject, e.affiliates.table.keys[i], span{max(v.begin, a.first), at, v.clicks, name, 1, a.samples[:min(a.taken, sourceSamples)]}, v)
}
