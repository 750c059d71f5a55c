package traffic

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// addHonest adds everything that is no attack. Events are spread over baseline
// and the days of attacks alike.
func (t *Traffic) addHonest() {
	t.sources = append(t.sources, newCrowd(t))
	perDay := func(n float64) int {
		return int(n * float64(t.End()-t.begin()) / float64(day))
	}
	for i := range min(6, max(1, t.Config.Affiliates/20)) {
		t.sources = append(t.sources, newOffice(t, i), newGateway(t, i))
	}
	for i := range robots {
		t.sources = append(t.sources, newCrawler(t, i, robots[i], scale(t.rand("crawler", i), 20, 120)))
	}
	for i := range 4 {
		c := newCrawler(t, len(robots)+i, monitor, 60)
		c.link = int32(c.r.IntN(len(t.Shop.Links)))
		t.sources = append(t.sources, c)
	}
	for i := range perDay(3) {
		t.addViral(i)
	}
	for i := range perDay(5) {
		t.addNewsletter(i)
	}
}

// dayCurve is the clicks of each hour of local time: a night at a fifth of the
// mean and a peak at 20 to 22 h of 1.6 times it, as access networks and content
// networks publish them (DE-CIX; Cloudflare Radar, HTTP requests by hour).
var dayCurve = [24]float64{.62, .40, .28, .22, .21, .25, .38, .58, .78, .92, 1.02, 1.08, 1.13, 1.12, 1.10, 1.12, 1.16, 1.22, 1.34, 1.50, 1.60, 1.58, 1.36, 1.00}

// weekend is later in the morning, and a little less in all.
var weekend = [24]float64{.80, .55, .38, .28, .22, .20, .24, .34, .55, .82, 1.05, 1.15, 1.15, 1.12, 1.10, 1.10, 1.12, 1.16, 1.25, 1.38, 1.45, 1.40, 1.20, .95}

// activity is how many times the mean people of a country click at a moment.
func (c *country) activity(at int64) float64 {
	local := time.UnixMicro(at + int64(c.zone)*hour).UTC()
	curve := &dayCurve
	if d := local.Weekday(); d == time.Saturday || d == time.Sunday {
		curve = &weekend
	}
	h, part := local.Hour(), float64(local.Minute())/60
	return curve[h]*(1-part) + curve[(h+1)%24]*part
}

const mostActivity = 1.6

// crowd is people: visits come by chance (a Poisson process whose rate follows
// hours and countries, and varies by the hour and affiliate beyond that by a
// log-normal factor of sigma 0.2: counts of real sites scatter more than
// Poisson's).
type crowd struct {
	t        *Traffic
	r        *rand.Rand
	perHour  float64 // visits, where activity is 1
	byAff    weights
	regulars [][]visitor
}

// clicksPerVisit is the mean of visit.
const clicksPerVisit = 1.4

func newCrowd(t *Traffic) *crowd {
	return &crowd{
		t: t, r: t.rand("crowd", 0), perHour: t.Config.Rate * 3600 / clicksPerVisit,
		// Popularity of affiliates, see zipf; the largest of 300 has 9 % of the clicks.
		byAff:    newWeights(zipf(t.Config.Affiliates, .8)),
		regulars: make([][]visitor, t.Config.Affiliates),
	}
}

// mostMood bounds mood.
const mostMood = 1.8

// mood is the factor of an affiliate's hour: the same for all its visits.
func (w *crowd) mood(a int, at int64) float64 {
	h := uint64(at/hour)*0x9e3779b97f4a7c15 + uint64(a)*0xbf58476d1ce4e5b9 + w.t.Config.Seed
	r := rand.New(rand.NewPCG(h, 3))
	return min(mostMood, math.Exp(.2*r.NormFloat64()-.02))
}

func (w *crowd) emit(from, to int64, add func(Click)) {
	most := w.perHour * float64(to-from) / float64(hour) * mostActivity * mostMood
	moods := make([]float64, w.t.Config.Affiliates)
	for a := range moods {
		moods[a] = w.mood(a, from)
	}
	for range poisson(w.r, most) {
		a := w.byAff.pick(w.r)
		aff := &w.t.Shop.Affiliates[a]
		c := w.t.world.countries[aff.countries.pick(w.r)]
		at := from + w.r.Int64N(to-from)
		if w.r.Float64()*mostActivity*mostMood < c.activity(at)*moods[a] {
			w.visit(a, aff, c, at, add)
		}
	}
}

