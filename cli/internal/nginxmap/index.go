package nginxmap

import "hash/maphash"

// index finds entries by host and path in any case of ASCII letters, at eight
// bytes for each place. It is an open hash table of positions in the slice of
// entries, at most half full.
type index struct {
	seed   maphash.Seed
	places []place
	used   int
	buf    []byte
}

// place holds one entry, none if at is 0.
type place struct {
	hash uint32
	at   uint32 // its position in the slice, plus one
}

// add appends e to entries. If one with the same host and path is there, it
// gives that one and false instead.
func (x *index) add(entries *[]Entry, e Entry) (Entry, bool) {
	if 2*(x.used+1) > len(x.places) {
		x.resize(max(64, 2*len(x.places), 2*cap(*entries)))
	}
	hash := x.hash(&e)
	i := int(hash) & (len(x.places) - 1)
	for ; x.places[i].at > 0; i = (i + 1) & (len(x.places) - 1) {
		if p := x.places[i]; p.hash == hash {
			if old := &(*entries)[p.at-1]; equalFold(old.Host, e.Host) && equalFold(old.Path, e.Path) {
				return *old, false
			}
		}
	}
	*entries = append(*entries, e)
	x.places[i] = place{hash, uint32(len(*entries))}
	x.used++
	return Entry{}, true
}

// resize makes room for n places or more.
func (x *index) resize(n int) {
	if x.places == nil {
		x.seed = maphash.MakeSeed()
	}
	size := 1
	for size < n {
		size *= 2
	}
	old := x.places
	x.places = make([]place, size)
	for _, p := range old {
		if p.at == 0 {
			continue
		}
		i := int(p.hash) & (size - 1)
		for x.places[i].at > 0 {
			i = (i + 1) & (size - 1)
		}
		x.places[i] = p
	}
}

func (x *index) hash(e *Entry) uint32 {
	x.buf = appendLower(appendLower(x.buf[:0], e.Host), e.Path)
	h := maphash.Bytes(x.seed, x.buf)
	return uint32(h ^ h>>32)
}

// lower is the lower case of an ASCII letter, and every other byte as it is.
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

func appendLower(dst []byte, s string) []byte {
	start := len(dst)
	dst = append(dst, s...)
	for i, c := range dst[start:] {
		dst[start+i] = lower(c)
	}
	return dst
}

func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if a[i] != b[i] && lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}
