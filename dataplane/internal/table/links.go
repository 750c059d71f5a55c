package table

import (
	"bytes"
	"errors"
	"slices"

	"github.com/affleet/affleet/proto/link"
)

// pending is a link on its way into a table. prepare and insert do the work,
// for many links at the same time; account is what is left for one goroutine.
type pending struct {
	compiled link.Compiled
	host     uint64       // the hash of its domain
	at       uint64       // the hash of its domain and path
	sum      link.SetHash // what it adds to the set hash
	size     int          // what was appended to the arena; 0 if there was nothing to do
	grown    int          // bytes of keys and values that there are more
	added    bool         // there was no link with this key
	plan     *link.Plan   // of its own, nil if it has none or the builder has it
	bare     []byte       // what is stored in place of the value, once hold has been called; nil: the value
	holds    uint64       // the key of its plan
	was      uint64       // the key of the plan of the link that it replaced
	replaced bool         // there was a link with a plan
	isLink   bool         // the entry is a link
	err      error        // why it is left out
}

var errSameHash = errors.New("too many links have the same hash")

// prepare compiles a link and checks that it is the one with this id.
func (b *Builder) prepare(p *pending, id, value []byte) error {
	var err error
	if p.compiled, err = link.Compile(value); err != nil {
		return err
	}
	if p.compiled.HasPlan() {
		if _, known := b.findPlan(p.compiled.Plan(value)); known == nil {
			if p.plan, err = b.underWay.compile(p.compiled.Plan(value)); err != nil {
				return err
			}
		}
	}
	domain, path := p.compiled.Domain(value), p.compiled.Path(value)
	if n := len(domain); len(id) != n+len(path) || string(id[:n]) != string(domain) || string(id[n:]) != string(path) {
		return errName
	}
	p.host = nameHash(domain)
	p.at = link.HashKey(p.host, path)
	p.sum = hashLink(id, value)
	return nil
}

var linksPrefix = link.Links.Prefix()

// hold makes a prepared link refer to its plan, if it has one.
func (b *Builder) hold(p *pending, value []byte) {
	if p.compiled.HasPlan() {
		p.holds = b.holdPlan(p.compiled.Plan(value), p.plan)
		p.bare = p.compiled.AppendBare(nil, value, p.holds)
	}
}

// release gives back the plans that are not referred to after an insertion: of
// the link that was replaced, or the link's own if it was left out.
func (b *Builder) release(p *pending) {
	if p.bare != nil && p.size == 0 {
		b.releasePlan(p.holds)
	}
	if p.replaced {
		b.releasePlan(p.was)
	}
}

// stored is what stands in the arena for a link that was put with a value.
func (p *pending) stored(value []byte) []byte {
	if p.bare != nil {
		return p.bare
	}
	return value
}

// hashLink is link.HashEntry of a link by its id.
func hashLink(id, value []byte) link.SetHash {
	var buf [512]byte
	return link.HashEntry(append(append(buf[:0], linksPrefix...), id...), value)
}

// insert puts a prepared link into its shard. It touches only that, its places
// in the list of shards, and p.
func (b *Builder) insert(p *pending, id, value []byte) error {
	whole := value
	value = p.stored(value)
	domain, path := p.compiled.Domain(value), p.compiled.Path(value)
	var was link.Compiled
	s := b.shard(p.at)
	slot, old := s.find(p.at, domain, path, &was)
	if old != nil && bytes.Equal(old, value) {
		p.size = 0
		return nil
	}
	p.size = entryHead + len(value)
	if s.live()+p.size > arenaLimit {
		p.size = 0
		return errSameHash
	}
	held := s
	s = b.own(p.at)
	room := cap(s.arena)-len(s.arena) >= p.size && (old != nil || !s.full())
	if !room {
		b.makeRoom(s, p.size)
	}
	if !room || held.line != s.line { // the index is another one
		slot, old = s.find(p.at, domain, path, &was)
	}
	if old != nil {
		s.unshare()
		before := b.whole(&was, old)
		p.sum = p.sum.Sub(hashLink(id, before))
		p.grown = len(whole) - len(before)
		if p.replaced = was.IsBare(); p.replaced {
			p.was = was.PlanKey(old)
		}
		s.dead += entryHead + len(old)
	} else {
		p.grown = len(linksPrefix) + len(id) + len(whole)
		s.n++
	}
	p.added = old == nil
	s.point(slot, p.at, s.push(&p.compiled, value))
	return nil
}

