package guard

import (
	"math"
	"unsafe"
)

// fleet is what is usual over all clicks: how often each user agent, affiliate,
// referrer and language comes, by count-min sketches (Cormode and Muthukrishnan,
// 2005) of fixed size whose counts halve every few hours.
type fleet struct {
	words   [4]sketch
	halveAt int64
	bits    float64 // the surprise of user agents, usually
}

const (
	wordAgent = iota
	wordAffiliate
	wordReferrer
	wordLanguages
)

// fleetHalfLife of what is usual, in µs.
const fleetHalfLife = 6 * 3600 * 1_000_000

// fleetKnown is from how many clicks on it is known what is usual.
const fleetKnown = 5000

const sketchWidth = 1 << 14

type sketch struct {
	rows  [2][]uint32
	total uint64
}

func (f *fleet) init() {
	for i := range f.words {
		for r := range f.words[i].rows {
			f.words[i].rows[r] = make([]uint32, sketchWidth)
		}
	}
}

func (f *fleet) bytes() int64 {
	return int64(len(f.words)) * 2 * sketchWidth * int64(unsafe.Sizeof(uint32(0)))
}

// add counts a click, and gives the surprise of its user agent in bits: log2 of
// one over its share so far.
func (f *fleet) add(ev *event) float32 {
	if ev.at >= f.halveAt {
		if f.halveAt > 0 {
			f.halve()
		}
		f.halveAt = ev.at + fleetHalfLife
	}
	n := f.words[wordAgent].add(ev.agent.small())
	f.words[wordAffiliate].add(ev.affiliate.small())
	f.words[wordReferrer].add(ev.referrer.small())
	f.words[wordLanguages].add(ev.languages.small())
	bits := math.Log2(float64(f.words[wordAgent].total) / float64(n))
	f.bits += (bits - f.bits) * max(1.0/(1<<14), 1/float64(f.words[wordAgent].total))
	return float32(bits)
}

// surprise is that of the user agents of all clicks, on average.
func (f *fleet) surprise() float64 { return f.bits }

func (f *fleet) halve() {
	for i := range f.words {
		s := &f.words[i]
		for r := range s.rows {
			for j := range s.rows[r] {
				s.rows[r][j] /= 2
			}
		}
		s.total /= 2
	}
}

func (s *sketch) cells(hash uint32) (a, b *uint32) {
	h := mix(uint64(hash))
	return &s.rows[0][h%sketchWidth], &s.rows[1][h>>32%sketchWidth]
}

// add counts, conservatively: only the least of the cells grows.
func (s *sketch) add(hash uint32) uint32 {
	a, b := s.cells(hash)
	s.total++
	n := min(*a, *b) + 1
	*a, *b = max(*a, n), max(*b, n)
	return n
}

// share is how much of all has this hash.
func (s *sketch) share(hash uint32) float64 {
	if s.total == 0 {
		return 0
	}
	a, b := s.cells(hash)
	return float64(min(*a, *b)) / float64(s.total)
}
