package table

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/affleet/affleet/proto/link"
)

// ids numbers builders. 0 is none.
var ids atomic.Uint64

// maxHint bounds what a hint may cost before anything is put, in links.
const maxHint = 64 << 20

// Builder makes a Table. It is used by one goroutine, and no more after Build.
type Builder struct {
	contents
	id      uint64 // what it owns is marked with this; 0 once it has built
	line    uint64
	sharing bool // shards is still the list of the table that is edited
	each    int  // links expected per shard of a full build; 0 in an edit
	bytes   int  // of all links that were put, for the mean
	puts    int
	many    bool // as many are put at once as an import does

	underWay plansUnderWay
}

// NewBuilder begins a table from nothing. The hint is the number of entries to
// come, or 0; it may be wrong.
func NewBuilder(hint int) *Builder {
	hint = min(max(hint, 0), maxHint)
	b := &Builder{id: ids.Add(1)}
	b.line, b.base = b.id, b.id
	b.bits = uint8(bits.Len(uint(hint / (shardLinks(hint) * 3 / 4))))
	b.each = hint>>b.bits + 1
	b.shards = make([]*shard, 1<<b.bits)
	for i := range b.shards { // each by itself: of an array, one would keep the memory of all
		b.shards[i] = &shard{depth: b.bits, owner: b.id, line: b.line}
	}
	return b
}

// Edit begins a table that differs from t by what is put and deleted. It shares
// what is not touched with t, which stays as it is. Any number of edits may
// begin from one table, at any time; the first of them is the cheapest.
func (t *Table) Edit() *Builder {
	b := t.EditAside()
	if t.claimed.CompareAndSwap(false, true) {
		b.line = t.line
	}
	return b
}

// Len is the number of entries.
func (b *Builder) Len() int { return b.len() }

// LinkEntries is the number of links, with those that are only held.
func (b *Builder) LinkEntries() int { return b.links + b.heldLinks }

// Size is the number of bytes of all keys and values.
func (b *Builder) Size() int { return b.size }

// Hash is the set hash of all entries.
func (b *Builder) Hash() link.SetHash { return b.hash }

// EditAside is Edit for a side line: the table that comes of it costs more for each
// shard that it touches, and the next Edit of t is still the cheapest.
func (t *Table) EditAside() *Builder {
	b := &Builder{contents: t.contents, id: ids.Add(1), sharing: true}
	b.line = b.id
	return b
}

// Build gives the table, as version v. The builder is spent.
func (b *Builder) Build(v Version) *Table {
	return b.build(v, nil)
}

// BuildOver gives a table that shows something else than what was verified: it
// has the version of verified, which it gives when it is asked. The builder is
// spent.
func (b *Builder) BuildOver(verified *Table) *Table {
	return b.build(verified.version, verified)
}

func (b *Builder) build(v Version, verified *Table) *Table {
	b.check()
	if b.each > 0 {
		b.trim()
	}
	t := &Table{version: v, contents: b.contents, line: b.line, verified: verified}
	t.anyHost = noHost
	if it := t.contents.hosts.get(nameHash(anyHost), anyHost); it != nil {
		t.anyHost = it
	}
	*b = Builder{}
	return t
}

func (b *Builder) check() {
	if b.id == 0 {
		panic("BUG: table builder used after Build")
	}
}

// trim gives back what was too much room for the entries of a full build.
func (b *Builder) trim() {
	var all []*shard
	for i := 0; i < len(b.shards); {
		s := b.shards[i]
		all = append(all, s)
		i += 1 << (b.bits - s.depth)
	}
	inParallel(workers(), len(all), func(i int) { all[i].trim() })
}

// Put puts an entry, or replaces the one with this key. Both are copied. It is
// an error, and changes nothing, if the key is none, does not belong to the
// value, or the value does not compile; the error names the key. See Hold.
func (b *Builder) Put(key, value []byte) error {
	b.check()
	err := b.put(key, value)
	if err == nil {
		b.unhold(key)
	}
	return putError(key, err)
}

func putError(key []byte, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("put %.300q: %w", key, err)
}

func (b *Builder) put(key, value []byte) error {
	kind, id := cutKind(key)
	switch {
	case len(value) > link.MaxValue:
		return fmt.Errorf("takes %d bytes, and at most %d are allowed", len(value), link.MaxValue)
	case kind == link.Links:
		return b.putLink(id, value)
	case kind == link.Domains:
		return b.putDomain(key, id, value)
	case kind == link.Affiliates:
		return b.putAffiliate(key, id, value)
	case kind == link.Blocks:
		return b.putOneBlock(key, id, value)
	case kind == link.Policies:
		return b.putPolicy(key, id, value)
	}
	return b.putOther(key, value)
}

