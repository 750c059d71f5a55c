package table

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/affleet/affleet/proto/link"
)

// blocks are the blocks of a table, and how they are found: by what they match.
// Several may match the same. A list of them never changes once it is there.
type blocks struct {
	byID        registry[block]
	byAgent     registry[[]*link.Block]
	byAffiliate registry[[]*link.Block]
	// Prefixes of addresses. nil: there are none. It is changed in place by the
	// builder that owns it, and shares all that is not touched with those of
	// other tables.
	byPrefix *bart.Table[[]*link.Block]
	owner    uint64
}

// block is a compiled block and its value.
type block struct {
	compiled *link.Block
	value    []byte
}

// policies are the policies of a table, by host, by affiliate, and the one of
// everything.
type policies struct {
	any         *policy
	byDomain    registry[policy]
	byAffiliate registry[policy]
}

// policy is a compiled policy and its value.
type policy struct {
	compiled *link.LabelPolicies
	value    []byte
}

// AppendBlocks makes a Table a link.Rulebook. The blocks belong to the table. It
// does not allocate beyond dst.
func (t *Table) AppendBlocks(dst []*link.Block, addr netip.Addr, userAgent, affiliate []byte) []*link.Block {
	b := &t.contents.blocks
	if b.byPrefix != nil && addr.IsValid() {
		dst = b.appendPrefixes(dst, addr)
	}
	if b.byAgent.n > 0 && len(userAgent) > 0 {
		if it := b.byAgent.get(nameHash(userAgent), userAgent); it != nil {
			dst = append(dst, it.v...)
		}
	}
	if b.byAffiliate.n > 0 && len(affiliate) > 0 {
		if it := b.byAffiliate.get(nameHash(affiliate), affiliate); it != nil {
			dst = append(dst, it.v...)
		}
	}
	return dst
}

// appendPrefixes appends the blocks of all prefixes that an address is in, the
// longest first. Most addresses are in none, which one look says.
func (b *blocks) appendPrefixes(dst []*link.Block, addr netip.Addr) []*link.Block {
	if !b.byPrefix.Contains(addr) {
		return dst
	}
	for length := addr.BitLen(); length >= 0; {
		at, found, ok := b.byPrefix.LookupPrefixLPM(netip.PrefixFrom(addr, length))
		if !ok {
			break
		}
		dst = append(dst, found...)
		length = at.Bits() - 1
	}
	return dst
}

// Policies gives what holds for a host and an affiliate. It does not allocate.
func (t *Table) Policies(host, affiliate []byte) (in link.InForce) {
	p := &t.contents.policies
	if p.any != nil {
		in.Any = p.any.compiled
	}
	if p.byDomain.n > 0 {
		it := p.byDomain.get(nameHash(host), host)
		if it == nil {
			it = p.byDomain.get(nameHash(anyHost), anyHost)
		}
		if it != nil {
			in.Domain = it.v.compiled
		}
	}
	if p.byAffiliate.n > 0 && len(affiliate) > 0 {
		if it := p.byAffiliate.get(nameHash(affiliate), affiliate); it != nil {
			in.Affiliate = it.v.compiled
		}
	}
	return in
}

// Blocks is the number of blocks that are in force or were, until they are
// deleted.
func (t *Table) Blocks() int { return t.contents.blocks.byID.n }

// len is the number of policies.
func (p *policies) len() int {
	n := p.byDomain.n + p.byAffiliate.n
	if p.any != nil {
		n++
	}
	return n
}

func (b *Builder) putOneBlock(key, id, value []byte) error {
	value = bytes.Clone(value)
	compiled, err := link.CompileBlock(value)
	if err != nil {
		return err
	}
	if compiled.ID != string(id) {
		return errName
	}
	it := b.blocks.byID.edit(b.id, nameHash(id), id)
	old := it.v
	b.account(key, old.value, old.compiled != nil, value)
	it.v = block{compiled, value}
	if old.compiled != nil {
		b.unlist(old.compiled)
	}
	b.list(compiled)
	return nil
}

// list makes a block findable by what it matches.
func (b *Builder) list(c *link.Block) {
	b.relist(c, func(all []*link.Block) []*link.Block { return append(slices.Clip(all), c) })
}

// unlist is the opposite of list.
func (b *Builder) unlist(c *link.Block) {
	b.relist(c, func(all []*link.Block) []*link.Block {
		i := slices.Index(all, c)
		return slices.Concat(all[:i], all[i+1:])
	})
}