// visit is a session: 1.35 clicks on average (geometric), with log-normal times
// between them (median 25 s, sigma 1.2: Barford and Crovella, SIGMETRICS 1998,
// found such off-times), and one click in 25 done twice within a second. One
// visitor in six has been there before.
func (w *crowd) visit(a int, aff *Affiliate, c *country, at int64, add func(Click)) {
	r := w.r
	var v visitor
	if old := w.regulars[a]; len(old) > 0 && r.IntN(6) == 0 {
		v = old[r.IntN(len(old))]
	} else {
		v = aff.visitor(r, c)
		if len(old) < 64 {
			w.regulars[a] = append(old, v)
		} else {
			old[r.IntN(64)] = v
		}
	}
	referrer, link := aff.referrer(r), aff.link(r)
	for {
		click := w.t.Shop.click(&v, at, link, referrer)
		add(click)
		if r.IntN(25) == 0 {
			click.Time += seconds(between(r, .15, 1.2))
			add(click)
		}
		if r.IntN(150) == 0 {
			w.t.share(r, link, at, add)
		}
		if r.Float64() >= .26 {
			return
		}
		at += seconds(logNormal(r, 25, 1.2))
		for before, tries := link, 0; link == before && tries < 5; tries++ { // the next one is another, if there is one
			link = aff.link(r)
		}
	}
}

// share is one who shares a link: one to four previews within ten seconds, as
// the services fetch them again for each group and device.
func (t *Traffic) share(r *rand.Rand, link int32, at int64, add func(Click)) {
	service := r.IntN(len(previewers))
	h := &t.world.hosters[service]
	for range whole(r, 1, 4) {
		c := Click{
			Time: at + seconds(between(r, .3, 10)), Link: link, Affiliate: t.Shop.Links[link].Affiliate, Class: Preview, Instance: -1,
			Address: h.host(r.IntN(h.nets), whole(r, 1, 250)), Country: "US", ASN: h.asn, Agent: previewers[service],
			head: r.IntN(6) == 0, datacenter: h.known,
		}
		add(c)
	}
}

// office is a firm behind one address: 100 to 800 people, two thirds of them with
// the same browser, who click from 8 to 18 h on working days, on links of all
// affiliates of their country, 40 to 250 an hour. On one day a mail goes round.
type office struct {
	t       *Traffic
	r       *rand.Rand
	staff   []visitor
	perHour float64
	mail    int64
	byAff   weights
}

func newOffice(t *Traffic, i int) *office {
	r := t.rand("office", i)
	c := t.world.countries[t.world.byShare.pick(r)]
	l := c.home(r)
	for l.address.Is6() { // with IPv6, everybody has an address
		l = c.home(r)
	}
	image := desktop(r)
	o := &office{t: t, r: r, perHour: scale(r, 40, 250), byAff: newWeights(zipf(t.Config.Affiliates, .8))}
	for range int(scale(r, 100, 800)) {
		v := person(r, l)
		if r.IntN(3) > 0 {
			v.agent = image
		}
		o.staff = append(o.staff, v)
	}
	days := (t.End() - t.begin()) / day
	o.mail = t.begin() + r.Int64N(max(1, days))*day + int64(9-c.zone)*hour + r.Int64N(4*hour)
	return o
}

func (o *office) emit(from, to int64, add func(Click)) {
	click := func(at int64, link int32) {
		v := &o.staff[o.r.IntN(len(o.staff))]
		c := o.t.Shop.click(v, at, link, o.t.Shop.Affiliates[o.t.Shop.Links[link].Affiliate].referrer(o.r))
		c.Class = NAT
		add(c)
	}
	zone := int64(o.staff[0].country.zone) * hour
	for range poisson(o.r, o.perHour*float64(to-from)/float64(hour)) {
		at := from + o.r.Int64N(to-from)
		local := time.UnixMicro(at + zone).UTC()
		if h, d := local.Hour(), local.Weekday(); h >= 8 && h < 18 && d != time.Saturday && d != time.Sunday {
			click(at, o.t.Shop.Affiliates[o.byAff.pick(o.r)].link(o.r))
		}
	}
	if o.mail >= from && o.mail < to { // 15 to 40 colleagues look at one link within ten minutes
		link := int32(o.r.IntN(len(o.t.Shop.Links)))
		for range whole(o.r, 15, 40) {
			click(o.mail+wait(o.r, float64(4*minute)), link)
		}
	}
}

// gateway is an address of carrier-grade NAT with thousands of phones behind it,
// the only one of a small provider: 60 to 400 clicks an hour at the mean, each of
// another person.
type gateway struct {
	t       *Traffic
	r       *rand.Rand
	line    line
	perHour float64
	byAff   weights
}

func newGateway(t *Traffic, i int) *gateway {
	r := t.rand("gateway", i)
	c := t.world.countries[t.world.byShare.pick(r)]
	p := c.isps[len(c.isps)-1]
	return &gateway{
		t, r,
		line{addr4(p.v4 + uint32(p.blocks-1)<<16 + uint32(240+i)), c, p.asn, true},
		scale(r, 60, 400),
		newWeights(zipf(t.Config.Affiliates, .8)),
	}
}

func (g *gateway) emit(from, to int64, add func(Click)) {
	for range poisson(g.r, g.perHour*mostActivity*float64(to-from)/float64(hour)) {
		at := from + g.r.Int64N(to-from)
		if g.r.Float64()*mostActivity >= g.line.country.activity(at) {
			continue
		}
		aff := &g.t.Shop.Affiliates[g.byAff.pick(g.r)]
		v := person(g.r, g.line)
		c := g.t.Shop.click(&v, at, aff.link(g.r), aff.referrer(g.r))
		c.Class = NAT
		add(c)
	}
}

