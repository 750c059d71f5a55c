package traffic

import (
	"math"
	"math/rand/v2"
	"sort"
)

// weights picks indices in proportion to their weights.
type weights struct{ sums []float64 }

func newWeights(w []float64) weights {
	sums := make([]float64, len(w))
	sum := 0.0
	for i, v := range w {
		sum += v
		sums[i] = sum
	}
	return weights{sums}
}

func (w weights) pick(r *rand.Rand) int {
	return sort.SearchFloat64s(w.sums, r.Float64()*w.sums[len(w.sums)-1])
}

// zipf are n weights k^-s. Popularity of web objects follows it with s of 0.64
// to 0.83 (Breslau et al., INFOCOM 1999).
func zipf(n int, s float64) []float64 {
	w := make([]float64, n)
	for k := range w {
		w[k] = math.Pow(float64(k+1), -s)
	}
	return w
}

// poisson draws a count. Large means are drawn from the normal distribution
// that they come close to.
func poisson(r *rand.Rand, mean float64) int {
	if mean > 200 {
		return max(0, int(math.Round(mean+math.Sqrt(mean)*r.NormFloat64())))
	}
	n, p, limit := 0, r.Float64(), math.Exp(-mean)
	for ; p > limit; n++ {
		p *= r.Float64()
	}
	return n
}

// between draws evenly.
func between(r *rand.Rand, low, high float64) float64 { return low + (high-low)*r.Float64() }

// scale draws evenly over the orders of magnitude (log-uniform): for what is
// known no better than "from low to high".
func scale(r *rand.Rand, low, high float64) float64 {
	return low * math.Pow(high/low, r.Float64())
}

// whole draws an integer from low to high.
func whole(r *rand.Rand, low, high int) int { return low + r.IntN(high-low+1) }

// logNormal has its median and the deviation of its logarithm.
func logNormal(r *rand.Rand, median, sigma float64) float64 {
	return median * math.Exp(sigma*r.NormFloat64())
}

// wait is the exponential time to the next of events that come by chance, in µs.
func wait(r *rand.Rand, mean float64) int64 { return int64(r.ExpFloat64() * mean) }

func seconds(s float64) int64 { return int64(s * float64(second)) }

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }
