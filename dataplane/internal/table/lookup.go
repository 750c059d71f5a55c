package table

import (
	"math/bits"

	"github.com/affleet/affleet/proto/link"
)

var (
	anyHost = []byte(link.AnyHost)
	noHost  = new(item[host]) // for a host that is not known
)

// Lookup finds what may answer a request for a canonical host and path, in the
// order of link.Candidates, and sets all of m. What m then points at belongs to
// the table and never changes; it stays valid as long as it is held. An unknown
// affiliate is as none. Lookup does not allocate.
func (t *Table) Lookup(host, path []byte, m *link.Match) {
	*m = link.Match{}
	c := &t.contents
	sum := nameHash(host)
	own, all := c.hosts.get(sum, host), t.anyHost
	if own == nil {
		own = noHost
	}
	said := own
	if own.v.domain == nil {
		said = all
	}
	m.Domain = said.v.domain
	if said.v.policy != 0 {
		c.findSame(own, all, host, path, said.v.policy, m)
	} else {
		if own.v.links > 0 {
			h := link.HashPath(sum, path)
			_, m.Value = c.shard(h).find(h, host, path, &m.Link)
		}
		if m.Value == nil && all.v.links > 0 {
			h := link.HashPath(all.hash, path)
			_, m.Value = c.shard(h).find(h, anyHost, path, &m.Link)
		}
	}
	// What is found at a path that ends in a star may be a prefix link.
	if m.Value == nil || m.Link.IsPrefix() {
		if own.v.depths|all.v.depths == 0 || !c.findPrefix(own, all, host, path, said.v.policy, m) {
			return
		}
	}
	if m.Link.IsBare() {
		m.Plan = c.plan(&m.Link, m.Value)
	}
	if id := m.Link.Affiliate(m.Value); len(id) > 0 {
		if a := c.affiliates.get(nameHash(id), id); a != nil {
			m.Affiliate = a.v.compiled
		}
	}
}

// findSame finds the link whose path is the same under a policy.
func (c *contents) findSame(own, all *item[host], name, path []byte, policy link.Policy, m *link.Match) {
	if own.v.links > 0 {
		h := link.HashPath(own.hash, path)
		m.Value = c.shard(h).findSame(h, name, path, false, policy, &m.Link)
	}
	if m.Value == nil && all.v.links > 0 {
		h := link.HashPath(all.hash, path)
		m.Value = c.shard(h).findSame(h, anyHost, path, false, policy, &m.Link)
	}
}

// findPrefix finds the longest prefix link of the host, else of every host.
func (c *contents) findPrefix(own, all *item[host], name, path []byte, policy link.Policy, m *link.Match) bool {
	m.Value, m.Link = nil, link.Compiled{}
	var p link.Prefixes
	p.Find(path, policy)
	return c.longest(&p, own, name, path, policy, m) || c.longest(&p, all, anyHost, path, policy, m)
}

// longest finds the longest prefix link of a domain.
func (c *contents) longest(p *link.Prefixes, of *item[host], domain, path []byte, policy link.Policy, m *link.Match) bool {
	for left := p.Depths & of.v.depths; left != 0; {
		depth := bits.Len64(left) - 1
		left &^= 1 << depth
		stem := p.Stem(path, depth)
		h := link.HashPrefix(of.hash, stem)
		// A slash follows the stem: one that it ends in itself is another.
		m.Value = c.shard(h).findSame(h, domain, stem, true, policy&^link.IgnoreSlash, &m.Link)
		if m.Value != nil {
			return true
		}
	}
	return false
}
