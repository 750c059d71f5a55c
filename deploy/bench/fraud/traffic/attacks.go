package traffic

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// What is known of attacks is mostly how they are made, not how strong they are:
// strengths are drawn evenly over the orders of magnitude between what would
// earn something and what would be noticed without a detector. An attacker wants
// to earn, so that an attack is for one affiliate, but where something else is
// said.

// attack is one in the making.
type attack struct {
	t        *Traffic
	r        *rand.Rand
	from, to int64 // when it may begin; when it must have ended
	id       int32 // of the affiliate
	aff      *Affiliate
	perHour  float64 // the affiliate's own clicks, on average
}

// plans make the attacks of each class: they say when it begins, and what it is.
var plans = [NumClasses]func(a *attack) (begin int64, note string, clicks func(add func(Click))){
	Flood: (*attack).flood, Botnet: (*attack).botnet, CookieCut: (*attack).cookieCut, LowAndSlow: (*attack).lowAndSlow,
	Regular: (*attack).regular, Burst: (*attack).burst, ManyAgents: (*attack).manyAgents, Labelled: (*attack).labelled, CountryMix: (*attack).countryMix,
}

func (t *Traffic) addAttacks() {
	// No affiliate is attacked by two: who would have earned is then known.
	ids := t.rand("targets", 0).Perm(t.Config.Affiliates)
	sum := 0.0
	shares := zipf(t.Config.Affiliates, .8)
	for _, s := range shares {
		sum += s
	}
	n := 0
	for _, class := range Attacks() {
		if len(t.Config.Only) > 0 && !slices.Contains(t.Config.Only, class) {
			continue
		}
		for i := range t.Config.Attacks {
			id := ids[n%len(ids)]
			n++
			a := &attack{
				t: t, r: t.rand(class.String(), i), from: t.attacksFrom(), to: t.End(),
				id: int32(id), aff: &t.Shop.Affiliates[id], perHour: t.Config.Rate * 3600 * shares[id] / sum,
			}
			begin, note, clicks := plans[class](a)
			who := a.id
			if class == LowAndSlow {
				who = -1
			}
			t.instance(Instance{class, who, begin, note}, clicks)
		}
	}
}

// start draws when an attack of a length begins, so that it ends in time.
func (a *attack) start(length int64) int64 {
	return a.from + a.r.Int64N(max(1, a.to-a.from-length))
}

func (a *attack) click(v *visitor, at int64, referrer string) Click {
	return a.t.Shop.click(v, at, a.aff.link(a.r), referrer)
}

// anywhere draws a country: proxies' exits are where people are.
func (a *attack) anywhere() *country { return a.t.world.countries[a.t.world.byShare.pick(a.r)] }

// hoster is a data centre in which there are no robots of honest people.
func (a *attack) hoster(known bool) hoster {
	for {
		if h := a.t.world.hosters[firstOfAttackers+a.r.IntN(len(a.t.world.hosters)-firstOfAttackers)]; h.known == known {
			return h
		}
	}
}

// elsewhere is a country of click farms in which the affiliate is not at home.
func (a *attack) elsewhere() *country {
	for {
		if c := a.t.world.byCode[pick(a.r, farms)]; c != a.aff.home {
			return c
		}
	}
}

// flood: one address, of a home or a data centre by turns, sends 1 to 30 clicks a
// second for 2 to 30 minutes, at most 6,000, on one to three links; with one user
// agent, or with three. By chance, or by a timer.
func (a *attack) flood() (int64, string, func(add func(Click))) {
	r := a.r
	rate, length := scale(r, 1, 30), int64(scale(r, 2, 30)*float64(minute))
	length = min(length, seconds(6000/rate))
	v := person(r, a.anywhere().home(r))
	datacenter := r.IntN(2) == 0
	if datacenter {
		h := a.hoster(r.IntN(2) == 0)
		v.address, v.asn, datacenter = h.host(r.IntN(h.nets), whole(r, 1, 250)), h.asn, h.known
	}
	agents := []string{v.agent}
	if r.IntN(2) == 0 {
		agents = append(agents, desktop(r), outdated(r))
	}
	links := []int32{a.aff.link(r), a.aff.link(r), a.aff.link(r)}[:whole(r, 1, 3)]
	referrer := pick(r, []string{"", a.aff.sites[0]})
	timer, odd, begin := r.IntN(2) == 0, r.IntN(2) == 0, a.start(length)
	return begin, fmt.Sprintf("%.1f/s for %.0f min from %s", rate, float64(length)/float64(minute), v.address), func(add func(Click)) {
		for at := begin; at < begin+length; {
			v.agent = pick(r, agents)
			c := a.t.Shop.click(&v, at, pick(r, links), referrer)
			c.datacenter, c.odd = datacenter, odd
			add(c)
			if timer {
				at += seconds(between(r, .9, 1.1) / rate)
			} else {
				at += wait(r, float64(second)/rate)
			}
		}
	}
}

