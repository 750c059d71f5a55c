package table

import (
	"bytes"
	"iter"
	"math/rand/v2"
	"sync/atomic"

	"github.com/affleet/affleet/proto/link"
)

// Version is a state's place in the one order of all states.
type Version struct {
	Epoch    uint64 // of the store; random
	Revision int64  // of etcd: the state includes it and everything before it
}

// seed keeps whoever can choose names from choosing where they go.
var seed = rand.Uint64()

// Table is one state: links, and the resources that go with them. It never
// changes. Make one with a Builder.
type Table struct {
	version  Version
	contents contents
	anyHost  *item[host]
	line     uint64
	claimed  atomic.Bool // a builder has the right to append to the arenas
	verified *Table      // what this one is shown instead of; nil: itself
}

// contents is what tables and builders have in common. A copy shares all that
// is not changed after it.
type contents struct {
	base       uint64   // the builder that began from nothing
	shards     []*shard // by the upper bits of a link's hash; a power of two
	bits       uint8
	links      int
	hash       link.SetHash
	hosts      registry[host]      // by host, with "*": what has links or a domain
	affiliates registry[affiliate] // by id
	plans      registry[plan]      // by key: what links have in common
	blocks     blocks
	policies   policies
	others     registry[[]byte] // by name: the values of kinds that this release does not know
	held       registry[[]byte] // by name: the values of what cannot be served
	domains    int
	heldLinks  int
	size       int // bytes of all keys and values
}

// affiliate is a compiled affiliate and its value.
type affiliate struct {
	compiled *link.Affiliate
	value    []byte
}

// Version is the version that the table was built as.
func (t *Table) Version() Version { return t.version }

// Base is a number that the table shares with those that came of it by edits, and
// with no others: two with different ones share no memory.
func (t *Table) Base() uint64 { return t.contents.base }

// Len is the number of entries: resources of every kind.
func (t *Table) Len() int { return t.contents.len() }

// Links is the number of links that may be found.
func (t *Table) Links() int { return t.contents.links }

// LinkEntries is the number of links, with those that are only held.
func (t *Table) LinkEntries() int { return t.contents.links + t.contents.heldLinks }

// Unserved is the number of entries that nobody can find: those of kinds that
// this release does not know, and those that are only held. They count and are
// hashed like the others, and nothing else.
func (t *Table) Unserved() int { return t.contents.others.n + t.contents.held.n }

// Size is the number of bytes of all keys and values.
func (t *Table) Size() int { return t.contents.size }

// Verified is the table that this one is shown instead of: itself, but for one
// of BuildOver.
func (t *Table) Verified() *Table {
	if t.verified != nil {
		return t.verified
	}
	return t
}

// Hash is the set hash of all entries.
func (t *Table) Hash() link.SetHash { return t.contents.hash }

func (c *contents) len() int {
	return c.links + c.domains + c.affiliates.n + c.blocks.byID.n + c.policies.len() + c.others.n + c.held.n
}

// has says whether there is an entry with a key.
func (c *contents) has(key []byte) bool {
	if c.held.get(nameHash(key), key) != nil {
		return true
	}
	switch kind, id := cutKind(key); kind {
	case link.Links:
		i := bytes.IndexByte(id, '/')
		if i < 0 {
			return false
		}
		var l link.Compiled
		h := link.HashKey(nameHash(id[:i]), id[i:])
		_, value := c.shard(h).find(h, id[:i], id[i:], &l)
		return value != nil
	case link.Domains:
		it := c.hosts.get(nameHash(id), id)
		return it != nil && it.v.domain != nil
	case link.Affiliates:
		return c.affiliates.get(nameHash(id), id) != nil
	case link.Blocks:
		return c.blocks.byID.get(nameHash(id), id) != nil
	case link.Policies:
		return c.policies.get(id) != nil
	}
	return c.others.get(nameHash(key), key) != nil
}

// shard is the shard of a link's hash.
func (c *contents) shard(h uint64) *shard { return c.shards[h>>(64-c.bits)] }

// All gives every key with its value, in no order. The value belongs to the
// table and never changes; the key is valid until the next one is asked for.
func (t *Table) All() iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		var key []byte
		c := &t.contents
		ok := c.hosts.each(func(it *item[host]) bool {
			if it.v.domain == nil {
				return true
			}
			key = append(append(key[:0], link.Domains.Prefix()...), it.name...)
			return yield(key, it.v.value)
		}) && c.affiliates.each(func(it *item[affiliate]) bool {
			key = append(append(key[:0], link.Affiliates.Prefix()...), it.name...)
			return yield(key, it.v.value)
		}) && c.blocks.byID.each(func(it *item[block]) bool {
			key = append(append(key[:0], link.Blocks.Prefix()...), it.name...)
			return yield(key, it.v.value)
		}) && c.policies.each(func(prefix, name string, value []byte) bool {
			key = append(append(append(key[:0], link.Policies.Prefix()...), prefix...), name...)
			return yield(key, value)
		}) && c.others.each(func(it *item[[]byte]) bool {
			key = append(key[:0], it.name...)
			return yield(key, it.v)
		}) && c.held.each(func(it *item[[]byte]) bool {
			key = append(key[:0], it.name...)
			return yield(key, it.v)
		})
		for i := 0; ok && i < len(c.shards); {
			s := c.shards[i]
			ok = s.each(func(_, _ uint32, l *link.Compiled, value []byte) bool {
				key = appendLinkName(key[:0], l, value)
				return yield(key, c.whole(l, value))
			})
			i += 1 << (c.bits - s.depth)
		}
	}
}

// appendLinkName appends the key of a link.
func appendLinkName(dst []byte, c *link.Compiled, value []byte) []byte {
	dst = append(dst, linksPrefix...)
	dst = append(dst, c.Domain(value)...)
	return append(dst, c.Path(value)...)
}

// Live is the table that is being served: one atomic pointer. The zero value
// holds none. All methods may be called at the same time.
type Live struct{ table atomic.Pointer[Table] }

// Load gives the table, nil as long as there is none.
func (l *Live) Load() *Table { return l.table.Load() }

// Store serves t from now on. Lookups under way end with the table they have.
func (l *Live) Store(t *Table) { l.table.Store(t) }