var (
	errName   = errors.New("holds another resource")
	errNoName = errors.New("is not the name of a resource")
)

func (b *Builder) putDomain(key, id, value []byte) error {
	value = bytes.Clone(value)
	d, err := link.CompileDomain(value)
	if err != nil {
		return err
	}
	if d.Host != string(id) {
		return errName
	}
	it := b.hosts.edit(b.id, nameHash(id), id)
	if it.v.domain == nil {
		b.domains++
	}
	b.account(key, it.v.value, it.v.domain != nil, value)
	it.v.domain, it.v.policy, it.v.value = d, d.Policy(), value
	return nil
}

func (b *Builder) putAffiliate(key, id, value []byte) error {
	value = bytes.Clone(value)
	a, err := link.CompileAffiliate(value)
	if err != nil {
		return err
	}
	if a.ID != string(id) {
		return errName
	}
	it := b.affiliates.edit(b.id, nameHash(id), id)
	b.account(key, it.v.value, it.v.compiled != nil, value)
	it.v = affiliate{a, value}
	return nil
}

// putOther keeps the bytes of kinds that only a newer release knows.
func (b *Builder) putOther(key, value []byte) error {
	if !isOpaque(key) {
		return errNoName
	}
	n := b.others.n
	it := b.others.edit(b.id, nameHash(key), key)
	b.account(key, it.v, b.others.n == n, value)
	it.v = append([]byte{}, value...)
	return nil
}

// account replaces, or adds, an entry in the sums of the whole.
func (b *Builder) account(key, old []byte, had bool, value []byte) {
	if had {
		b.discount(key, old)
	}
	b.hash = b.hash.Add(link.HashEntry(key, value))
	b.size += len(key) + len(value)
}

// discount takes an entry out of the sums of the whole.
func (b *Builder) discount(key, value []byte) {
	b.hash = b.hash.Sub(link.HashEntry(key, value))
	b.size -= len(key) + len(value)
}

// Delete deletes the entry with a key, and says whether there was one.
func (b *Builder) Delete(key []byte) bool {
	b.check()
	if b.unhold(key) {
		return true
	}
	kind, id := cutKind(key)
	switch kind {
	case link.Links:
		return b.deleteLink(id)
	case link.Domains:
		it := b.hosts.get(nameHash(id), id)
		if it == nil || it.v.domain == nil {
			return false
		}
		b.discount(key, it.v.value)
		b.domains--
		it = b.hosts.edit(b.id, it.hash, id)
		it.v.domain, it.v.policy, it.v.value = nil, 0, nil
		b.forget(it)
	case link.Affiliates:
		it := b.affiliates.get(nameHash(id), id)
		if it == nil {
			return false
		}
		b.discount(key, it.v.value)
		b.affiliates.remove(b.id, it.hash, id)
	case link.Blocks:
		return b.deleteBlock(key, id)
	case link.Policies:
		return b.deletePolicy(key, id)
	default:
		it := b.others.get(nameHash(key), key)
		if it == nil {
			return false
		}
		b.discount(key, it.v)
		b.others.remove(b.id, it.hash, key)
	}
	return true
}

// forget removes a host of which nothing is left.
func (b *Builder) forget(it *item[host]) {
	if it.v.links == 0 && it.v.domain == nil {
		b.hosts.remove(b.id, it.hash, []byte(it.name))
	}
}

// cutKind splits a key into its kind, 0 for one that is not compiled, and id.
func cutKind(key []byte) (link.Kind, []byte) {
	for _, k := range [...]link.Kind{link.Links, link.Domains, link.Affiliates, link.Blocks, link.Policies} {
		if p := k.Prefix(); len(key) >= len(p) && string(key[:len(p)]) == p {
			return k, key[len(p):]
		}
	}
	return 0, key
}

// maxOpaqueKey bounds the keys of kinds that this release does not know, in
// bytes.
const maxOpaqueKey = 16 << 10

// isOpaque says that a key has the shape of a name, of a kind that this release
// does not know.
func isOpaque(key []byte) bool {
	if !hasShape(key) {
		return false
	}
	for _, k := range link.Kinds {
		if bytes.HasPrefix(key, []byte(k.Prefix())) {
			return false
		}
	}
	return true
}
