package guard

import (
	"fmt"
	"math"
)

// LowAndSlowSettings are of the detector of distributed sources of which each
// does little.
//
// A network or an autonomous system: over hours, clicks on many links from many
// browsers, and next to none of them says where it comes from, although others
// in the fleet do. That is how proxies and headless browsers in data centres look
// (Nagaraja and Shah, "Clicktok", WiSec 2019): each address stays below every
// rate, and the network as a whole has no history that people have. Clicks on
// many links tell it from a mail, which has few.
//
// A user agent: from many networks, and only for one affiliate. Ordinary browsers
// are used by people who follow links of everybody; a browser that only one
// affiliate's visitors have, dozens of networks wide, is a list's or a script's.
//
// Confidence: 0.96 where the rule begins to hold; each doubling of the clicks
// halves the doubt.
type LowAndSlowSettings struct {
	// Of a network or an autonomous system: clicks, hours, and different links in
	// a day. Default: 80, 4, 40.
	Clicks uint32
	Hours  float64
	Links  float64
	// The least share without a referrer (or with one and the same). Default: 0.97.
	Same float64
	// Of a user agent: clicks, networks, and the share of its first affiliate.
	// Default: 40, 20, 0.95.
	AgentClicks   uint32
	AgentNetworks float64
	AgentShare    float64
}

func (d *LowAndSlowSettings) setDefaults() {
	setDefault(&d.Clicks, 80)
	setDefault(&d.Hours, 4)
	setDefault(&d.Links, 40)
	setDefault(&d.Same, 0.97)
	setDefault(&d.AgentClicks, 40)
	setDefault(&d.AgentNetworks, 20)
	setDefault(&d.AgentShare, 0.95)
}

func (d *LowAndSlowSettings) source(e *Engine, k kind, f *features, of *source, at int64) (v verdict) {
	switch k {
	case kindNetwork, kindASN:
		return d.network(e, k, f, of, at)
	case kindAgent:
		return d.agent(e, f, of.again(detectLowAndSlow, at))
	}
	return v
}

func (d *LowAndSlowSettings) network(e *Engine, k kind, f *features, of *source, at int64) (v verdict) {
	clicks, links := d.Clicks, d.Links
	// A quarter is enough of what was found before, and of a network in an
	// autonomous system that was.
	known := of.again(detectLowAndSlow, at)
	if k == kindNetwork && of.asn != 0 && !known {
		as := e.sources[kindASN].peek(asnKey(of.asn))
		known = as != nil && as.again(detectLowAndSlow, at)
	}
	if known {
		clicks, links = clicks/4, links/4
	}
	if f.n < clicks || f.seconds() < d.Hours*3600 && !known {
		return v
	}
	many := f.links.count()
	same := f.referrer.share(f.n)
	usual := e.fleet.words[wordReferrer].share(f.referrer.hash)
	if many < links || same < d.Same || usual > 0.7 || f.affiliate.share(f.n) > 0.9 {
		return v
	}
	v.confidence = 1 - 0.04*float64(clicks)/float64(f.n)
	v.summary = fmt.Sprintf("sent %d clicks in %.1f h (%s) on %.0f links, %s of them with the same referrer or none, which %s of the fleet's clicks have: slow, wide and without a history",
		f.n, f.seconds()/3600, per(f.rate()), math.Round(many), percent(same), percent(usual))
	v.figures = append(v.figures, figure("links", math.Round(many), 0, links), figure("referrer_share", same, usual, d.Same), figure("clicks", float64(f.n), 0, float64(clicks)))
	return v
}

func (d *LowAndSlowSettings) agent(e *Engine, f *features, again bool) (v verdict) {
	clicks, least := d.AgentClicks, d.AgentNetworks
	if again {
		clicks, least = clicks/4, least/4
	}
	if f.n < clicks {
		return v
	}
	networks, share := f.peers.count(), f.affiliate.share(f.n)
	usual := e.fleet.words[wordAffiliate].share(f.affiliate.hash)
	if networks < least || share < d.AgentShare || usual > 0.5 || f.affiliate.hash == 0 {
		return v
	}
	v.confidence = 1 - 0.04*float64(clicks)/float64(f.n)
	v.summary = fmt.Sprintf("came from %.0f networks in %.1f h with %d clicks, %s of them for one affiliate, which has %s of the fleet's: a browser that nobody else's visitors use",
		math.Round(networks), f.seconds()/3600, f.n, percent(share), percent(usual))
	v.figures = append(v.figures, figure("networks", math.Round(networks), 0, least), figure("affiliate_share", share, usual, d.AgentShare))
	return v
}
