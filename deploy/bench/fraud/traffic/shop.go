package traffic

import (
	"fmt"
	"math/rand/v2"
)

// Shop is the affiliates and their links.
type Shop struct {
	Affiliates []Affiliate
	Links      []Link
}

// Affiliate earns from clicks.
type Affiliate struct {
	ID    string
	Links []int32

	home      *country
	countries weights // of its visitors
	links     weights
	sites     []string // its own
	own       float64  // share of clicks from its sites
	none      float64  // share without a referrer: from apps and mails
	social    float64  // share from social networks; the rest is from search engines
}

// Link is one that can be clicked.
type Link struct {
	Affiliate         int32
	Path, Destination string
}

var (
	socials  = []string{"https://l.instagram.com/", "https://t.co/", "https://l.facebook.com/", "https://www.youtube.com/", "https://www.tiktok.com/", "https://www.reddit.com/", "https://www.pinterest.com/"}
	searches = []string{"https://www.google.com/", "https://www.google.com/", "https://www.google.com/", "https://www.bing.com/", "https://duckduckgo.com/"}
	topics   = []string{"travel", "garden", "coffee", "camera", "running", "cooking", "gaming", "fashion", "fitness", "audio", "bikes", "books", "budget", "cats", "deals", "dogs", "family", "golf", "hiking", "home"}
)

// newShop invents affiliates: where their visitors live, and where the clicks
// come from. The four kinds are those of affiliate networks (content, social,
// mail and apps, coupons), with shares by assumption.
func newShop(r *rand.Rand, affiliates int, w *world) *Shop {
	s := new(Shop)
	for i := range affiliates {
		a := Affiliate{ID: fmt.Sprintf("aff-%05d", i), home: w.countries[w.byShare.pick(r)]}
		at := make([]float64, len(w.countries))
		home, second := between(r, .6, .92), w.byShare.pick(r)
		for j, c := range w.countries {
			at[j] = (1 - home) * .5 * c.share / 100
			if c == a.home {
				at[j] += home
			}
		}
		at[second] += (1 - home) * .5
		a.countries = newWeights(at)
		for range whole(r, 1, 3) {
			a.sites = append(a.sites, fmt.Sprintf("https://www.%s-%s-%d.example/", pick(r, topics), pick(r, topics), i))
		}
		switch n := r.IntN(100); {
		case n < 55: // content
			a.own, a.none, a.social = between(r, .5, .8), between(r, .08, .2), .08
		case n < 75: // social
			a.own, a.none, a.social = .05, between(r, .15, .3), between(r, .5, .65)
		case n < 90: // mail and apps
			a.own, a.none, a.social = .1, between(r, .65, .85), .02
		default: // coupons
			a.own, a.none, a.social = between(r, .75, .92), .05, .01
		}
		for range 1 + int(r.ExpFloat64()*9) { // ten links on average
			path := fmt.Sprintf("/%s/%s%d", a.ID, pick(r, topics), len(s.Links))
			a.Links = append(a.Links, int32(len(s.Links)))
			s.Links = append(s.Links, Link{int32(i), path, fmt.Sprintf("https://store.example/p/%d?ref=%d", 100_000+len(s.Links), i)})
		}
		a.links = newWeights(zipf(len(a.Links), 1))
		s.Affiliates = append(s.Affiliates, a)
	}
	return s
}

// visitor is a person with a browser.
type visitor struct {
	line
	agent, languages string
}

func (a *Affiliate) visitor(r *rand.Rand, c *country) visitor {
	return person(r, c.visitor(r))
}

func person(r *rand.Rand, l line) visitor {
	return visitor{l, agent(r, l.country, l.mobile), l.country.language(r)}
}

// language is what a browser of the country says; one in 25 is a foreigner's.
func (c *country) language(r *rand.Rand) string {
	if r.IntN(25) == 0 {
		return pick(r, countries[r.IntN(len(countries))].languages)
	}
	return c.languages[min(r.IntN(len(c.languages)), r.IntN(len(c.languages)))]
}

func (a *Affiliate) referrer(r *rand.Rand) string {
	switch v := r.Float64(); {
	case v < a.own:
		return a.sites[min(r.IntN(len(a.sites)), r.IntN(len(a.sites)))]
	case v < a.own+a.none:
		return ""
	case v < a.own+a.none+a.social:
		return pick(r, socials)
	}
	return pick(r, searches)
}

// link picks one of the affiliate's.
func (a *Affiliate) link(r *rand.Rand) int32 { return a.Links[a.links.pick(r)] }

// click is one of a visitor.
func (s *Shop) click(v *visitor, at int64, link int32, referrer string) Click {
	c := Click{
		Time: at, Link: link, Affiliate: s.Links[link].Affiliate, Instance: -1,
		Agent: v.agent, Languages: v.languages, Referrer: referrer,
	}
	v.place(&c)
	return c
}
