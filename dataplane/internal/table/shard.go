package table

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
	"sync/atomic"

	"github.com/zeebo/xxh3"

	"github.com/affleet/affleet/proto/link"
)

// A shard holds at most maxLinks links, more in a table of more than two million, and
// linkBytes for each of these once they are more than minLinks: beyond that it is split
// in two.
const (
	maxLinks   = 2048
	maxOfLarge = 4 * maxLinks
	largeParts = 1024 // of a large table, of which each may be a shard
	minLinks   = 64
	linkBytes  = 256
	maxDepth   = 24 // bits of the hash that tell shards apart
)

// shardLinks is how many links a shard may have where there are so many in all. Larger
// shards are fewer, for the garbage collector and for the list that each edit copies;
// smaller ones are quicker to copy.
func shardLinks(links int) int { return min(max(links/largeParts, maxLinks), maxOfLarge) }

// An entry of an arena is the length of the value (2 bytes, little endian), the
// encoded link.Compiled and the value. Its key is in the value.
const entryHead = 2 + link.CompiledSize

// An arena that an edit outgrows gets a 32nd more than it needs: that is what
// edits cost in memory, and dead entries are left behind each time.
const spareShare = 32

// arenaLimit keeps offsets well inside 32 bits, whatever is put.
const arenaLimit = 1 << 31

// shard is a part of the links: a hash table with open addressing over an arena
// of entries. Neither has pointers.
//
// A slot of the index is 0 when it is free; otherwise its lower offBits bits
// are 1 + the entry's offset, and the rest is as much of the hash as there is
// room for, so that hardly any entry is looked at in vain.
//
// Shards of one line of versions share an index as long as links are only added:
// a new one's slot was free before, and its entry is behind the end of the arena
// of the shards before, which pass over it. So slots are loaded and stored
// atomically.
type shard struct {
	index   []uint32
	arena   []byte
	offBits uint8
	depth   uint8  // how many upper bits of the hash all its links share
	n       int    // links
	dead    int    // bytes of the arena that no slot points at
	most    int    // links that a split would not part; 0: not known
	owner   uint64 // the builder that may change the shard
	shared  bool   // the index is also that of shards before: it may be added to
	line    uint64 // the line of versions that may append to the arena in place
}

// nameHash is the hash of a host, or of a key of a registry.
func nameHash(name []byte) uint64 { return xxh3.HashSeed(name, seed) }

// home is the first slot that a hash looks at.
func home(h uint64, slots int) int {
	return int(uint64(uint32(h)) * uint64(slots) >> 32)
}

// find looks for the link with these very bytes. It gives its slot and its value, which aliases the
// arena, and fills c; or the free slot that ended the search, and nil, and
// leaves c alone.
func (s *shard) find(h uint64, domain, path []byte, c *link.Compiled) (slot int, value []byte) {
	if len(s.index) == 0 {
		return 0, nil
	}
	mask := uint32(1)<<s.offBits - 1
	tag := uint32(h>>32) << s.offBits
	for i := home(h, len(s.index)); ; {
		v := atomic.LoadUint32(&s.index[i])
		if v == 0 {
			return i, nil
		}
		if (v^tag)&^mask == 0 && s.has(v&mask-1) {
			l, value := s.entry(v&mask - 1)
			if string(l.Path(value)) == string(path) && string(l.Domain(value)) == string(domain) {
				*c = l
				return i, value
			}
		}
		if i++; i == len(s.index) {
			i = 0
		}
	}
}

// findSame looks for a link whose path is the same under a policy, or for a
// prefix link with such a stem. It gives its value and fills c, or gives nil and
// leaves c alone. The same bytes win, else the smallest path.
func (s *shard) findSame(h uint64, domain, path []byte, prefix bool, policy link.Policy, c *link.Compiled) (value []byte) {
	if len(s.index) == 0 {
		return nil
	}
	var best []byte
	mask := uint32(1)<<s.offBits - 1
	tag := uint32(h>>32) << s.offBits
	for i := home(h, len(s.index)); ; {
		v := atomic.LoadUint32(&s.index[i])
		if v == 0 {
			return value
		}
		if (v^tag)&^mask == 0 && s.has(v&mask-1) {
			l, candidate := s.entry(v&mask - 1)
			if have, ok := pathOf(&l, candidate, prefix); ok && string(l.Domain(candidate)) == string(domain) {
				if string(have) == string(path) {
					*c = l
					return candidate
				}
				if policy.Same(have, path) && (value == nil || bytes.Compare(have, best) < 0) {
					*c, best, value = l, have, candidate
				}
			}
		}
		if i++; i == len(s.index) {
			i = 0
		}
	}
}

