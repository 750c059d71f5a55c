package table

import (
	"sync/atomic"
	"unsafe"

	"github.com/affleet/affleet/dataplane/internal/prefetch"
	"github.com/affleet/affleet/proto/link"
)

// Ahead is a link that will be looked for soon. The zero value is none.
//
// A look-up waits for memory twice: for a slot of the index, which says where the
// entry is, and for the entry. Who has several to do asks for all slots, then for
// all entries, and then looks them up.
type Ahead struct {
	shard *shard
	hash  uint64
}

// entryLines are the cache lines of an entry that are asked for: one of the benchmarks
// has 130 bytes.
const entryLines = 3

// Ahead asks for the slot of the link of a host and a path. It is a guess: what is
// not canonical, or is answered by another link, is found all the same, later.
func (t *Table) Ahead(host, path []byte) Ahead {
	c := &t.contents
	it := c.hosts.get(nameHash(host), host)
	if it == nil || it.v.links == 0 {
		it = t.anyHost
	}
	h := link.HashPath(it.hash, path)
	s := c.shard(h)
	if len(s.index) == 0 {
		return Ahead{}
	}
	prefetch.Line(unsafe.Pointer(&s.index[home(h, len(s.index))]))
	return Ahead{s, h}
}

// Entry asks for the entry that the slot says.
func (a Ahead) Entry() {
	entry := a.entry()
	for at := 0; at < min(entryLines*prefetch.LineBytes, len(entry)); at += prefetch.LineBytes {
		prefetch.Line(unsafe.Pointer(&entry[at]))
	}
}

// entry is the arena from the entry on, nil when there is none.
func (a Ahead) entry() []byte {
	s := a.shard
	if s == nil {
		return nil
	}
	mask := uint32(1)<<s.offBits - 1
	tag := uint32(a.hash>>32) << s.offBits
	for i := home(a.hash, len(s.index)); i < len(s.index); i++ {
		v := atomic.LoadUint32(&s.index[i])
		if v == 0 {
			break
		}
		if off := v&mask - 1; (v^tag)&^mask == 0 && s.has(off) {
			return s.arena[off:]
		}
	}
	return nil
}