// relist replaces the list of the blocks that match what c matches.
func (b *Builder) relist(c *link.Block, change func([]*link.Block) []*link.Block) {
	switch {
	case c.Prefix.IsValid():
		b.relistPrefix(c.Prefix, change)
	case c.UserAgent != "":
		b.relistName(&b.blocks.byAgent, c.UserAgent, change)
	default:
		b.relistName(&b.blocks.byAffiliate, c.Affiliate, change)
	}
}

func (b *Builder) relistName(r *registry[[]*link.Block], name string, change func([]*link.Block) []*link.Block) {
	hash := nameHash([]byte(name))
	it := r.edit(b.id, hash, []byte(name))
	if it.v = change(it.v); len(it.v) == 0 {
		r.remove(b.id, hash, []byte(name))
	}
}

func (b *Builder) relistPrefix(p netip.Prefix, change func([]*link.Block) []*link.Block) {
	modify := func(all []*link.Block, _ bool) ([]*link.Block, bool) {
		all = change(all)
		return all, len(all) == 0
	}
	x := &b.blocks
	switch {
	case x.byPrefix == nil:
		x.byPrefix, x.owner = new(bart.Table[[]*link.Block]), b.id
		x.byPrefix.Modify(p, modify)
	case x.owner == b.id:
		x.byPrefix.Modify(p, modify)
	default:
		x.byPrefix = x.byPrefix.ModifyPersist(p, modify)
	}
	if x.byPrefix.Size() == 0 {
		x.byPrefix = nil
	}
}

func (b *Builder) deleteBlock(key, id []byte) bool {
	it := b.blocks.byID.get(nameHash(id), id)
	if it == nil {
		return false
	}
	b.discount(key, it.v.value)
	b.unlist(it.v.compiled)
	b.blocks.byID.remove(b.id, it.hash, id)
	return true
}

// slot gives where the policy of a scope is, or is to be: in a registry under a
// name, or nowhere in one if it is that of everything.
func (p *policies) slot(scope []byte) (r *registry[policy], name []byte) {
	if host, ok := bytes.CutPrefix(scope, domainsPrefix); ok {
		return &p.byDomain, host
	}
	if id, ok := bytes.CutPrefix(scope, affiliatesPrefix); ok {
		return &p.byAffiliate, id
	}
	return nil, nil
}

var (
	domainsPrefix    = []byte(link.Domains.Prefix())
	affiliatesPrefix = []byte(link.Affiliates.Prefix())
)

// get gives the policy of a scope, nil if there is none.
func (p *policies) get(scope []byte) *policy {
	r, name := p.slot(scope)
	if r == nil {
		if string(scope) == link.AnyHost {
			return p.any
		}
		return nil
	}
	it := r.get(nameHash(name), name)
	if it == nil {
		return nil
	}
	return &it.v
}

func (b *Builder) putPolicy(key, scope, value []byte) error {
	value = bytes.Clone(value)
	compiled, err := link.CompilePolicy(value)
	if err != nil {
		return err
	}
	if compiled.Scope != string(scope) {
		return errName
	}
	if old := b.policies.get(scope); old != nil {
		b.account(key, old.value, true, value)
	} else {
		b.account(key, nil, false, value)
	}
	if r, name := b.policies.slot(scope); r != nil {
		r.edit(b.id, nameHash(name), name).v = policy{compiled, value}
	} else {
		b.policies.any = &policy{compiled, value}
	}
	return nil
}

func (b *Builder) deletePolicy(key, scope []byte) bool {
	old := b.policies.get(scope)
	if old == nil {
		return false
	}
	b.discount(key, old.value)
	if r, name := b.policies.slot(scope); r != nil {
		r.remove(b.id, nameHash(name), name)
	} else {
		b.policies.any = nil
	}
	return true
}

// each calls f with the scope and the value of every policy until f gives false.
func (p *policies) each(f func(prefix, name string, value []byte) bool) bool {
	return (p.any == nil || f("", link.AnyHost, p.any.value)) &&
		p.byDomain.each(func(it *item[policy]) bool { return f(link.Domains.Prefix(), it.name, it.v.value) }) &&
		p.byAffiliate.each(func(it *item[policy]) bool { return f(link.Affiliates.Prefix(), it.name, it.v.value) })
}
