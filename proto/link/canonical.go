package link

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// plain marks the bytes of a path that are in their canonical form as they
// are: printable ASCII but for the escape, what a path ends with, space and
// backslash.
var plain = func() (t [256]bool) {
	for c := '!'; c <= '~'; c++ {
		t[c] = !strings.ContainsRune(`%?#\`, c)
	}
	return t
}()

// keepEscaped says of a decoded ASCII byte whether only its escaped form is
// unambiguous in a key: controls, space, and the bytes that mean something in
// a path, in a URL or at the end of a prefix link.
func keepEscaped(c byte) bool {
	return c <= ' ' || c == 0x7f || strings.IndexByte(`%/?#\*`, c) >= 0
}

const upperHex = "0123456789ABCDEF"

// AppendCanonicalPath appends the key form of the path of a request, as it
// stands in the request line without query, to dst. The key form is
// percent-decoded wherever that is unambiguous; what stays escaped is in upper
// case, and the result is valid UTF-8. It is idempotent. It gives false, and
// dst as it was, if path does not start with a slash or has a broken escape.
// It allocates only to grow dst.
func AppendCanonicalPath(dst, path []byte) ([]byte, bool) {
	if len(path) == 0 || path[0] != '/' {
		return dst, false
	}
	for i, c := range path {
		if !plain[c] {
			out, ok := appendDecoded(append(dst, path[:i]...), path[i:])
			if !ok {
				return dst, false
			}
			return out, true
		}
	}
	return append(dst, path...), true
}

func appendDecoded(dst, path []byte) ([]byte, bool) {
	for len(path) > 0 {
		c, n := decodeByte(path)
		switch {
		case n == 0:
			return dst, false
		case c >= utf8.RuneSelf:
			var size int
			if dst, size = appendRune(dst, path); size == 0 {
				return dst, false
			}
			path = path[size:]
			continue
		case n == 3 && keepEscaped(c), !plain[c] && n == 1:
			dst = append(dst, '%', upperHex[c>>4], upperHex[c&15])
		default:
			dst = append(dst, c)
		}
		path = path[n:]
	}
	return dst, true
}

// decodeByte gives the first byte that path stands for, and how many bytes of
// path that took: 1, 3 for an escape, 0 for a broken one.
func decodeByte(path []byte) (c byte, n int) {
	if path[0] != '%' {
		return path[0], 1
	}
	if len(path) < 3 {
		return 0, 0
	}
	hi, lo := unhex(path[1]), unhex(path[2])
	if hi > 15 || lo > 15 {
		return 0, 0
	}
	return hi<<4 | lo, 3
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// appendRune appends the character that path starts with if its bytes, escaped
// or not, are valid UTF-8 and no C1 control, and else its first byte escaped.
// It gives how much of path it took, 0 for a broken escape.
func appendRune(dst, path []byte) ([]byte, int) {
	var buf [utf8.UTFMax]byte
	var ends [utf8.UTFMax]int
	have, at := 0, 0
	for have < len(buf) && at < len(path) {
		c, n := decodeByte(path[at:])
		if n == 0 {
			if have == 0 {
				return dst, 0
			}
			break
		}
		if have > 0 && utf8.RuneStart(c) {
			break
		}
		at += n
		buf[have], ends[have] = c, at
		have++
	}
	r, size := utf8.DecodeRune(buf[:have])
	if r == utf8.RuneError && size <= 1 || r < 0xa0 {
		return append(dst, '%', upperHex[buf[0]>>4], upperHex[buf[0]&15]), ends[0]
	}
	return append(dst, buf[:size]...), ends[size-1]
}

// AppendCanonicalHost appends the key form of a Host header or an authority to
// dst: lower case, without port and final dot. It gives false, and dst as it
// was, if host is no host. An empty host is allowed and stays empty. It
// allocates only to grow dst.
func AppendCanonicalHost(dst, host []byte) ([]byte, bool) {
	if len(host) > 0 && host[0] == '[' {
		return appendIPv6(dst, host)
	}
	start := len(dst)
	for i, c := range host {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '.', c == '_':
			dst = append(dst, c)
		case 'A' <= c && c <= 'Z':
			dst = append(dst, c|0x20)
		case c == ':' && isPort(host[i+1:]) && i > 0:
			return trimDot(dst, start)
		default:
			return dst[:start], false
		}
	}
	return trimDot(dst, start)
}

func trimDot(dst []byte, start int) ([]byte, bool) {
	if n := len(dst); n > start && dst[n-1] == '.' {
		dst = dst[:n-1]
		if n-1 == start {
			return dst, false
		}
	}
	if len(dst)-start > MaxHost {
		return dst[:start], false
	}
	return dst, true
}

// appendIPv6 appends "[address]", in lower case and without port.
func appendIPv6(dst, host []byte) ([]byte, bool) {
	end := bytes.IndexByte(host, ']')
	if end < 0 || !isIPv6(host[1:end]) {
		return dst, false
	}
	if rest := host[end+1:]; len(rest) > 0 && (rest[0] != ':' || !isPort(rest[1:])) {
		return dst, false
	}
	for _, c := range host[:end+1] {
		if 'A' <= c && c <= 'F' {
			c |= 0x20
		}
		dst = append(dst, c)
	}
	return dst, true
}

// isPort allows an empty port, as RFC 3986 does.
func isPort(s []byte) bool {
	if len(s) > 5 {
		return false
	}
	port := 0
	for _, c := range s {
		if c < '0' || c > '9' {
			return false
		}
		port = port*10 + int(c-'0')
	}
	return port <= 65535
}

// CanonicalHost is the key form of a host: lower case, without port and final
// dot. "*" stays, and so does what looks like an IPv6 address and is none: links
// could be stored under such a host once. No request has it.
func CanonicalHost(host string) (string, error) {
	if host == AnyHost {
		return host, nil
	}
	if host == "" {
		return "", invalid("domain", `use "*" for every host`, "is missing")
	}
	out, ok := AppendCanonicalHost(nil, []byte(host))
	if !ok && resemblesIPv6(host) {
		return host, nil
	}
	if !ok {
		hint := "a host looks like go.example.com"
		if strings.IndexFunc(host, func(r rune) bool { return r >= utf8.RuneSelf }) >= 0 {
			hint = "write an international domain in its ASCII form, xn--..."
		}
		return "", invalid("domain", hint, "%q is not a host", host)
	}
	return string(out), nil
}

// CanonicalPath is the key form of a path, and an error if there is none.
func CanonicalPath(path string) (string, error) {
	if err := checkPathShape(path); err != nil {
		return "", err
	}
	out, ok := AppendCanonicalPath(nil, []byte(path))
	if !ok {
		return "", invalid("path", "write a percent sign as %25", "%q has a broken percent escape", path)
	}
	canonical := string(out)
	if err := checkSegments(canonical); err != nil {
		return "", err
	}
	return canonical, nil
}

// checkHost checks that a host is in its key form.
func checkHost(field, host string) *Error {
	canonical, err := CanonicalHost(host)
	if err != nil {
		e := *err.(*Error)
		e.Field = field
		return &e
	}
	if canonical != host {
		return invalid(field, "write it as "+canonical, "%q is not canonical", host)
	}
	return nil
}

// checkPath checks that a path is in its key form.
func checkPath(path string) *Error {
	canonical, err := CanonicalPath(path)
	if err != nil {
		return err.(*Error)
	}
	if canonical != path {
		return invalid("path", "write it as "+canonical, "%q is not canonical", path)
	}
	return nil
}

// checkPathShape checks what can be said before decoding.
func checkPathShape(path string) *Error {
	switch {
	case path == "":
		return invalid("path", "a path looks like /go/summer", "is missing")
	case len(path) > MaxPath:
		return invalid("path", "", "is %d bytes long, and at most %d are allowed", len(path), MaxPath)
	case path[0] != '/':
		return invalid("path", "a path looks like /go/summer", "%q does not start with a slash", path)
	case !utf8.ValidString(path):
		return invalid("path", "percent-encode bytes that are not text", "is not valid UTF-8")
	}
	for i := range len(path) {
		switch c := path[i]; {
		case c < ' ' || c == 0x7f:
			return invalid("path", "", "has the control character %#02x in it", c)
		case c == '?' || c == '#':
			return invalid("path", "requests are matched by path alone; write a literal one as %3F or %23",
				"%q has %q in it", path, c)
		}
	}
	return nil
}

// checkSegments refuses the segments that clients remove before they ask.
func checkSegments(path string) *Error {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return invalid("path", "leave it out", "%q has the segment %q, which clients remove", path, segment)
		}
	}
	if err := checkPrefix(path); err != nil {
		return err
	}
	if len(path) > MaxPath {
		return invalid("path", "", "is %d bytes long in its canonical form, and at most %d are allowed", len(path), MaxPath)
	}
	return nil
}