// botnet: each click comes from another home (residential proxies change the exit
// with each request: Mi et al., S&P 2019), in 10 to 30 countries, at 3 to 10 times
// the affiliate's own rate and at least 0.2/s, for 1 to 4 hours. The user agents
// are people's, or out of a list of 30 to 200 outdated ones; three quarters say
// en-US wherever they are, and seven in ten have no referrer.
func (a *attack) botnet() (int64, string, func(add func(Click))) {
	r := a.r
	rate := max(.2, scale(r, 3, 10)*a.perHour/3600)
	length := int64(scale(r, 1, 4) * float64(hour))
	length = max(hour, min(length, seconds(12_000/rate)))
	var exits []*country
	for range whole(r, 10, 30) {
		exits = append(exits, a.anywhere())
	}
	var list []string
	if r.IntN(2) == 0 {
		for range whole(r, 30, 200) {
			list = append(list, outdated(r))
		}
	}
	begin := a.start(length)
	return begin, fmt.Sprintf("%.2f/s for %.1f h", rate, float64(length)/float64(hour)), func(add func(Click)) {
		for at := begin; at < begin+length; at += wait(r, float64(second)/rate) {
			v := person(r, pick(r, exits).home(r))
			if list != nil {
				v.agent = pick(r, list)
			}
			if r.IntN(4) > 0 {
				v.languages = "en-US,en;q=0.9"
			}
			referrer := ""
			if r.IntN(10) >= 7 {
				referrer = a.aff.sites[0]
			}
			add(a.click(&v, at, referrer))
		}
	}
}

// cookieCut: one user agent, a browser of some years ago, from 200 to 5,000 homes
// of one to three countries, at 1 to 3 times the affiliate's own rate and at least
// 0.1/s, for 1 to 6 hours.
func (a *attack) cookieCut() (int64, string, func(add func(Click))) {
	r := a.r
	rate := max(.1, scale(r, 1, 3)*a.perHour/3600)
	length := max(hour, min(int64(scale(r, 1, 6)*float64(hour)), seconds(8000/rate)))
	where := []*country{a.aff.home, a.anywhere(), a.anywhere()}[:whole(r, 1, 3)]
	homes := make([]visitor, int(scale(r, 200, 5000)))
	cut := outdated(r)
	for i := range homes {
		homes[i] = person(r, pick(r, where).home(r))
		homes[i].agent = cut
	}
	referrer, begin := pick(r, []string{"", a.aff.sites[0]}), a.start(length)
	return begin, fmt.Sprintf("%.2f/s for %.1f h from %d homes", rate, float64(length)/float64(hour), len(homes)), func(add func(Click)) {
		for at := begin; at < begin+length; at += wait(r, float64(second)/rate) {
			add(a.click(&homes[r.IntN(len(homes))], at, referrer))
		}
	}
}

// lowAndSlow: 40 to 200 addresses of a /24, or of 3 to 6 /24s of one autonomous
// system, in a data centre that no list knows; each 30 to 180 s a click on any
// link of any affiliate, for 20 to 36 hours, day and night. Each address is seen
// a few times a day.
func (a *attack) lowAndSlow() (int64, string, func(add func(Click))) {
	r := a.r
	gap, length := scale(r, 30, 180), int64(between(r, 20, 36)*float64(hour))
	h := a.hoster(false)
	first, nets := r.IntN(h.nets), 1
	if r.IntN(2) == 0 {
		nets = min(h.nets, whole(r, 3, 6))
		first = r.IntN(h.nets - nets + 1)
	}
	hosts, where, begin := whole(r, 40, 200), a.anywhere(), a.start(length)
	return begin, fmt.Sprintf("each %.0f s, %d /24s of AS%d", gap, nets, h.asn), func(add func(Click)) {
		for at := begin; at < begin+length; at += wait(r, gap*float64(second)) {
			v := visitor{line{h.host(first+r.IntN(nets), whole(r, 1, hosts)), where, h.asn, false}, desktop(r), where.language(r)}
			add(a.t.Shop.click(&v, at, int32(r.IntN(len(a.t.Shop.Links))), ""))
		}
	}
}

// regular: a script of a home that clicks one link every 30 to 300 s, with up to
// 2 % of jitter, for 20 to 36 hours.
func (a *attack) regular() (int64, string, func(add func(Click))) {
	r := a.r
	gap, jitter, length := scale(r, 30, 300), between(r, 0, .02), int64(between(r, 20, 36)*float64(hour))
	v, link, begin := person(r, a.aff.home.home(r)), a.aff.link(r), a.start(length)
	referrer := pick(r, []string{"", a.aff.sites[0]})
	return begin, fmt.Sprintf("each %.0f s +- %.1f %% from %s", gap, 100*jitter, v.address), func(add func(Click)) {
		for at := begin; at < begin+length; at += seconds(gap) {
			add(a.t.Shop.click(&v, at+seconds(gap*jitter*max(-3, min(3, r.NormFloat64()))), link, referrer))
		}
	}
}

