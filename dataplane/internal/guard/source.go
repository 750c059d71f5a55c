package guard

import (
	"unsafe"
)

// The lengths of the windows, in µs. Each begins with the first click behind
// the one before.
const (
	fastWindow  = 10_000_000
	shortWindow = 10 * 60 * 1_000_000
	longWindow  = 24 * 3600 * 1_000_000
)

// Times between two looks at a source, in seconds of the stream.
const (
	shortLook = 5
	longLook  = 60
)

// busy is how many clicks in ten seconds make a source worth the fast window.
const busy = 5

type sample struct {
	boot     uint32
	sequence uint64
}

const sourceSamples = 8

// source is one address, network, user agent or autonomous system. It has no
// pointers: a checkpoint holds its bytes.
type source struct {
	prefix [18]byte
	asn    uint32

	second  uint32               // the latest of ring
	lately  uint32               // clicks of the last ten
	ring    [16]uint16           // clicks by second
	hours   [24]uint16           // clicks by hour of day, in the long window
	looked  [3]uint32            // seconds
	found   [numDetectors]uint32 // seconds
	taken   uint32               // samples
	samples [sourceSamples]sample

	fast, short, long features
}

// recent counts a click of a second, and gives the clicks of the last ten.
func (s *source) recent(second uint32) uint32 {
	const size, kept = uint32(len(s.ring)), 10
	switch {
	case second >= s.second+size:
		s.ring, s.lately, s.second = [16]uint16{}, 0, second
	case second+kept <= s.second:
		return s.lately // long ago
	}
	for s.second < second {
		s.second++
		s.lately -= uint32(s.ring[(s.second-kept)%size])
		s.ring[s.second%size] = 0
	}
	if r := &s.ring[second%size]; *r < 1<<16-1 {
		*r++
		s.lately++
	}
	return s.lately
}

// add counts a click and says which windows are due for a look.
func (s *source) add(ev *event, peer uint32) (fast, short, long bool) {
	second := uint32(ev.at / 1e6)
	s.samples[sampleSlot(s.taken)] = sample{ev.boot, ev.sequence}
	s.taken++
	if s.recent(second) >= busy {
		if ev.at >= s.fast.begin+fastWindow {
			s.fast = features{}
		}
		s.fast.add(ev, peer)
		// A burst may be over before the second is: each doubling is looked at, too.
		fast = due(&s.looked[0], second, 1) || s.fast.n&(s.fast.n-1) == 0
	}
	if ev.at >= s.short.begin+shortWindow {
		s.short = features{}
	}
	s.short.add(ev, peer)
	if ev.at >= s.long.begin+longWindow {
		s.long, s.hours = features{}, [24]uint16{}
	}
	s.long.add(ev, peer)
	if h := &s.hours[second/3600%24]; *h < 1<<16-1 {
		*h++
	}
	return fast, due(&s.looked[1], second, shortLook), due(&s.looked[2], second, longLook)
}

func due(looked *uint32, second, every uint32) bool {
	if second < *looked+every && second+every > *looked {
		return false
	}
	*looked = second
	return true
}

// table holds the sources of one kind: as many as it was made for, whoever
// chooses the keys. A set of eight slots holds what hashes there; a new source
// takes the place of the one with the fewest clicks lately (the idea of
// Space-Saving, Metwally et al. 2005, without inheriting the count). A flood of
// made-up keys pushes out its own kind, and hardly what has many clicks.
type table struct {
	keys    []uint64
	meta    []meta
	slots   []source // none where somebody else has what belongs to a key
	names   []string // of user agents, and affiliates
	evicted uint64
	victim  uint64 // who went for the last new key; 0: nobody
}

// meta is what says who has to go.
type meta struct {
	minute, clicks uint32
	open           bool // its slot is in use
}

const ways = 8

func (t *table) init(slots int, named bool) {
	n := ways
	for n < slots {
		n *= 2
	}
	t.keys, t.meta, t.slots = make([]uint64, n), make([]meta, n), make([]source, n)
	if named {
		t.names = make([]string, n)
	}
}

