package redirect

import (
	"bytes"
	"encoding/binary"
	"math/bits"

	"github.com/affleet/affleet/proto/visitor"
)

// header is a request header that somebody downstream reads.
type header = visitor.Header

const (
	userAgent      = visitor.UserAgent
	referrer       = visitor.Referrer
	acceptLanguage = visitor.AcceptLanguage
	secPurpose     = visitor.SecPurpose
	purpose        = visitor.Purpose
	xMoz           = visitor.XMoz
	secGPC         = visitor.SecGPC
	accept         = visitor.Accept
	secFetchMode   = visitor.SecFetchMode
)

// headerNames is how net/http calls the headers that are kept.
var headerNames = visitor.HeaderNames

// head is a request head as the parser left it. Its slices are parts of the
// parsed bytes.
type head struct {
	isHead    bool // HEAD, and else GET
	oldMinor  bool // HTTP/1.0, and else 1.1
	closing   bool // the connection ends after this request
	keepAlive bool // HTTP/1.0 that asked to stay
	https     bool // the target says so, in absolute form

	host    []byte          // as it was asked for; empty only in HTTP/1.0
	path    []byte          // of the target, still percent-encoded; starts with a slash
	query   []byte          // without the question mark
	headers visitor.Headers // the first of each; nil when it is missing, trimmed

	geo *geoNames // which headers say where a client is; nil: none. It stays from request to request

	// From the first value of X-Forwarded-For to the end of its last, with the
	// lines between; nil when it is missing. Likewise of Forwarded.
	xForwardedFor, forwarded []byte
}

// seen is what the parser has to remember until the head is complete.
type seen struct {
	otherMethod  bool   // a method that is neither GET nor HEAD
	authority    []byte // of a target in absolute form
	host, length bool
	close        bool
	keepAlive    bool
}

// parse reads one request head from the start of buf. It gives how many bytes
// the head took, 0 when it is not complete yet; or why it is refused, which can
// be known before it is complete. It is a single strict pass: what RFC 9112
// lets a server repair is refused here.
func (h *head) parse(buf []byte) (int, refusal) {
	*h = head{geo: h.geo}
	var s seen
	end := nextControl(buf, 0)
	if why := lineEnd(buf, end); why != accepted {
		if why == incomplete {
			return 0, accepted
		}
		return 0, why
	}
	if why := h.parseRequestLine(buf[:end], &s); why != accepted {
		return 0, why
	}
	at := end + 2
	for {
		next, why := h.parseHeaderLine(buf, at, &s)
		if why == incomplete {
			return 0, accepted
		}
		if why == hasBody && s.otherMethod {
			why = badMethod // whatever its framing, it is not read
		}
		if why != accepted {
			return 0, why
		}
		if next == at+2 {
			if why = h.finish(&s); why != accepted {
				return 0, why
			}
			return next, accepted
		}
		at = next
	}
}

// finish checks what only the whole head can tell.
func (h *head) finish(s *seen) refusal {
	if s.otherMethod {
		return badMethod
	}
	switch {
	case s.host && len(h.host) == 0, !s.host && !h.oldMinor:
		return badHost
	case s.authority != nil && s.host && !equalFold(s.authority, h.host):
		return badHost
	case s.authority != nil:
		h.host = s.authority
	}
	h.closing = s.close || h.oldMinor && !s.keepAlive
	h.keepAlive = h.oldMinor && !h.closing
	return accepted
}

// parseRequestLine reads a line without control bytes.
func (h *head) parseRequestLine(line []byte, s *seen) refusal {
	space := bytes.IndexByte(line, ' ')
	last := bytes.LastIndexByte(line, ' ')
	if space <= 0 || space == last {
		return badRequestLine
	}
	target := line[space+1 : last]
	switch string(line[last+1:]) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		h.oldMinor = true
	default:
		return refuseVersion(line[last+1:])
	}
	switch string(line[:space]) {
	case "GET":
	case "HEAD":
		h.isHead = true
	default:
		for _, c := range line[:space] {
			if !token[c] {
				return badRequestLine
			}
		}
		s.otherMethod = true
		return accepted // the answer does not depend on the target
	}
	if len(target) == 0 || target[0] != '/' {
		var ok bool
		if target, h.https, ok = splitAbsolute(target, s); !ok {
			return badTarget
		}
	}
	return h.setTarget(target)
}

