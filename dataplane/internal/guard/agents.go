package guard

import (
	"fmt"
	"math"
)

// AgentsSettings are of the detector of one address under many user agents.
//
// Many people behind one address have many user agents too (Richter et al., IMC
// 2016, count up to hundreds of subscribers an address). What they do not have in
// common is all the rest: a program that changes its user agent with each click
// still asks on behalf of one affiliate, with one language and one referrer, and
// takes its user agents from a list on which most are rarer than those of people.
// How rare is measured in bits, log2 of one over the share that a user agent has
// in the fleet, and compared with the fleet's mean.
//
// Confidence: 0.96 when all of that holds over the least of clicks; each doubling
// of the clicks halves the doubt. With fewer of the signs it says nothing: a
// gateway while a mail goes round has one affiliate, one referrer and nearly one
// language, but ordinary browsers.
type AgentsSettings struct {
	// Different user agents, and clicks, within ten seconds or ten minutes.
	// Default: 12, 25.
	Agents float64
	Clicks uint32
	// The least share of the first affiliate, referrer and language. Default: 0.97.
	Same float64
	// How much rarer than the fleet's the user agents are, in bits. Default: 2.
	Bits float64
}

func (d *AgentsSettings) setDefaults() {
	setDefault(&d.Agents, 12)
	setDefault(&d.Clicks, 25)
	setDefault(&d.Same, 0.97)
	setDefault(&d.Bits, 2)
}

func (d *AgentsSettings) source(e *Engine, k kind, f *features) (v verdict) {
	if k != kindAddress && k != kindNetwork || f.n < d.Clicks || e.fleet.words[wordAgent].total < fleetKnown {
		return v
	}
	agents := f.agents.count()
	if agents < d.Agents || agents < float64(f.n)/20 && agents < 40 {
		return v
	}
	same := min(f.affiliate.share(f.n), f.referrer.share(f.n), f.languages.share(f.n))
	bits, usual := float64(f.surprise)/float64(f.n), e.fleet.surprise()
	if same < d.Same || bits < usual+d.Bits {
		return v
	}
	if f.link.share(f.n) >= 0.9 && (f.n < 3*d.Clicks || same < 0.985) {
		return v // a link that goes viral behind a gateway begins like this
	}
	v.confidence = 1 - 0.04*float64(d.Clicks)/float64(f.n)
	v.summary = fmt.Sprintf("sent %d clicks with %.0f user agents that are rare in the fleet (%.1f bits; %.1f are usual), and %s of them for one affiliate with one referrer and one language: a program that changes its user agent",
		f.n, math.Round(agents), bits, usual, percent(same))
	v.figures = append(v.figures, figure("agents", math.Round(agents), 0, d.Agents), figure("agent_bits", bits, usual, usual+d.Bits), figure("sameness", same, 0.5, d.Same))
	return v
}
