package guard

import (
	"fmt"
	"math"
)

// TimingSettings are of the detector of impossible time patterns.
//
// The gaps between the clicks of independent people are exponential: their
// coefficient of variation is 1, and one gap in twenty is within a tenth of the
// one before. A script that sleeps between its clicks has neither, whatever its
// jitter; that is how Zhang and Paxson ("Detecting and Analyzing Automated
// Activity on Twitter", PAM 2011) tell automated accounts. And people sleep: a
// source that goes on by day and by night on behalf of one affiliate with one
// browser is none.
//
// The last click must be in step, too: the first one after a script has stopped,
// hours later perhaps, is a neighbour's of the same network.
//
// Confidence: with 24 gaps 0.96, and each doubling halves the doubt; no more
// than 0.97 for a source without a night, which may be a person who is up for
// long.
type TimingSettings struct {
	// Gaps. Default: 24.
	Gaps uint32
	// The share of gaps that are within a tenth of the one before. Default: 0.6.
	Steady float64
	// Or the most variation, if the rest of the source is one machine. Default: 0.35.
	Variation float64
	// Without a night: clicks, and hours of the day with any. Default: 200, 23.
	Clicks uint32
	Hours  int
}

func (d *TimingSettings) setDefaults() {
	setDefault(&d.Gaps, 24)
	setDefault(&d.Steady, 0.6)
	setDefault(&d.Variation, 0.35)
	setDefault(&d.Clicks, 200)
	setDefault(&d.Hours, 23)
}

// source judges the gaps of a window. Of a source that was found before a quarter
// is enough.
func (d *TimingSettings) source(k kind, f *features, again bool) (v verdict) {
	least := d.Gaps
	if again {
		least /= 4
	}
	if k != kindAddress && k != kindNetwork || f.gaps < least || f.mean < 0.02 {
		return v
	}
	steady, variation := f.steadiness(), f.variation()
	if (steady < d.Steady || !f.inStep) && (variation > d.Variation || f.agent.share(f.n) < 0.9) {
		return v
	}
	v.confidence = 1 - 0.04*float64(least)/float64(f.gaps)
	v.summary = fmt.Sprintf("clicked %d times every %.1f s like a clock: %s of the gaps are within a tenth of the one before, where 5%% are of people, and they vary by %.2f of their mean, where people's vary by 1",
		f.n, f.mean, percent(steady), variation)
	v.figures = append(v.figures, figure("steady_gaps", steady, 0.05, d.Steady), figure("gap_variation", variation, 1, d.Variation))
	return v
}

// night judges the hours of a day.
func (d *TimingSettings) night(k kind, f *features, hours *[24]uint16) (v verdict) {
	if k != kindAddress && k != kindNetwork || f.n < d.Clicks || f.seconds() < float64(d.Hours)*3600 {
		return v
	}
	active, least := 0, math.Inf(1)
	for h := range hours {
		if hours[h] > 0 {
			active++
		}
		// The quietest quarter of the day, which is the night of people.
		quiet := 0.0
		for i := range 6 {
			quiet += float64(hours[(h+i)%24])
		}
		least = min(least, quiet)
	}
	share := least / float64(f.n)
	same := min(f.affiliate.share(f.n), f.agent.share(f.n), f.languages.share(f.n))
	if active < d.Hours || share < 0.18 || same < 0.97 {
		return v
	}
	v.confidence = 0.97
	v.summary = fmt.Sprintf("has no night: %d clicks in %.0f h with one user agent for one affiliate, and %s of them in the quietest quarter of the day, where people have 6%%", f.n, f.seconds()/3600, percent(share))
	v.figures = append(v.figures, figure("night_share", share, 0.06, 0.18), figure("sameness", same, 0.5, 0.97))
	return v
}
