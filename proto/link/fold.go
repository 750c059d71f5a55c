package link

import (
	"encoding/binary"
	"math/bits"
)

// Policy says which paths are the same on a host; a Domain has it. The zero
// value: those with the same bytes.
type Policy uint8

// What a policy may ignore.
const (
	IgnoreCase  Policy = 1 << iota // ASCII letters match in any case
	IgnoreSlash                    // one slash at the end makes no difference
)

// Same says whether two canonical paths are the same under the policy. The
// path of a prefix link is never that of a link to one path. It does not
// allocate.
func (p Policy) Same(a, b []byte) bool {
	if IsPrefix(a) != IsPrefix(b) {
		return false
	}
	if p&IgnoreSlash != 0 {
		a, b = withoutSlash(a), withoutSlash(b)
	}
	if p&IgnoreCase == 0 || len(a) != len(b) {
		return string(a) == string(b)
	}
	return equalFold(a, b)
}

// withoutSlash leaves out one slash at the end.
func withoutSlash(path []byte) []byte {
	if n := len(path); n > 0 && path[n-1] == '/' {
		return path[:n-1]
	}
	return path
}

// equalFold compares two paths of the same length, 8 bytes at a time.
func equalFold(a, b []byte) bool {
	n := len(a)
	if n < 8 {
		for i := range a {
			if lowerByte(a[i]) != lowerByte(b[i]) {
				return false
			}
		}
		return true
	}
	for i := 0; i < n-8; i += 8 {
		if lower(word(a[i:])) != lower(word(b[i:])) {
			return false
		}
	}
	return lower(word(a[n-8:])) == lower(word(b[n-8:]))
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

func word(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// lower makes capital ASCII letters small in 8 bytes at once.
func lower(w uint64) uint64 {
	const each = 0x0101010101010101
	low := w & (0x7f * each)
	// The upper bit of each byte: whether its lower bits are at least 'A', and
	// whether they are beyond 'Z'.
	capital := ((low + (0x80-'A')*each) ^ (low + (0x7f-'Z')*each)) &^ w & (0x80 * each)
	return w | capital>>2
}

// The keys of the hash. Each has a byte 0xff, which no path has, so that a path
// cannot make a factor zero.
const (
	hashA = 0x9c1f_ff6b_e53a_27d5
	hashB = 0xd3a8_4b97_ff15_6ec9
	hashC = 0xb7e1_9d35_ff68_c24b
	// hashPrefix sets prefix links apart from the others.
	hashPrefix = 0x5bd1_e995_7f4a_7c15
)

// HashPath is a hash of the path of a request. A link to one path that is the
// same under any Policy has the same HashKey, so that one index finds links
// whatever the policy is. Whoever chooses paths cannot choose where they go as
// long as the seed is not known. It does not allocate.
//
// It is made of products of 16 bytes with what came before. The last 16 bytes,
// which may overlap those before them, do not wait for them.
func HashPath(seed uint64, path []byte) uint64 {
	n := len(path)
	if n > 0 && path[n-1] == '/' {
		n--
		path = path[:n]
	}
	var a, b uint64
	h := seed
	switch {
	case n >= 16:
		for rest := path; len(rest) > 16; rest = rest[16:] {
			h = multiply(blur(word(rest))^hashA, blur(word(rest[8:]))^h)
		}
		a, b = word(path[n-16:]), word(path[n-8:])
	case n >= 8:
		a, b = word(path), word(path[n-8:])
	case n >= 4:
		a = uint64(binary.LittleEndian.Uint32(path))<<32 | uint64(binary.LittleEndian.Uint32(path[n-4:]))
	case n > 0:
		a = uint64(path[0])<<16 | uint64(path[n/2])<<8 | uint64(path[n-1])
	}
	return multiply(h^multiply(blur(a)^hashB, blur(b)^seed), uint64(n)^hashC)
}

// HashPrefix is the HashKey of the prefix link with a stem: of "/go/*" for
// "/go".
func HashPrefix(seed uint64, stem []byte) uint64 { return HashPath(seed^hashPrefix, stem) }

// HashKey is the hash of the path of a link.
func HashKey(seed uint64, path []byte) uint64 {
	if IsPrefix(path) {
		return HashPrefix(seed, path[:len(path)-2])
	}
	return HashPath(seed, path)
}

// blur makes small and capital letters the same in 8 bytes at once, and other
// bytes that are rarely all that two paths differ in.
func blur(w uint64) uint64 { return w | 0x2020202020202020 }

// multiply folds the product of two numbers.
func multiply(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