// has says that the entry at an offset is the shard's own, and not of one after
// it with which it shares the index.
func (s *shard) has(off uint32) bool { return int(off) < len(s.arena) }

// pathOf gives the path of a link, or the stem of a prefix link; false if it is
// not what is wanted.
func pathOf(c *link.Compiled, value []byte, prefix bool) ([]byte, bool) {
	path := c.Path(value)
	if prefix && c.IsPrefix() {
		path = path[:len(path)-len("/*")]
	}
	return path, prefix == c.IsPrefix()
}

// entry reads the entry at an offset.
func (s *shard) entry(off uint32) (link.Compiled, []byte) {
	e := s.arena[off:]
	end := entryHead + int(binary.LittleEndian.Uint16(e))
	return link.LoadCompiled(e[2:entryHead]), e[entryHead:end:end]
}

// each calls f for every entry, in no order, with its offset and the bytes that
// it takes, until f gives false.
func (s *shard) each(f func(off, size uint32, c *link.Compiled, value []byte) bool) bool {
	mask := uint32(1)<<s.offBits - 1
	var c link.Compiled // one for all: f makes it escape
	var value []byte
	for i := range s.index {
		v := atomic.LoadUint32(&s.index[i])
		if v == 0 || !s.has(v&mask-1) {
			continue
		}
		c, value = s.entry(v&mask - 1)
		if !f(v&mask-1, uint32(entryHead+len(value)), &c, value) {
			return false
		}
	}
	return true
}

// full says that one more link needs a larger index.
func (s *shard) full() bool { return (s.n+1)*5 > len(s.index)*4 }

// reindex makes the index anew for want links over the arena next, which holds
// the shard's entries at the offsets that move gives.
func (s *shard) reindex(want int, next []byte, move func(off, size uint32, value []byte) uint32) {
	room := 2 * max(cap(next), cap(s.arena))
	old := *s
	s.arena = next
	s.offBits = uint8(min(max(bits.Len(uint(room)), 12), 32))
	s.index = slices.Grow([]uint32(nil), max(want*3/2, s.n+1, 8))
	s.index = s.index[:cap(s.index)]
	s.shared = false
	var last lastDomain
	old.each(func(off, size uint32, c *link.Compiled, value []byte) bool {
		h := link.HashKey(last.hash(c.Domain(value)), c.Path(value))
		s.occupy(h, move(off, size, value))
		return true
	})
}

// occupy points the first free slot of a hash at an offset, in an index that
// nobody else has seen.
func (s *shard) occupy(h uint64, off uint32) {
	i := home(h, len(s.index))
	for s.index[i] != 0 {
		if i++; i == len(s.index) {
			i = 0
		}
	}
	s.index[i] = s.slot(h, off)
}

// slot is what a slot says of an entry.
func (s *shard) slot(h uint64, off uint32) uint32 {
	return uint32(h>>32)<<s.offBits | (off + 1)
}

// point points a slot at an offset: a free one, or the index is not shared.
func (s *shard) point(slot int, h uint64, off uint32) {
	atomic.StoreUint32(&s.index[slot], s.slot(h, off))
}

// unshare gives the shard an index of its own, with its own entries.
func (s *shard) unshare() {
	if !s.shared {
		return
	}
	mask := uint32(1)<<s.offBits - 1
	index := make([]uint32, len(s.index))
	for i := range index {
		// What is not the shard's own came later: without it, all is as before.
		if v := atomic.LoadUint32(&s.index[i]); v != 0 && s.has(v&mask-1) {
			index[i] = v
		}
	}
	s.index, s.shared = index, false
}

// free empties a slot, of an index that is not shared, and moves up what had to
// stand behind it.
func (s *shard) free(slot int) {
	mask := uint32(1)<<s.offBits - 1
	hole, n := slot, len(s.index)
	for i := slot; ; {
		if i++; i == n {
			i = 0
		}
		v := s.index[i]
		if v == 0 {
			break
		}
		c, value := s.entry(v&mask - 1)
		from := home(link.HashKey(nameHash(c.Domain(value)), c.Path(value)), n)
		// It may move to the hole unless its home lies between hole and it.
		if (i-from+n)%n >= (i-hole+n)%n {
			s.index[hole] = v
			hole = i
		}
	}
	s.index[hole] = 0
}

