package guard

import (
	"net/netip"

	"github.com/zeebo/xxh3"

	"github.com/affleet/affleet/dataplane/clickstream"
)

// kind is a kind of source of clicks.
type kind int

const (
	kindAddress kind = iota // an IPv4 address, or an IPv6 /64
	kindNetwork             // a /24 or a /48
	kindAgent               // a user agent
	kindASN                 // an autonomous system
	kinds
)

// word is a string of a click. The key is never 0 for one that is not empty.
type word struct {
	key  uint64
	text string
}

func (w *word) set(s string) {
	w.text, w.key = s, 0
	if s != "" {
		w.key = xxh3.HashString(s) | 1
	}
}

// small is the key in 32 bits.
func (w *word) small() uint32 { return uint32(w.key >> 32) }

// event is a click as the engine sees it.
type event struct {
	at       int64 // µs
	boot     uint32
	sequence uint64

	prefix                                      [2]netip.Prefix // by kind: address, network
	prefixKey                                   [2]uint64
	affiliate, link, agent, referrer, languages word
	country                                     uint16
	asn                                         uint32
	labelled                                    bool // by the node, with more than what robots say of themselves
	robot                                       bool // it says so itself
	surprise                                    float32
}

// clockSlack is how far ahead of the stream's clock a node's may be. A click
// that says more gets the stream's time: one node whose clock is wrong must not
// move the windows of all.
const clockSlack = 5_000_000

// read takes from a click what matters. latest is when the stream took it, in
// µs, or 0.
func (ev *event) read(c *clickstream.Click, latest int64) {
	ev.at, ev.sequence = c.Time.UnixMicro(), c.Sequence
	if latest > 0 && ev.at > latest+clockSlack {
		ev.at = latest
	}
	ev.affiliate.set(c.Affiliate)
	ev.link.set(c.Link)
	ev.agent.set(c.UserAgent)
	ev.referrer.set(c.Referrer)
	ev.languages.set(c.Languages)
	ev.country = 0
	if len(c.Country) == 2 {
		ev.country = uint16(c.Country[0])<<8 | uint16(c.Country[1])
	}
	ev.asn = c.ASN
	ev.prefixes(c.Address)
	ev.labelled, ev.robot = false, false
	for i := range c.Labels {
		switch c.Labels[i].Name {
		case "bot", "preview", "prefetch", "head":
			ev.robot = true
		}
		ev.labelled = true
	}
}

// prefixes finds the address and the network. A hashed address is neither.
func (ev *event) prefixes(a clickstream.Address) {
	ev.prefixKey = [2]uint64{}
	p, ok := a.Prefix()
	if !ok {
		return
	}
	addr := p.Addr()
	narrow, wide := 64, 48
	if addr.Is4() {
		narrow, wide = 32, 24
	}
	if p.Bits() >= narrow {
		ev.prefix[kindAddress] = netip.PrefixFrom(addr, narrow)
		if narrow < p.Bits() {
			ev.prefix[kindAddress] = ev.prefix[kindAddress].Masked()
		}
		ev.prefixKey[kindAddress] = prefixKey(ev.prefix[kindAddress])
	}
	if p.Bits() > wide {
		p = netip.PrefixFrom(addr, wide).Masked()
	}
	ev.prefix[kindNetwork], ev.prefixKey[kindNetwork] = p, prefixKey(p)
}

func prefixKey(p netip.Prefix) uint64 {
	var b [17]byte
	full := p.Addr().As16()
	copy(b[:], full[:])
	b[16] = byte(p.Bits())
	return xxh3.Hash(b[:]) | 1
}

// key is the click's source of a kind; 0 for none.
func (ev *event) key(k kind) uint64 {
	switch k {
	case kindAddress, kindNetwork:
		return ev.prefixKey[k]
	case kindAgent:
		return ev.agent.key
	}
	if ev.asn == 0 {
		return 0
	}
	return asnKey(ev.asn)
}

func asnKey(asn uint32) uint64 { return mix(uint64(asn)) | 1 }

// mix spreads a number over 64 bits (the finalizer of splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// putPrefix and getPrefix keep a prefix without pointers.
func putPrefix(p netip.Prefix) (b [18]byte) {
	full := p.Addr().As16()
	copy(b[:], full[:])
	b[16] = byte(p.Bits())
	if p.Addr().Is4() {
		b[17] = 4
	}
	return b
}

func getPrefix(b [18]byte) netip.Prefix {
	addr := netip.AddrFrom16([16]byte(b[:16]))
	if b[17] == 4 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, int(b[16]))
}
