package snapshot

import (
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/affleet/affleet/proto/link"
)

// shardCount is how many parts a state has. A part is copied when it is
// changed after a freeze: at a million entries, some 250 of them.
const shardCount = 4096

// state is every entry by key, in parts that are copied on write once they are
// frozen. It is not safe for concurrent use.
type state struct {
	seed   maphash.Seed
	gen    uint64
	shards []*shard // nil: empty

	hash    link.SetHash
	entries int64
	links   int64
	bytes   int64 // of keys and values
}

// shard is changed in place only while its gen is the state's.
type shard struct {
	gen uint64
	m   map[string]entry // the key is part of the entry's own bytes
}

// frozen is a state at one moment. It never changes.
type frozen struct {
	shards  []*shard
	hash    link.SetHash
	entries int64
	bytes   int64
}

func newState() *state {
	return &state{seed: maphash.MakeSeed(), shards: make([]*shard, shardCount)}
}

func (s *state) index(key string) int {
	return int(maphash.String(s.seed, key) % shardCount)
}

// get returns the entry, or "" if there is none.
func (s *state) get(key string) entry {
	if sh := s.shards[s.index(key)]; sh != nil {
		return sh.m[key]
	}
	return ""
}

// set puts an entry, or deletes the key if it is "", and returns the entry that
// was there. One that nodes hold already is the same one to them.
func (s *state) set(key string, e entry) (old entry) {
	i := s.index(key)
	sh := s.shards[i]
	if sh != nil {
		old = sh.m[key]
	}
	if old == e {
		return old
	}
	if old != "" && old.same(e) {
		// Written again as it was: only who writes next needs to know of that.
		m := s.own(i).m
		delete(m, key) // the map would keep the old key's bytes alive
		m[e.key()] = e
		return old
	}
	sh = s.own(i)
	if old != "" {
		// Also before a put: the map would keep the old key's bytes alive.
		delete(sh.m, key)
		s.hash = s.hash.Sub(old.hash())
		s.entries--
		if strings.HasPrefix(key, linkPrefix) {
			s.links--
		}
		s.bytes -= old.size()
	}
	if e != "" {
		sh.m[e.key()] = e
		s.hash = s.hash.Add(e.hash())
		s.entries++
		if strings.HasPrefix(key, linkPrefix) {
			s.links++
		}
		s.bytes += e.size()
	}
	return old
}

// own gives a part that may be changed in place.
func (s *state) own(i int) *shard {
	sh := s.shards[i]
	switch {
	case sh == nil:
		sh = &shard{gen: s.gen, m: make(map[string]entry)}
	case sh.gen != s.gen:
		sh = &shard{gen: s.gen, m: maps.Clone(sh.m)}
	}
	s.shards[i] = sh
	return sh
}

// freeze gives the state as it is now. Its cost does not depend on the number
// of entries.
func (s *state) freeze() frozen {
	s.gen++
	return frozen{shards: append([]*shard(nil), s.shards...), hash: s.hash, entries: s.entries, bytes: s.bytes}
}

// fork gives a second state with the same contents: from now on they change
// apart. Its cost does not depend on the number of entries.
func (s *state) fork() *state {
	s.gen++ // neither changes a part in place that both have
	other := *s
	other.shards = slices.Clone(s.shards)
	return &other
}

// mark is the state as of a revision.
func (s *state) mark(revision int64, at time.Time) mark {
	return mark{revision: revision, hash: s.hash, entries: s.entries, links: s.links, bytes: s.bytes, at: at}
}

// difference gives what has to change in s to make it other, deletes included,
// and what is there now.
func (s *state) difference(other *state) (changes []change, olds []entry) {
	for i, sh := range s.shards {
		if sh == other.shards[i] && s.seed == other.seed {
			continue
		}
		if sh == nil {
			continue
		}
		for key, old := range sh.m {
			if e := other.get(key); e == "" {
				changes, olds = append(changes, change{key: key, had: true}), append(olds, old)
			}
		}
	}
	for i, sh := range other.shards {
		if sh == nil || sh == s.shards[i] && s.seed == other.seed {
			continue
		}
		for key, e := range sh.m {
			if old := s.get(key); !old.same(e) {
				changes, olds = append(changes, change{key: key, entry: e, had: old != ""}), append(olds, old)
			}
		}
	}
	return changes, olds
}

// bytesOf gives the bytes of s without a copy. They must not be changed.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// stringOf gives b as a string without a copy. b must not be changed after.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