// burst: 15 to 60 times in 2 to 8 hours, 20 to 60 phones click within 0.1 to 2 s:
// an app that clicks for its users when it is told to (click injection and
// spamming, as networks of mobile advertising describe them).
func (a *attack) burst() (int64, string, func(add func(Click))) {
	r := a.r
	times, length := whole(r, 15, 60), int64(scale(r, 2, 8)*float64(hour))
	size, wide, begin := whole(r, 20, 60), between(r, .1, 2), a.start(length)
	return begin, fmt.Sprintf("%d times %d within %.1f s", times, size, wide), func(add func(Click)) {
		for i := range times {
			at := begin
			if i > 0 {
				at += r.Int64N(length)
			}
			for range size {
				c := a.t.world.countries[a.aff.countries.pick(r)]
				l := c.home(r)
				l.mobile = true
				v := person(r, l)
				add(a.click(&v, at+seconds(wide*r.Float64()), ""))
			}
		}
	}
}

// manyAgents: one home, each click with another user agent out of a list of 50 to
// 400, every 2 to 20 s by chance, for 1 to 6 hours.
func (a *attack) manyAgents() (int64, string, func(add func(Click))) {
	r := a.r
	gap, length := scale(r, 2, 20), int64(scale(r, 1, 6)*float64(hour))
	v := person(r, a.anywhere().home(r))
	list := make([]string, whole(r, 50, 400))
	for i := range list {
		list[i] = outdated(r)
		if r.IntN(2) == 0 {
			list[i] = agent(r, v.country, i%2 == 0)
		}
	}
	referrer, begin := pick(r, []string{"", a.aff.sites[0]}), a.start(length)
	return begin, fmt.Sprintf("each %.0f s, %d agents, from %s", gap, len(list), v.address), func(add func(Click)) {
		for at := begin; at < begin+length; at += wait(r, gap*float64(second)) {
			v.agent = pick(r, list)
			add(a.click(&v, at, referrer))
		}
	}
}

// labelled: 50 to 500 addresses of data centres that lists know, or homes whose
// software sends no user agent or lacks a browser's headers, at 0.7 to 3 times the
// affiliate's own rate and at least 0.05/s, for 2 to 8 hours.
func (a *attack) labelled() (int64, string, func(add func(Click))) {
	r := a.r
	rate := max(.05, scale(r, .7, 3)*a.perHour/3600)
	length := int64(scale(r, 2, 8) * float64(hour))
	how, where := r.IntN(3), a.anywhere()
	sources := make([]visitor, whole(r, 50, 500))
	for i := range sources {
		sources[i] = person(r, where.home(r))
		switch how {
		case 0:
			h := a.hoster(true)
			sources[i].address, sources[i].asn = h.host(r.IntN(h.nets), whole(r, 1, 250)), h.asn
		case 1:
			sources[i].agent = ""
		}
	}
	begin := a.start(length)
	note := []string{"datacenter", "no_ua", "odd_headers"}[how]
	return begin, fmt.Sprintf("%s, %.2f/s for %.1f h", note, rate, float64(length)/float64(hour)), func(add func(Click)) {
		for at := begin; at < begin+length; at += wait(r, float64(second)/rate) {
			c := a.click(&sources[r.IntN(len(sources))], at, a.aff.referrer(r))
			c.datacenter, c.odd = how == 0, how == 2
			add(c)
		}
	}
}

// countryMix: a click farm: 200 to 1,000 homes of a country in which the affiliate
// has next to no visitors, with phones, languages and referrers like people's, at
// 1 to 3 times the affiliate's own rate and at least 0.05/s, for 4 to 12 hours.
func (a *attack) countryMix() (int64, string, func(add func(Click))) {
	r := a.r
	rate := max(.05, scale(r, 1, 3)*a.perHour/3600)
	length := int64(scale(r, 4, 12) * float64(hour))
	where := a.elsewhere()
	people := make([]visitor, whole(r, 200, 1000))
	for i := range people {
		l := where.home(r)
		l.mobile = r.IntN(10) > 0
		people[i] = person(r, l)
	}
	begin := a.start(length)
	return begin, fmt.Sprintf("%s, %.2f/s for %.1f h", where.code, rate, float64(length)/float64(hour)), func(add func(Click)) {
		for at := begin; at < begin+length; at += wait(r, float64(second)/rate) {
			add(a.click(&people[r.IntN(len(people))], at, a.aff.referrer(r)))
		}
	}
}