func (t *table) bytes() int64 {
	n := int64(len(t.keys)) * int64(unsafe.Sizeof(uint64(0))+unsafe.Sizeof(meta{})+unsafe.Sizeof(source{}))
	for _, s := range t.names {
		n += int64(len(s)) + 16
	}
	return n
}

// openAt is the click of a source with which its slot comes into use. Most
// addresses have one or two: they cost a key, and no page of memory.
const openAt = 3

// get finds a source or makes it, and counts a click of it. It gives -1 for a
// source whose slot is not in use yet, and says whether it came into use now.
func (t *table) get(key uint64, minute uint32) (i int, opened bool) {
	base := int(mix(key)&uint64(len(t.keys)-1)) &^ (ways - 1)
	for i := base; i < base+ways; i++ {
		if t.keys[i] != key {
			continue
		}
		m := &t.meta[i]
		m.count(minute)
		switch {
		case m.open:
			return i, false
		case m.clicks < openAt:
			return -1, false
		}
		m.open = true
		t.slots[i] = source{}
		return i, true
	}
	t.take(base, key, minute)
	return -1, false
}

// take gives a new key the place of the weakest of its set.
func (t *table) take(base int, key uint64, minute uint32) int {
	weakest, least := base, ^uint32(0)
	for i := base; i < base+ways; i++ {
		if t.keys[i] == 0 {
			weakest = i
			break
		}
		if w := t.meta[i].weight(minute); w < least {
			weakest, least = i, w
		}
	}
	if t.victim = t.keys[weakest]; t.victim != 0 {
		t.evicted++
	}
	t.keys[weakest], t.meta[weakest] = key, meta{minute: minute, clicks: 1}
	if t.names != nil {
		t.names[weakest] = ""
	}
	return weakest
}

// find is get where every key has its place at once.
func (t *table) find(key uint64, minute uint32) (i int, isNew bool) {
	base := int(mix(key)&uint64(len(t.keys)-1)) &^ (ways - 1)
	for i := base; i < base+ways; i++ {
		if t.keys[i] == key {
			t.meta[i].count(minute)
			return i, false
		}
	}
	return t.take(base, key, minute), true
}

// peek finds a source.
func (t *table) peek(key uint64) *source {
	base := int(mix(key)&uint64(len(t.keys)-1)) &^ (ways - 1)
	for i := base; i < base+ways; i++ {
		if t.keys[i] == key && t.meta[i].open {
			return &t.slots[i]
		}
	}
	return nil
}

// halfLife of a source's weight, in minutes.
const halfLife = 32

func (m *meta) weight(minute uint32) uint32 {
	if minute <= m.minute {
		return m.clicks
	}
	return m.clicks >> min(31, (minute-m.minute)/halfLife)
}

func (m *meta) count(minute uint32) {
	if minute >= m.minute+halfLife {
		m.clicks, m.minute = m.weight(minute), minute
	}
	m.clicks++
}

// source counts a click for its source of one kind, and looks at that.
func (e *Engine) source(k kind, key uint64, ev *event) {
	t := &e.sources[k]
	i, opened := t.get(key, uint32(ev.at/60e6))
	if i < 0 {
		return
	}
	s := &t.slots[i]
	s.asn = ev.asn
	if opened {
		switch k {
		case kindAddress, kindNetwork:
			s.prefix = putPrefix(ev.prefix[k])
		case kindAgent:
			t.names[i] = string([]byte(ev.agent.text)) // the batch goes
		}
	}
	peer := uint32(ev.prefixKey[kindNetwork] >> 32)
	if k == kindNetwork {
		peer = uint32(ev.prefixKey[kindAddress] >> 32)
	}
	fast, short, long := s.add(ev, peer)
	if fast && s.fast.n >= busy {
		e.lookFast(k, i, ev.at)
	}
	if short && s.short.n >= 8 {
		e.lookShort(k, i, ev.at)
	}
	if long && s.long.n >= 8 {
		e.lookLong(k, i, ev.at)
	}
}
