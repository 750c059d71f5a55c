package label

import (
	"math/bits"
	"sync/atomic"
	"unsafe"

	"github.com/affleet/affleet/dataplane/internal/prefetch"
)

// lineWords is how many places a line has.
const lineWords = 8

// line is 64 bytes, which is what a core fetches at a time.
type line [lineWords]atomic.Uint64

// lines are places of 64 bits, in lines.
type lines []line

// newLines makes tables of as many lines as take so many bytes each, at least one.
func newLines(tables, bytes int64) (all []lines) {
	n := max(bytes/64, 1)
	whole := reserve(tables * n)
	for i := range tables {
		all = append(all, whole[i*n:(i+1)*n:(i+1)*n])
	}
	return all
}

// of gives the line of a hash: its upper bits say which.
func (l lines) of(hash uint64) *line {
	i, _ := bits.Mul64(hash, uint64(len(l)))
	return &l[i]
}

// fetch asks for the line of a hash, well before it is looked at: those of
// several tables come at the same time.
func (l lines) fetch(hash uint64) { prefetch.Line(unsafe.Pointer(l.of(hash))) }

// find gives the place whose upper bits, those from shift on, are a tag.
//
// Here and below, nothing branches on what a place holds: which of eight it is
// cannot be foreseen, and a wrong guess of the processor costs as much as ten of
// these steps.
func (l *line) find(tag uint64, shift uint) (place int, ok bool) {
	found := uint(0)
	for i := range l {
		other := l[i].Load()>>(shift&63) ^ tag
		found |= uint((other-1)>>63) << i // other is less than 2^63: it is 1 for 0, and 0 for any other
	}
	return bits.TrailingZeros(found) % lineWords, found != 0
}

// tries is how often a race for a place is tried to be won.
const tries = 4

// counter counts requests by key over a sliding window. A place is 16 bits each
// of: the key's hash, not 0; the number of the window; how many came in the
// window before; how many in this one.
type counter struct{ lines }

// window is how long requests count, in ns.
type window int64

// moment is a time as counters see it.
type moment struct {
	epoch uint64 // the number of the window that it is in
	left  uint64 // how much of the window before is still within reach, in 256ths
}

// at gives the moment of a time in ns that hardly ever goes back. It divides, so
// that it is for all counters of a request.
func (w window) at(now int64) moment {
	epoch := now / int64(w)
	return moment{uint64(epoch), uint64((int64(w) - (now - epoch*int64(w))) * 256 / int64(w))}
}

// count counts one request of a key, and gives how many there have been within
// the last window.
func (c *counter) count(hash uint64, at moment) int {
	line := c.of(hash)
	tag := max(hash&0xffff, 1)
	sum := uint64(0)
	for range tries {
		place, ok := line.find(tag, 48)
		if !ok {
			place = at.least(line)
		}
		word := line[place].Load()
		before, current := at.roll(word)
		current = min(current+1, 0xffff)
		sum = current + before*at.left>>8
		if line[place].CompareAndSwap(word, tag<<48|at.epoch&0xffff<<32|before<<16|current) {
			break
		}
	}
	return int(sum) //nolint:gosec // at most 2 * 65535
}

// least gives the place of the least count in a line.
func (at moment) least(line *line) int {
	least := ^uint64(0)
	for i := range line {
		before, current := at.roll(line[i].Load())
		least = min(least, (current+before*at.left>>8)*lineWords+uint64(i))
	}
	return int(least % lineWords)
}

// roll gives what a place has counted in the window before a moment's, and in
// that: both halves of the lower 32 bits move up by 16 bits with each window.
func (at moment) roll(word uint64) (before, current uint64) {
	windows := (at.epoch - word>>32) & 0xffff
	counts := uint32(word) << (16 * windows)
	return uint64(counts >> 16), uint64(counts & 0xffff)
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
	shift := timeBits + m.extraBits
	tag := max(hash&(1<<(64-shift)-1), 1)
	fresh := (tag<<m.extraBits|extra)<<timeBits | at
	age = never
	for range tries {
		place, ok := line.find(tag, shift)
		if !ok {
			place = oldest(line, at)
		}
		word := line[place].Load()
		if ok && word>>shift == tag { // nobody has taken it since
			age = int64((at-word)&timeMask) << ticksShift
			was = m.extra(word >> timeBits)
		}
		if line[place].CompareAndSwap(word, fresh) {
			break
		}
	}
	return age, was
}

// extra is what of some bits has room.
func (m *marks) extra(b uint64) uint64 { return b & (1<<m.extraBits - 1) }

// oldest gives a free place of a line, or that of its oldest mark.
func oldest(line *line, at uint64) int {
	oldest := uint64(0)
	for i := range line {
		w := line[i].Load()
		age := (at - w) & timeMask
		if w == 0 {
			age = timeMask + 1
		}
		oldest = max(oldest, age*lineWords+uint64(i))
	}
	return int(oldest % lineWords)
}
