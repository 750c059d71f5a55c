package guard

import (
	"fmt"
	"math"
)

// LabelledSettings are of the detector of the share of clicks that nodes have
// labelled, among those that do not say themselves that they are robots.
//
// A label is a suspicion about one request, and each affiliate has some: double
// clicks, a data centre's proxy, the scanner of a mail provider. What counts is
// that over an hour, and in nearly each ten minutes of it, a large part is
// labelled, and much more than it usually is: the scanners of a mail are through
// in minutes.
//
// Confidence: 0.96 at the least share; the doubt falls as the share rises.
type LabelledSettings struct {
	// Clicks in an hour, the share of labelled ones, and how many times what is
	// usual. Default: 40, 0.3, 3.
	Clicks int
	Share  float64
	Times  float64
}

func (d *LabelledSettings) setDefaults() {
	setDefault(&d.Clicks, 40)
	setDefault(&d.Share, 0.3)
	setDefault(&d.Times, 3)
}

func (d *LabelledSettings) affiliate(a *affiliate) (v verdict) {
	n, labelled := 0, 0
	high, judged := 0, 0
	for j := range uint32(6) {
		b := a.bins[(a.bin-j)%bins]
		n += int(b.n)
		labelled += int(b.labelled)
		if b.n >= 4 {
			judged++
			if float64(b.labelled) >= 0.6*d.Share*float64(b.n) {
				high++
			}
		}
	}
	if n < d.Clicks || judged < 5 || high < judged-1 || high < 5 {
		return v
	}
	share := float64(labelled) / float64(n)
	usual := a.labels.usual()
	// That many of so few would be chance else: four standard deviations. Where many
	// are usual, such as double clicks, they come in pairs and scatter more.
	if share < max(d.Share, d.Times*usual, usual+0.28, usual+4*math.Sqrt(usual*(1-usual)/float64(n))) {
		return v
	}
	v.begin, v.clicks = a.lastHour(), uint64(n)
	v.confidence = 1 - 0.04*d.Share/share
	v.summary = fmt.Sprintf("got %d clicks in an hour of which the nodes labelled %s, where %s are usual", n, percent(share), percent(usual))
	v.figures = append(v.figures, figure("labelled_share", share, usual, max(d.Share, d.Times*usual)))
	return v
}

// labels counts the clicks of this hour, and keeps what is usual.
type labels struct {
	n, labelled uint32
	base, of    float32
}

// labelsMemory is how many clicks what is usual rests on.
const labelsMemory = 2000

func (l *labels) learn(odd bool) {
	if l.n > 0 && float64(l.labelled) > 3*l.usual()*float64(l.n)+5 {
		odd = true
	}
	weight := float32(1)
	if odd {
		weight = 1.0 / 16
	}
	l.base += weight * float32(l.labelled)
	l.of += weight * float32(l.n)
	if l.of > labelsMemory {
		l.base, l.of = l.base*labelsMemory/l.of, labelsMemory
	}
	l.n, l.labelled = 0, 0
}

// usual is the share; where little is known, a twentieth.
func (l *labels) usual() float64 { return (float64(l.base) + 2) / (float64(l.of) + 40) }
