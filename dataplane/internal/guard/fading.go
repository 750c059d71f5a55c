package guard

import "math"

// What goes viral fades, and a farm goes on: the rate of the former falls with a power
// of the time since its top, (1 + t/tau)^-1.4, the latter has the same rate until it
// ends. This is the evidence for the one or the other.
const (
	// fadeExponent is that of the views of videos after a shock from outside (Crane and
	// Sornette, PNAS 2008: 1 + theta, with theta of 0.4).
	fadeExponent = 1.4
	// lateBins are the last two hours.
	lateBins = 12
	// topShare of the most clicks in ten minutes is about as many, and they have risen
	// when there were less than riseShare of them in each of the ten minutes before, on
	// average of three.
	topShare  = 0.6
	riseShare = 0.3
)

// fadeTimes are the values of tau, in bins of ten minutes, of which the best one
// counts: with half an hour, half of all clicks come within an hour.
var fadeTimes = [...]float64{0.5, 1, 1.75, 3}

// Evidence that is enough, in bits: a fading link passes as one that lasts in one of
// a thousand cases at most. What goes viral is mostly of one country, so that half of
// that is enough where clicks are of many. And that much against it is enough to be
// silent where it need not last.
const (
	lastingBits   = 10
	scatteredBits = 5
	fadedBits     = -3
	oneCountry    = 0.6 // is the least share of the first one
)

// enough is how many bits are enough, by the share of the first country.
func enough(top float64) float64 {
	if top < oneCountry {
		return scatteredBits
	}
	return lastingBits
}

// lasting is the evidence that an affiliate's foreign clicks go on evenly rather than
// fade, in bits: log2 of the likelihood of an even rate to that of the best of the
// falling ones, both on top of the foreign clicks that usually come beside as many
// others (usual is their share). Of clicks that fade, it passes b bits with a
// probability of at most 2^-b.
//
// It is taken over all ten minutes since the top of the last six hours, and over those
// since the top of the last two, and the larger one counts: a farm can begin behind
// what has faded. In the latter, clicks that have not risen may also fade from the top
// of the six hours on.
func (a *affiliate) lasting(usual float64) (bits float64) {
	var x, base [bins]float64 // the oldest first
	ratio := usual / max(0.1, 1-usual)
	for i := range x {
		b := a.bins[(a.bin-uint32(bins-1-i))%bins]
		x[i], base[i] = float64(b.foreign), ratio*float64(b.n-min(b.n, b.foreign))
	}
	const late = bins - lateBins
	top := topOf(x[:], base[:])
	bits = evenToFading(x[top:], base[top:], 0)
	if top >= late {
		return bits
	}
	last := late + topOf(x[late:], base[late:])
	later := evenToFading(x[last:], base[last:], 0)
	before := 0.0
	for i := last - 3; i < last; i++ {
		before += (x[i] - base[i]) / 3
	}
	if before >= riseShare*(x[last]-base[last]) {
		later = min(later, evenToFading(x[last:], base[last:], float64(last-top)))
	}
	return max(bits, later)
}

// topOf is the first count that is about as large as any; where the next one is
// larger, that one: it has begun within ten minutes.
func topOf(x, base []float64) (top int) {
	most := 0.0
	for i := range x {
		most = max(most, x[i]-base[i])
	}
	for top < len(x)-1 && x[top]-base[top] < topShare*most {
		top++
	}
	for top < len(x)-1 && x[top+1]-base[top+1] > x[top]-base[top] {
		top++
	}
	return top
}

// evenToFading is log2 of the likelihood ratio for counts of independent clicks, of
// which the first is a time after the top, in bins. Both rates give as many clicks in
// all, so that only their shapes count.
func evenToFading(x, base []float64, after float64) float64 {
	extra := 0.0
	for i := range x {
		extra += x[i] - base[i]
	}
	if extra <= 0 {
		return 0
	}
	least := math.Inf(1)
	for _, tau := range fadeTimes {
		var shape [bins]float64
		all := 0.0
		for i := range x {
			shape[i] = math.Pow(1+(after+float64(i))/tau, -fadeExponent)
			all += shape[i]
		}
		bits := 0.0
		for i := range x {
			even, fading := base[i]+extra/float64(len(x)), base[i]+extra*shape[i]/all
			bits += x[i] * math.Log2(even/fading)
		}
		least = min(least, bits)
	}
	return least
}