// live is how many bytes of the arena are in use.
func (s *shard) live() int { return len(s.arena) - s.dead }

// resize moves the entries into an arena with room for size bytes, at least
// those in use, and leaves the dead ones behind.
func (s *shard) resize(size int) {
	next := slices.Grow([]byte(nil), max(size, s.live()))
	if s.dead == 0 {
		s.arena = append(next, s.arena...)
		if bits.Len(uint(cap(s.arena))) > int(s.offBits) {
			s.reindex(s.n, s.arena, func(off, _ uint32, _ []byte) uint32 { return off })
		}
		return
	}
	old := s.arena
	next = next[:s.live()]
	at := uint32(0)
	s.reindex(s.n, next, func(off, size uint32, _ []byte) uint32 {
		to := at
		at += uint32(copy(next[at:], old[off:off+size]))
		return to
	})
	s.dead = 0
}

// trim gives back room that is more than an eighth of what is used.
func (s *shard) trim() {
	if spare := cap(s.arena) - s.live(); spare > 8<<10 && spare > s.live()/8 {
		s.resize(s.live())
	}
	if len(s.index) > max(s.n*7/4, 16) {
		s.reindex(s.n, s.arena, func(off, _ uint32, _ []byte) uint32 { return off })
	}
}

// push appends an entry, for which there is room, and gives its offset.
func (s *shard) push(c *link.Compiled, value []byte) uint32 {
	off := uint32(len(s.arena))
	s.arena = binary.LittleEndian.AppendUint16(s.arena, uint16(len(value)))
	s.arena = c.Append(s.arena)
	s.arena = append(s.arena, value...)
	return off
}

// over says that the shard is to be split where one may have so many links.
func (s *shard) over(links int) bool {
	return s.depth < maxDepth && s.n > s.most && (s.n > links || s.n > minLinks && s.live() > links*linkBytes)
}

// parts says whether a split would part the links. It would not if most of
// them have paths that only a policy tells from each other, and so one hash:
// the next try is when there are twice as many.
func (s *shard) parts() bool {
	ones := 0
	var last lastDomain
	s.each(func(_, _ uint32, c *link.Compiled, value []byte) bool {
		ones += int(link.HashKey(last.hash(c.Domain(value)), c.Path(value)) >> (63 - s.depth) & 1)
		return true
	})
	if min(ones, s.n-ones) < s.n/8 {
		s.most = 2 * s.n
		return false
	}
	return true
}

// split divides the links by the next bit of their hash.
func (s *shard) split(owner, line uint64) (zero, one *shard) {
	bit := 63 - s.depth
	var parts [2]*shard
	for i := range parts {
		parts[i] = &shard{depth: s.depth + 1, owner: owner, line: line}
		parts[i].arena = slices.Grow([]byte(nil), s.live()*9/16)
		parts[i].reindex(s.n*5/8, parts[i].arena, nil)
	}
	var last lastDomain
	s.each(func(off, size uint32, c *link.Compiled, value []byte) bool {
		h := link.HashKey(last.hash(c.Domain(value)), c.Path(value))
		p := parts[h>>bit&1]
		if p.full() || cap(p.arena)-len(p.arena) < int(size) {
			p.makeRoom(int(size))
		}
		p.occupy(h, uint32(len(p.arena)))
		p.arena = append(p.arena, s.arena[off:off+size]...)
		p.n++
		return true
	})
	return parts[0], parts[1]
}

// makeRoom grows index and arena for one more entry.
func (s *shard) makeRoom(size int) {
	if cap(s.arena)-len(s.arena) < size {
		s.resize(s.live() + s.live()/spareShare + size)
	}
	if s.full() {
		s.reindex(s.n+s.n/4, s.arena, func(off, _ uint32, _ []byte) uint32 { return off })
	}
}

// lastDomain saves hashing the same domain again and again.
type lastDomain struct {
	name []byte
	sum  uint64
}

func (l *lastDomain) hash(name []byte) uint64 {
	if l.name == nil || string(l.name) != string(name) {
		l.name, l.sum = name, nameHash(name)
	}
	return l.sum
}
