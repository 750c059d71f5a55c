package guard

import (
	"math"
	"math/bits"
)

// majority finds what most of a sequence is, if anything is (Boyer and Moore,
// MJRTY, 1981). lead is at least as much as the share is above one half.
type majority struct{ hash, lead uint32 }

func (m *majority) add(hash uint32) {
	switch {
	case m.hash == hash && m.lead > 0:
		m.lead++
	case m.lead == 0:
		m.hash, m.lead = hash, 1
	default:
		m.lead--
	}
}

// share is at most the share of hash among n: 0.5 where nothing has a majority.
func (m *majority) share(n uint32) float64 {
	if n == 0 {
		return 0
	}
	return min(1, (float64(m.lead)/float64(n)+1)/2)
}

// counted is a majority that also counts how often hash has come since it leads.
type counted struct {
	majority
	own uint32
}

func (m *counted) add(hash uint32) {
	if m.lead == 0 && m.hash != hash {
		m.own = 0
	}
	if m.majority.add(hash); m.hash == hash {
		m.own++
	}
}

// least is at least the share of hash among n; it lacks what came before hash was
// in the lead.
func (m *counted) least(n uint32) float64 {
	if n == 0 {
		return 0
	}
	return float64(m.own) / float64(n)
}

// bitmap counts different things by linear counting (Whang et al., 1990). It is
// within 10% up to twice its bits, and full at about six times.
type bitmap [4]uint64

func (b *bitmap) add(hash uint32) { b[hash>>6&3] |= 1 << (hash & 63) }

func (b *bitmap) count() float64 {
	const size = 256
	zero := size
	for _, w := range b {
		zero -= bits.OnesCount64(w)
	}
	if zero == 0 {
		return size * math.Ln2 * 8
	}
	return size * math.Log(size/float64(zero))
}

// features are what is known of the clicks of one source in one window. It has
// no pointers: a checkpoint holds its bytes.
type features struct {
	begin, last int64 // µs
	n           uint32
	labelled    uint32

	affiliate                              counted
	link, agent, referrer, languages, peer majority

	links, agents, peers bitmap // peers: the addresses of a network, the networks of others
	countries            uint64

	// The gaps between clicks, in seconds.
	gaps     uint32
	steady   uint32 // within a tenth of the one before
	inStep   bool   // the last one is
	gap      float32
	mean, m2 float32 // by Welford

	surprise float32 // of the agents, summed: log2 of one over their share in the fleet
}

// add counts a click.
func (f *features) add(ev *event, peer uint32) {
	if f.n == 0 {
		f.begin, f.last = ev.at, ev.at
	} else {
		f.addGap(ev.at)
	}
	f.n++
	if ev.labelled {
		f.labelled++
	}
	agent, link := ev.agent.small(), ev.link.small()
	f.affiliate.add(ev.affiliate.small())
	f.link.add(link)
	f.agent.add(agent)
	f.referrer.add(ev.referrer.small())
	f.languages.add(ev.languages.small())
	f.peer.add(peer)
	f.links.add(link)
	f.agents.add(agent)
	f.peers.add(peer)
	f.countries |= 1 << (ev.country % 61)
	f.surprise += ev.surprise
}

func (f *features) addGap(at int64) {
	gap := float32(at-f.last) / 1e6
	if gap < 0 { // of a node that is a little behind
		gap = -gap
	} else {
		f.last = at
	}
	if f.inStep = f.gaps > 0 && gap >= 0.9*f.gap && gap <= 1.1*f.gap; f.inStep {
		f.steady++
	}
	f.gap = gap
	f.gaps++
	delta := gap - f.mean
	f.mean += delta / float32(f.gaps)
	f.m2 += delta * (gap - f.mean)
}

// variation is the coefficient of variation of the gaps: 1 for independent
// visitors, 0 for a clock.
func (f *features) variation() float64 {
	if f.gaps < 2 || f.mean <= 0 {
		return math.NaN()
	}
	return math.Sqrt(float64(f.m2)/float64(f.gaps-1)) / float64(f.mean)
}

// steadiness is the share of gaps that are within a tenth of the one before:
// 0.05 for independent visitors.
func (f *features) steadiness() float64 {
	if f.gaps < 2 {
		return 0
	}
	return float64(f.steady) / float64(f.gaps-1)
}

// seconds is how long the window has been open, at least a second.
func (f *features) seconds() float64 { return max(1, float64(f.last-f.begin)/1e6) }

// rate is clicks per second.
func (f *features) rate() float64 { return float64(f.n) / f.seconds() }
