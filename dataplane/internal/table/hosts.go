package table

import "github.com/affleet/affleet/proto/link"

// host is what is known about one host.
type host struct {
	links  int // with prefix links
	depths uint64
	counts *depthCounts
	domain *link.Domain
	value  []byte // the domain's; nil, as domain is, if there is none
	policy link.Policy
}

// depthCounts says how many prefix links of each depth a host has. Bit d of
// host.depths is set where that is not 0, so that only those depths are looked
// at; without any, there are no counts.
type depthCounts struct {
	owner uint64 // the builder that may change it in place
	n     [link.MaxPrefixDepth + 1]uint32
}

// count counts a link that came (1) or went (-1).
func (h *host) count(owner uint64, path []byte, by int) {
	h.links += by
	if !link.IsPrefix(path) {
		return
	}
	c := h.counts
	switch {
	case c == nil:
		c = &depthCounts{owner: owner}
	case c.owner != owner:
		mine := *c
		mine.owner = owner
		c = &mine
	}
	depth := link.Depth(path)
	c.n[depth] += uint32(by) //nolint:gosec // 1 or -1: what wraps, unwraps
	if h.depths |= 1 << depth; c.n[depth] == 0 {
		h.depths &^= 1 << depth
	}
	if h.counts = c; h.depths == 0 {
		h.counts = nil
	}
}
