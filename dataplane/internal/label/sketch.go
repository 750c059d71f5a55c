package label

import (
	"math/bits"
	"slices"
	"sync/atomic"
)

// lineWords is how many places a line has.
const lineWords = 8

// lines are places of 64 bits, in lines of 64 bytes.
type lines struct {
	words []atomic.Uint64
	n     uint64 // lines
}

// newLines makes tables of as many lines as take so many bytes each, at least one.
func newLines(tables, bytes int64) (all []lines) {
	n := max(bytes/64, 1)
	// So large a slice begins at a page, and so each line at 64 bytes.
	words := make([]atomic.Uint64, tables*n*lineWords)
	useHugePages(words)
	for own := range slices.Chunk(words, int(n*lineWords)) {
		all = append(all, lines{words: own, n: uint64(n)})
	}
	return all
}

// of gives the line of a hash: its upper bits say which.
func (l *lines) of(hash uint64) []atomic.Uint64 {
	i, _ := bits.Mul64(hash, l.n)
	i *= lineWords
	return l.words[i : i+lineWords : i+lineWords]
}

// fetch asks for the line of a hash and does not wait for it: those of several
// tables come at the same time. (A compare-and-swap waits for all before it.)
func (l *lines) fetch(hash uint64) {
	i, _ := bits.Mul64(hash, l.n)
	l.words[i*lineWords].Load()
}

// tries is how often a race for a place is tried to be won.
const tries = 4

// counter counts requests by key over a sliding window. A place is 16 bits each
// of: the key's hash, not 0; the number of the window; how many came in the
// window before; how many in this one.
type counter struct {
	lines
	window int64 // ns
}

// count counts one request of a key, and gives how many there have been within
// the last window, at a time in ns that hardly ever goes back.
func (c *counter) count(hash uint64, now int64) int {
	line := c.of(hash)
	epoch := uint64(now / c.window)
	// How much of the window before is still within reach, in 256ths.
	left := uint64(c.window-now%c.window) * 256 / uint64(c.window)
	tag := max(hash&0xffff, 1)
	estimate := uint64(0)
	for range tries {
		place, word := findCount(line, tag, epoch, left)
		before, current := roll(word, epoch)
		current = min(current+1, 0xffff)
		estimate = current + before*left>>8
		if line[place].CompareAndSwap(word, tag<<48|epoch&0xffff<<32|before<<16|current) {
			break
		}
	}
	return int(estimate) //nolint:gosec // at most 2 * 65535
}

// findCount gives the place of a key in its line, and what is there; if it has
// none, the place of the least count.
func findCount(line []atomic.Uint64, tag, epoch, left uint64) (place int, word uint64) {
	var words [lineWords]uint64
	for i := range line {
		words[i] = line[i].Load()
		if words[i]>>48 == tag {
			return i, words[i]
		}
	}
	least := ^uint64(0)
	for i, w := range words {
		before, current := roll(w, epoch)
		if n := current + before*left>>8; n < least {
			place, word, least = i, w, n
		}
	}
	return place, word
}

// roll gives what a place has counted in the window before an epoch, and in it.
func roll(word, epoch uint64) (before, current uint64) {
	switch (epoch - word>>32) & 0xffff {
	case 0:
		return word >> 16 & 0xffff, word & 0xffff
	case 1:
		return word & 0xffff, 0
	}
	return 0, 0
}

// marks remember when a key was last seen. A place is the lower bits of the key's
// hash, not 0; some bits that the caller gives; and 28 bits of time, in 16ths of
// a second, which last for half a year.
type marks struct {
	lines
	extraBits uint // that the caller gives
}

const (
	timeBits   = 28
	ticksShift = 26 // ns to about 16ths of a second: 67 ms
	timeMask   = 1<<timeBits - 1
)

// ticks are the ticks of a time.
func ticks(ns int64) uint64 { return uint64(ns) >> ticksShift }

// never is an age that no mark has.
const never = 1 << 62

// touch marks a key as seen now. It gives how many ns ago that was so before, or
// never, and the bits that were given then.
func (m *marks) touch(hash, extra uint64, now int64) (age int64, was uint64) {
	line := m.of(hash)
	at := ticks(now) & timeMask
	extra = m.extra(extra)
	tagBits := 64 - timeBits - m.extraBits
	tag := max(hash&(1<<tagBits-1), 1)
	fresh := (tag<<m.extraBits|extra)<<timeBits | at
	age = never
	for range tries {
		place, word, found := m.find(line, tag, at)
		if found {
			age = int64((at-word)&timeMask) << ticksShift
			was = word >> timeBits & (1<<m.extraBits - 1)
		}
		if line[place].CompareAndSwap(word, fresh) {
			break
		}
	}
	return age, was
}

// extra is what of some bits has room.
func (m *marks) extra(b uint64) uint64 { return b & (1<<m.extraBits - 1) }

// find gives the place of a key in its line, and what is there; if it has none,
// a free place or that of the oldest mark.
func (m *marks) find(line []atomic.Uint64, tag, at uint64) (place int, word uint64, found bool) {
	oldest := uint64(0)
	for i := range line {
		w := line[i].Load()
		if w>>(timeBits+m.extraBits) == tag {
			return i, w, true
		}
		age := (at-w)&timeMask + 1
		if w == 0 {
			age = timeMask + 2
		}
		if age > oldest {
			place, word, oldest = i, w, age
		}
	}
	return place, word, false
}
