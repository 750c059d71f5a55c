package guard

import (
	"fmt"
	"math"
)

// BurstSettings are of the detector of bursts: many clicks of an affiliate
// within the same instants, again and again, with quiet between.
//
// People do not click at once. Whatever makes thousands come (a mail, a link that
// goes viral) spreads over minutes; click injection and click spamming, where
// installed apps click when they are told to, come within a second or two
// (AppsFlyer and Adjust describe both by their distribution of times). One burst
// may be a coincidence or a television spot: only several within hours count.
//
// Confidence: 0.96 with the fourth; each further one takes a quarter of the
// doubt.
type BurstSettings struct {
	// Clicks within three seconds, and how many times what the minute before makes
	// likely. Default: 12, 4.
	Clicks float64
	Times  float64
	// How many bursts, within how many seconds. Default: 4, 4 h.
	Bursts int
	Within uint32
}

func (d *BurstSettings) setDefaults() {
	setDefault(&d.Clicks, 12)
	setDefault(&d.Times, 4)
	setDefault(&d.Bursts, 4)
	setDefault(&d.Within, 4*3600)
}

const burstsKept = 16

// bursts are what an affiliate's last minute and last bursts were.
type bursts struct {
	second  uint32
	seconds [64]uint16
	times   [burstsKept]uint32
	n       uint32 // bursts so far
	sizes   [burstsKept]uint16
}

// add counts a click, and says whether enough bursts were there.
func (b *bursts) add(d *BurstSettings, second uint32) bool {
	const size = uint32(len(b.seconds))
	switch {
	case second > b.second:
		for i := b.second + 1; i <= second && i <= b.second+size; i++ {
			b.seconds[i%size] = 0
		}
		b.second = second
	case second+size <= b.second+4:
		return false // long ago
	}
	count(&b.seconds[second%size])
	if b.n > 0 && second < b.times[(b.n-1)%burstsKept]+20 {
		return false // the same burst
	}
	now := 0.0
	for i := range uint32(3) {
		now += float64(b.seconds[(second-i)%size])
	}
	if now < d.Clicks {
		return false
	}
	before := 0.0
	for i := uint32(3); i < 60; i++ {
		before += float64(b.seconds[(second-i)%size])
	}
	likely := before / 57 * 3
	if now < d.Times*likely || now < likely+8*math.Sqrt(likely) {
		return false
	}
	b.times[b.n%burstsKept], b.sizes[b.n%burstsKept] = second, uint16(min(now, 1<<16-1))
	b.n++
	return b.within(d, second) >= d.Bursts
}

// within is how many of the last bursts were not long ago.
func (b *bursts) within(d *BurstSettings, second uint32) (n int) {
	for i := range min(b.n, burstsKept) {
		if t := b.times[(b.n-1-i)%burstsKept]; t+d.Within > second {
			n++
		}
	}
	return n
}

// since is when the first of the last n was.
func (b *bursts) since(n int) uint32 {
	return b.times[(b.n-uint32(n))%burstsKept]
}

func (d *BurstSettings) verdict(b *bursts, second uint32) (v verdict) {
	n, largest := b.within(d, second), uint16(0)
	for i := range n {
		size := b.sizes[(b.n-1-uint32(i))%burstsKept]
		largest = max(largest, size)
		v.clicks += uint64(size)
	}
	v.begin = int64(b.since(n)) * 1e6
	v.confidence = 1 - 0.04*math.Pow(0.75, float64(n-d.Bursts))
	v.summary = fmt.Sprintf("got %d bursts within %.1f h, each of at least %.0f clicks in 3 s (at most %d) with quiet around: nobody clicks at once with others",
		n, float64(d.Within)/3600, d.Clicks, largest)
	v.figures = append(v.figures, figure("bursts", float64(n), 0, float64(d.Bursts)), figure("clicks_in_3_seconds", float64(largest), 0, d.Clicks))
	return v
}