// accountLink adds an inserted link to the sums of the whole, and splits the
// shards that have become too large.
func (b *Builder) accountLink(p *pending, value []byte) {
	value = p.stored(value)
	b.release(p)
	domain := p.compiled.Domain(value)
	if p.size == 0 {
		return
	}
	b.hash = b.hash.Add(p.sum)
	b.size += p.grown
	b.bytes += p.size
	b.puts++
	if p.added {
		b.links++
		b.hosts.edit(b.id, p.host, domain).v.count(b.id, p.compiled.Path(value), 1)
	}
	for s := b.shard(p.at); s.over(shardLinks(b.links)) && s.parts(); s = b.shard(p.at) {
		b.split(p.at, s)
	}
}

func (b *Builder) putLink(id, value []byte) error {
	var p pending
	err := b.prepare(&p, id, value)
	b.underWay.forget()
	if err != nil {
		return err
	}
	b.hold(&p, value)
	if err := b.insert(&p, id, value); err != nil {
		b.release(&p)
		return err
	}
	b.accountLink(&p, value)
	return nil
}

func (b *Builder) deleteLink(id []byte) bool {
	slash := bytes.IndexByte(id, '/')
	if slash < 0 {
		return false
	}
	domain, path := id[:slash], id[slash:]
	sum := nameHash(domain)
	h := link.HashKey(sum, path)
	var c link.Compiled
	slot, old := b.shard(h).find(h, domain, path, &c)
	if old == nil {
		return false
	}
	whole := b.whole(&c, old)
	b.hash = b.hash.Sub(hashLink(id, whole))
	b.size -= len(linksPrefix) + len(id) + len(whole)
	b.links--
	if c.IsBare() {
		defer b.releasePlan(c.PlanKey(old))
	}
	s := b.own(h)
	s.unshare()
	s.free(slot)
	s.n--
	s.dead += entryHead + len(old)
	if s.dead > s.live()/8+1024 {
		s.resize(s.live() + s.live()/32)
	}
	it := b.hosts.edit(b.id, sum, domain)
	it.v.count(b.id, path, -1)
	b.forget(it)
	return true
}

// own gives the shard of a hash for changing.
func (b *Builder) own(h uint64) *shard {
	s := b.shard(h)
	if s.owner == b.id {
		return s
	}
	mine := *s
	mine.owner, mine.shared = b.id, true
	if mine.line != b.line {
		mine.line = b.line
		mine.arena = slices.Clip(s.arena) // what is behind belongs to another line
		mine.unshare()                    // and so do free slots
	}
	b.place(h, &mine)
	return &mine
}

// place puts a shard where the hash of one of its links says.
func (b *Builder) place(h uint64, s *shard) {
	b.unshare()
	first := b.firstPlace(s, h)
	for i := range 1 << (b.bits - s.depth) {
		b.shards[first+i] = s
	}
}

// firstPlace is the first of a shard's places in the list of shards.
func (b *Builder) firstPlace(s *shard, h uint64) int {
	return int(h>>(64-b.bits)) >> (b.bits - s.depth) << (b.bits - s.depth)
}

// unshare makes the list of shards the builder's own.
func (b *Builder) unshare() {
	if b.sharing {
		b.shards, b.sharing = slices.Clone(b.shards), false
	}
}

// split divides a shard, and doubles the list of shards if it has to.
func (b *Builder) split(h uint64, s *shard) {
	if s.depth == b.bits {
		wide := make([]*shard, 2*len(b.shards))
		for i, s := range b.shards {
			wide[2*i], wide[2*i+1] = s, s
		}
		b.shards, b.sharing = wide, false
		b.bits++
	}
	bit := uint64(1) << (63 - s.depth)
	zero, one := s.split(b.id, b.line)
	b.place(h&^bit, zero)
	b.place(h|bit, one)
}

// makeRoom makes room for one more entry of a size in a shard.
func (b *Builder) makeRoom(s *shard, size int) {
	if cap(s.arena)-len(s.arena) < size {
		want := s.live() + s.live()/spareShare + size
		if b.many { // and more to come: copied a third as often
			want += 2 * (s.live() / spareShare)
		}
		if s.n < b.each {
			// On the way to what a full build expects, in few steps.
			expect := (b.each + b.each/32 + 8) * (b.bytes + size) / (b.puts + 1)
			want = max(want, min(expect, 64*s.live()+16*size))
		}
		s.resize(want)
	}
	if s.full() {
		want := s.n + s.n/4 + 1
		if s.n < b.each {
			want = max(want, min(b.each+b.each/32, 32*want))
		}
		s.reindex(want, s.arena, func(off, _ uint32, _ []byte) uint32 { return off })
	}
}