// refuseVersion tells a version that is not served from one that is none.
func refuseVersion(v []byte) refusal {
	if len(v) == len("HTTP/d.d") && string(v[:5]) == "HTTP/" && isDigit(v[5]) && v[6] == '.' && isDigit(v[7]) {
		return badVersion
	}
	return badRequestLine
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// splitAbsolute takes scheme and authority off a target in absolute form. What
// an authority may hold is for the host check; a user is refused by it too.
func splitAbsolute(target []byte, s *seen) (rest []byte, https, ok bool) {
	scheme := "http://"
	if len(target) > 4 && target[4]|0x20 == 's' {
		scheme, https = "https://", true
	}
	if len(target) <= len(scheme) || !equalFold(target[:len(scheme)], scheme) {
		return nil, false, false
	}
	rest = target[len(scheme):]
	end := bytes.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	s.authority = rest[:end]
	return rest[end:], https, end > 0
}

// setTarget splits path and query. An empty path, which only an absolute form
// can have, is the root.
func (h *head) setTarget(target []byte) refusal {
	h.path = target
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		h.path, h.query = target[:i], target[i+1:]
	}
	if bytes.IndexByte(target, ' ') >= 0 || bytes.IndexByte(target, '#') >= 0 {
		return badTarget
	}
	if len(h.path) == 0 {
		h.path = rootPath
	}
	return accepted
}

var rootPath = []byte("/")

// parseHeaderLine reads the line that starts at buf[at] and gives where the
// next one starts: at+2 for the empty line that ends the head.
func (h *head) parseHeaderLine(buf []byte, at int, s *seen) (next int, why refusal) {
	colon := skipLetters(buf, at)
	for colon < len(buf) && token[buf[colon]] {
		colon++
	}
	if colon == len(buf) {
		return 0, incomplete
	}
	if colon == at {
		if why := lineEnd(buf, at); why != accepted {
			return 0, why // an obs-fold among them
		}
		return at + 2, accepted
	}
	if buf[colon] != ':' {
		return 0, badHeader
	}
	start := colon + 1
	if start < len(buf) && buf[start] == ' ' {
		start++
	}
	end := nextControl(buf, start)
	for end < len(buf) && buf[end] == '\t' {
		end = nextControl(buf, end+1)
	}
	if why := lineEnd(buf, end); why != accepted {
		return 0, why
	}
	return end + 2, h.setHeader(buf[at:colon], trimBlanks(buf[start:end]), s)
}

// setHeader keeps the header if anybody reads it. The first of several wins,
// but for those that a request may be smuggled with.
func (h *head) setHeader(name, value []byte, s *seen) refusal {
	if h.geo != nil {
		h.setGeo(name, value)
	}
	switch len(name) {
	case 4:
		if isName(name, "Host", "host") {
			if s.host {
				return badHost
			}
			s.host, h.host = true, value
		}
	case 5:
		if isName(name, "X-Moz", "x-moz") {
			h.keep(xMoz, value)
		}
	case 6:
		switch {
		case isName(name, "Accept", "accept"):
			h.keep(accept, value)
		case isName(name, "Expect", "expect") && !isName(value, "100-continue", "100-continue"):
			return badExpect
		}
	case 7:
		switch {
		case isName(name, "Referer", "referer"):
			h.keep(referrer, value)
		case isName(name, "Purpose", "purpose"):
			h.keep(purpose, value)
		case isName(name, "Sec-GPC", "sec-gpc"):
			h.keep(secGPC, value)
		}
	case 9:
		if isName(name, "Forwarded", "forwarded") {
			extend(&h.forwarded, value)
		}
		if isName(name, "sec-ch-ua", "sec-ch-ua") {
			h.keep(visitor.Brands, value)
		}
	case 10:
		switch {
		case isName(name, "User-Agent", "user-agent"):
			h.keep(userAgent, value)
		case isName(name, "Connection", "connection"):
			s.connection(value)
		}
	case 11:
		if isName(name, "Sec-Purpose", "sec-purpose") {
			h.keep(secPurpose, value)
		}
	case 14:
		if isName(name, "Sec-Fetch-Mode", "sec-fetch-mode") {
			h.keep(secFetchMode, value)
		}
		if isName(name, "Content-Length", "content-length") {
			if s.length || string(value) != "0" {
				return hasBody
			}
			s.length = true
		}
	case 15:
		switch {
		case isName(name, "Accept-Language", "accept-language"):
			h.keep(acceptLanguage, value)
		case isName(name, "X-Forwarded-For", "x-forwarded-for"):
			extend(&h.xForwardedFor, value)
		}
	case 16:
		if isName(name, "sec-ch-ua-mobile", "sec-ch-ua-mobile") {
			h.keep(visitor.Mobile, value)
		}
	case 18:
		if isName(name, "sec-ch-ua-platform", "sec-ch-ua-platform") {
			h.keep(visitor.Platform, value)
		}
	case 17:
		if isName(name, "Transfer-Encoding", "transfer-encoding") {
			return hasBody
		}
	}
	return accepted
}