// crawler goes over all links, day and night, from a network of its own. The
// monitor asks for one link, by the clock.
type crawler struct {
	t       *Traffic
	r       *rand.Rand
	agent   string
	host    hoster
	gap     float64 // s
	link    int32   // -1: all
	next    int64
	address int
}

func newCrawler(t *Traffic, i int, agent string, gap float64) *crawler {
	r := t.rand("robot", i)
	h := t.world.hosters[len(previewers)+i] // 19 at most
	return &crawler{t, r, agent, h, gap, -1, t.begin() + r.Int64N(minute), whole(r, 1, 250)}
}

func (w *crawler) emit(_, to int64, add func(Click)) {
	for ; w.next < to; w.next += seconds(w.gap) {
		link, at, host := w.link, w.next, w.address
		if link < 0 {
			link, host = int32(w.r.IntN(len(w.t.Shop.Links))), whole(w.r, 1, 60)
			at += wait(w.r, w.gap*float64(second))
		}
		add(Click{
			Time: at, Link: link, Affiliate: w.t.Shop.Links[link].Affiliate, Class: Crawler, Instance: -1,
			Address: w.host.host(0, host), Country: "US", ASN: w.host.asn, Agent: w.agent, datacenter: w.host.known,
		})
	}
}

// addViral adds a link that goes viral: 2,000 to 10,000 people, half of them within
// an hour, 85 % of them of one country, eight in ten on a phone, six in ten in an app's
// browser. The rate rises within 2 to 6 minutes and then falls as (1 + t/tau)^-1.4
// with tau of 10 to 25 minutes: the relaxation after a shock from outside that
// Crane and Sornette found for videos (PNAS 2008). Each hundredth shares it on.
func (t *Traffic) addViral(i int) {
	r := t.rand("viral", i)
	link := int32(r.IntN(len(t.Shop.Links)))
	aff := t.Shop.Links[link].Affiliate
	at := t.begin() + r.Int64N(t.End()-t.begin())
	people, rise, tau := int(scale(r, 2000, 10_000)), between(r, 2, 6), between(r, 10, 25)
	home := t.Shop.Affiliates[aff].home
	if r.IntN(3) == 0 {
		home = t.world.countries[t.world.byShare.pick(r)] // not where the affiliate's visitors are
	}
	networks := []string{pick(r, socials), pick(r, socials), ""}
	t.instance(Instance{Viral, aff, at, fmt.Sprintf("%d people of %s", people, home.code)}, func(add func(Click)) {
		for range 3 {
			t.share(r, link, at, add)
		}
		for range people {
			c := home
			if r.Float64() >= .85 {
				c = t.world.countries[t.world.byShare.pick(r)]
			}
			l := c.visitor(r)
			for !l.mobile && r.Float64() < .5 {
				l = c.visitor(r)
			}
			v := person(r, l)
			if l.mobile && r.Float64() < .75 {
				v.agent = inApp(r, c)
			}
			after := between(r, 0, rise)
			if r.Float64() < .9 {
				// 1 - (1 + t/tau)^-0.4 of those behind the rise have come by t.
				after = rise + tau*(math.Pow(1-.66*r.Float64(), -1/.4)-1)
			}
			when := at + int64(after*float64(minute))
			click := t.Shop.click(&v, when, link, networks[min(r.IntN(3), r.IntN(3))])
			add(click)
			if r.IntN(100) == 0 {
				t.share(r, link, when, add)
			}
		}
	})
}

// addNewsletter adds a mail: 500 to 3,000 people follow one to four of the
// affiliate's links without a referrer, half of them within an hour (exponential).
// One in twelve clicks is the scanner of a mail provider, which follows the
// links from a data centre as it delivers the mail.
func (t *Traffic) addNewsletter(i int) {
	r := t.rand("newsletter", i)
	id := r.IntN(len(t.Shop.Affiliates))
	aff := &t.Shop.Affiliates[id]
	at := t.begin() + r.Int64N(max(1, (t.End()-t.begin())/day))*day + int64(whole(r, 7, 17)-aff.home.zone)*hour
	people := int(scale(r, 500, 3000))
	links := make([]int32, whole(r, 1, 4))
	for j := range links {
		links[j] = aff.link(r)
	}
	h := &t.world.hosters[ofScanners]
	t.instance(Instance{Newsletter, int32(id), at, fmt.Sprintf("%d people", people)}, func(add func(Click)) {
		for range people {
			v := aff.visitor(r, t.world.countries[aff.countries.pick(r)])
			c := t.Shop.click(&v, at+wait(r, 87*float64(minute)), links[min(r.IntN(len(links)), r.IntN(len(links)))], "")
			if r.IntN(12) == 0 {
				c.Time = at + wait(r, float64(4*minute))
				c.Address, c.Country, c.ASN, c.datacenter = h.host(r.IntN(h.nets), whole(r, 1, 250)), "IE", h.asn, h.known
				c.Agent, c.Languages = desktop(r), ""
			}
			add(c)
		}
	})
}
