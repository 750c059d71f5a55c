package link

import (
	"bytes"
	"strings"
)

// MaxPrefixDepth is how many segments a prefix link may have before its "/*":
// it bounds what a path with thousands of slashes costs to look up.
const MaxPrefixDepth = 32

// IsPrefix says whether the path of a link is that of a prefix link: whether it
// ends in "/*". The star of a path that does not is a byte like any other.
func IsPrefix[path string | []byte](p path) bool {
	n := len(p)
	return n >= 2 && p[n-1] == '*' && p[n-2] == '/'
}

// Depth is the number of segments before the "/*" of a prefix link: 0 for "/*".
func Depth[path string | []byte](p path) (n int) {
	for i := range len(p) {
		if p[i] == '/' {
			n++
		}
	}
	return n - 1
}

// Prefixes are the prefix links that may match the path of a request, at most
// one of each depth. Find sets it.
type Prefixes struct {
	// Depths has bit d set when there is one of depth d.
	Depths uint64
	stems  [MaxPrefixDepth + 1]uint16
}

// Find finds the prefix links that may match a canonical path. "/go/*" matches
// "/go/" and what is below it; "/go" too if the policy ignores slashes. A prefix
// after which a dot segment comes does not match: clients, proxies and servers
// would read it as a way up. Find does not allocate.
func (p *Prefixes) Find(path []byte, policy Policy) {
	p.Depths = 0
	dots := lastDots(path)
	at, depth := 0, 0
	for ; depth <= MaxPrefixDepth; depth++ {
		i := bytes.IndexByte(path[at:], '/')
		if i < 0 {
			break
		}
		p.add(depth, at+i, dots)
		at += i + 1
	}
	if policy&IgnoreSlash != 0 && depth <= MaxPrefixDepth && at < len(path) {
		p.add(depth, len(path), dots)
	}
}

// add notes the prefix before the slash at end, which a link may be as long as.
func (p *Prefixes) add(depth, end, dots int) {
	if end >= dots && end <= MaxPath-2 {
		p.Depths |= 1 << depth
		p.stems[depth] = uint16(end)
	}
}

// Stem is what stands before the "/*" of the prefix link of a depth that is in
// Depths, in the writing of the path.
func (p *Prefixes) Stem(path []byte, depth int) []byte { return path[:p.stems[depth]] }

// lastDots gives where the last segment begins that is "." or "..", 0 if there
// is none. What is between slashes that are escaped counts as a segment too,
// because there are servers that decode them first.
func lastDots(path []byte) (at int) {
	for i := 0; ; {
		dot := bytes.IndexByte(path[i:], '.')
		if dot < 0 {
			return at
		}
		i += dot
		begin := i
		for i < len(path) && path[i] == '.' {
			i++
		}
		if i-begin <= 2 && endsWithSlash(path[:begin]) && (i == len(path) || startsWithSlash(path[i:])) {
			at = begin
		}
	}
}

// startsWithSlash and endsWithSlash say whether a slash is at an end of a piece
// of a canonical path; one that is escaped, and a backslash, are as well.
func startsWithSlash(b []byte) bool { return b[0] == '/' || len(b) >= 3 && isEscapedSlash(b[:3]) }

func endsWithSlash(b []byte) bool {
	n := len(b)
	return n > 0 && b[n-1] == '/' || n >= 3 && isEscapedSlash(b[n-3:])
}

func isEscapedSlash(b []byte) bool { return string(b) == "%2F" || string(b) == "%5C" }

// checkPrefix checks what a prefix link has beyond other links.
func checkPrefix[path string | []byte](p path) *Error {
	if IsPrefix(p) && Depth(p) > MaxPrefixDepth {
		return invalid("path", "", "has %d segments before its /*, and at most %d are allowed", Depth(p), MaxPrefixDepth)
	}
	return nil
}

// rest is what a request has behind the prefix of the link that matches it.
func (c *Compiled) rest(path []byte) []byte {
	stem := int(c.path.len) - len("/*")
	return path[min(stem+1, len(path)):]
}

// leadsUp says whether a rest has a dot segment, also as its first.
func leadsUp(rest []byte) bool {
	first := len(rest) - len(bytes.TrimLeft(rest, "."))
	return lastDots(rest) > 0 || first > 0 && first <= 2 && (first == len(rest) || startsWithSlash(rest[first:]))
}

// raw marks the bytes that stand in the path of a URL as they are, but for the
// percent sign: the slash and what RFC 3986 calls pchar.
var raw = func() (t [256]bool) {
	for c := range t {
		t[c] = c < 0x80 && isAlphanumeric(byte(c)) || c < 0x80 && strings.IndexByte("/-._~!$&'()*+,;=:@", byte(c)) >= 0
	}
	return t
}()

// escapedFrom gives where the first byte of a path is that does not stand in a
// URL as it is, len(path) if there is none.
func escapedFrom(path []byte) int {
	for i := range path {
		if c := path[i]; !raw[c] {
			if c != '%' {
				return i
			}
			if _, n := decodeByte(path[i:]); n == 0 {
				return i
			}
		}
	}
	return len(path)
}

func escapedLen(path []byte) int {
	n := len(path)
	for {
		i := escapedFrom(path)
		if i == len(path) {
			return n
		}
		n += len("%XX") - 1
		path = path[i+1:]
	}
}

// appendEscaped appends the canonical form of a path as it stands in a URL.
func appendEscaped(dst, path []byte) []byte {
	for {
		i := escapedFrom(path)
		dst = append(dst, path[:i]...)
		if i == len(path) {
			return dst
		}
		dst = append(dst, '%', upperHex[path[i]>>4], upperHex[path[i]&15])
		path = path[i+1:]
	}
}