func (h *head) keep(i header, value []byte) {
	if h.headers[i] == nil {
		h.headers[i] = value
	}
}

// extend makes a span of a head reach to the end of a later value. Both are
// parts of the same bytes, so what their capacities differ by is how far apart
// they start.
func extend(span *[]byte, value []byte) {
	if *span == nil {
		*span = value
		return
	}
	*span = (*span)[:cap(*span)-cap(value)+len(value)]
}

// connection reads the options of a Connection header.
func (s *seen) connection(value []byte) {
	for len(value) > 0 {
		option := value
		if i := bytes.IndexByte(value, ','); i >= 0 {
			option, value = value[:i], value[i+1:]
		} else {
			value = nil
		}
		option = trimBlanks(option)
		switch {
		case isName(option, "keep-alive", "keep-alive"):
			s.keepAlive = true
		case isName(option, "close", "close"):
			s.close = true
		}
	}
}

// isName compares a name with a known one in any case; usual is how most
// clients write it, and lower is the same in lower case.
func isName(name []byte, usual, lower string) bool {
	if string(name) == usual {
		return true
	}
	if len(name) != len(lower) {
		return false
	}
	for i, c := range name {
		if lowerOf(c) != lower[i] {
			return false
		}
	}
	return true
}

// equalFold compares hosts, and schemes, in any case of ASCII letters. Unicode folds
// more, such as the Kelvin sign to k, and who reads the other one sees another host.
func equalFold[A, B string | []byte](a A, b B) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lowerOf(a[i]) != lowerOf(b[i]) {
			return false
		}
	}
	return true
}

func lowerOf(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c |= 0x20
	}
	return c
}

func trimBlanks(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// lineEnd checks that buf[i], a byte that ended a line's content, begins CR LF.
func lineEnd(buf []byte, i int) refusal {
	switch {
	case i == len(buf):
		return incomplete
	case buf[i] != '\r':
		return badHeader
	case i+1 == len(buf):
		return incomplete
	case buf[i+1] != '\n':
		return badHeader
	}
	return accepted
}

// nextControl gives the index of the first control byte (below 0x20, or 0x7f)
// of buf at or after i, len(buf) when there is none. It looks at eight bytes at
// a time: adding to the low seven bits of each cannot carry into the next, so
// the high bits say exactly which bytes are controls.
func nextControl(buf []byte, i int) int {
	for ; i+8 <= len(buf); i += 8 {
		x := binary.LittleEndian.Uint64(buf[i:])
		t := x & low7
		if m := (^(t + 0x60*ones) | (t + ones)) &^ x & high; m != 0 {
			return i + bits.TrailingZeros64(m)>>3
		}
	}
	for ; i < len(buf); i++ {
		if c := buf[i]; c < 0x20 || c == 0x7f {
			break
		}
	}
	return i
}

// skipLetters gives the index of a byte of buf at or after i before which there
// are only letters and hyphens, as in the names of most headers. It looks at
// eight bytes at a time, likewise.
func skipLetters(buf []byte, i int) int {
	for ; i+8 <= len(buf); i += 8 {
		x := binary.LittleEndian.Uint64(buf[i:])
		t := (x | 0x20*ones) & low7 // letters in lower case
		letters := (t + (0x80-'a')*ones) &^ (t + (0x80-'z'-1)*ones)
		others := (x&low7 ^ '-'*ones) + low7 // the high bit of all but hyphens
		if m := (^letters&others | x) & high; m != 0 {
			return i + bits.TrailingZeros64(m)>>3
		}
	}
	return i
}

// Bits of eight bytes.
const (
	low7 = 0x7f7f7f7f7f7f7f7f
	high = 0x8080808080808080
	ones = 0x0101010101010101
)

// token marks the bytes of a token, RFC 9110 section 5.6.2.
var token = func() (t [256]bool) {
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = true, true
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = true
	}
	return t
}()
