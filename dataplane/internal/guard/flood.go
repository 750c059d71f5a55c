package guard

import (
	"fmt"
	"math"
	"slices"
)

// FloodSettings are of the detector of click flooding: many clicks of one
// source, and many more clicks of an affiliate than it usually has.
//
// A source is one machine when its clicks come faster than a person clicks and
// have next to no user agents: whoever shares an address with others brings
// another browser for each three or four clicks. So a gateway with hundreds of
// people behind it, also while something goes viral among them, has the rate of a
// flood and not its sameness.
//
// Confidence of a source: 0.96 where the rule begins to hold, for a double click,
// an impatient person and a small office cannot be told from it with fewer
// clicks; twice the clicks halve the doubt.
//
// An affiliate's clicks of the last ten minutes are compared with those of the
// same hour of the week, and the hours beside it, of four weeks: robust z-score
// by median and MAD (Iglewicz and Hoaglin, 1993). Many clicks alone are no
// fraud: a link that goes viral and a mail to thousands look the same, so that
// the confidence is 0.6, which no default blocks for; it is 0.96 when the
// countries or the user agents of clicks that are many themselves are not those
// that the affiliate usually has, and it is not what going viral looks like
// either. A script that clicks now and then is found by others, and says nothing
// about the mail that goes round beside it.
type FloodSettings struct {
	// Clicks within ten seconds. Default: 12.
	Clicks uint32
	// Clicks within ten minutes, and clicks per second between them. Default: 40
	// and 0.4.
	Slow     uint32
	SlowRate float64
	// Clicks for each different user agent. Default: 4 within ten seconds, 8
	// within ten minutes.
	PerAgent, SlowPerAgent float64
	// The most user agents: with more it is people, or what many_agents finds.
	// Default: 8.
	MostAgents float64
	// Of an affiliate: robust z-score, times of the usual, and clicks in ten
	// minutes. Default: 6, 2.5, 90.
	Score, Times float64
	Least        float64
}

func (d *FloodSettings) setDefaults() {
	setDefault(&d.Clicks, 12)
	setDefault(&d.Slow, 40)
	setDefault(&d.SlowRate, 0.4)
	setDefault(&d.PerAgent, 4)
	setDefault(&d.SlowPerAgent, 8)
	setDefault(&d.MostAgents, 8)
	setDefault(&d.Score, 6)
	setDefault(&d.Times, 2.5)
	setDefault(&d.Least, 90)
}

// source judges an address or a network by its window of ten seconds or of ten
// minutes.
func (d *FloodSettings) source(k kind, f *features, fast bool) (v verdict) {
	if k != kindAddress && k != kindNetwork {
		return v
	}
	least, rate, each := d.Slow, d.SlowRate, d.SlowPerAgent
	if fast {
		least, rate, each = d.Clicks, 1, d.PerAgent
	}
	agents := math.Round(f.agents.count())
	if f.n < least || f.rate() < rate || agents > min(float64(f.n)/each, d.MostAgents) {
		return v
	}
	v.confidence = 1 - 0.04*float64(least)/float64(f.n)
	v.summary = fmt.Sprintf("sent %d clicks in %.1f s (%s) with %.0f user agents: faster than a person, and people behind one address have another browser for each few clicks",
		f.n, f.seconds(), per(f.rate()), agents)
	v.figures = append(v.figures, figure("clicks_per_second", f.rate(), 0, rate), figure("clicks_per_agent", float64(f.n)/max(1, agents), 3, each))
	return v
}

// affiliate judges the last ten minutes of an affiliate.
func (d *FloodSettings) affiliate(now float64, usual []float64, odd bool, why string) (v verdict) {
	if now < d.Least || len(usual) < 6 {
		return v
	}
	median, mad := robust(usual)
	spread := max(1.4826*mad, 0.2*median, math.Sqrt(median), 3)
	z := (now - median) / spread
	if z < d.Score || now < d.Times*median {
		return v
	}
	v.confidence = 0.6
	if odd {
		v.confidence = 0.96
	}
	v.summary = fmt.Sprintf("got %.0f clicks in 10 min where %.0f are usual at this hour of the week (robust z-score %.1f)%s", now, median, z, why)
	v.figures = append(v.figures, figure("clicks_in_10_minutes", now, median, max(d.Least, d.Times*median, median+d.Score*spread)), figure("robust_z", z, 0, d.Score))
	return v
}

// robust gives the median, and the median of the distances from it.
func robust(values []float64) (median, mad float64) {
	s := slices.Clone(values)
	slices.Sort(s)
	median = middle(s)
	for i := range s {
		s[i] = math.Abs(s[i] - median)
	}
	slices.Sort(s)
	return median, middle(s)
}

func middle(sorted []float64) float64 {
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}
