package redirect

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"unsafe"
)

// ForwardedHeader is the header in which proxies say for whom they ask.
type ForwardedHeader uint8

// The headers.
const (
	NoForwardedHeader ForwardedHeader = iota
	XForwardedFor                     // X-Forwarded-For: addresses, with or without ports
	Forwarded                         // Forwarded, RFC 7239
	numForwardedHeaders
)

// ParseForwardedHeader reads a setting: none, x-forwarded-for or forwarded.
func ParseForwardedHeader(s string) (ForwardedHeader, error) {
	for i, name := range [numForwardedHeaders]string{"none", xForwardedFor.lower, forwarded.lower} {
		if s == name {
			return ForwardedHeader(i), nil
		}
	}
	return 0, fmt.Errorf("%q is not none, x-forwarded-for or forwarded", s)
}

// ParseProxies reads addresses and CIDR prefixes, such as 10.0.0.0/8.
func ParseProxies(list []string) ([]netip.Prefix, error) {
	prefixes := make([]netip.Prefix, 0, len(list))
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if addr, addrErr := netip.ParseAddr(s); addrErr == nil && addr.Zone() == "" {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		switch {
		case err != nil:
			return nil, fmt.Errorf("%q is neither an address nor a prefix such as 10.0.0.0/8", s)
		case p.Addr().Is4In6():
			return nil, fmt.Errorf("%q: write it as IPv4", s)
		case p != p.Masked():
			return nil, fmt.Errorf("%q has bits behind its prefix: is %s meant?", s, p.Masked())
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}

// trust says who is believed about the address of a client.
type trust struct {
	proxies []netip.Prefix
	header  ForwardedHeader
}

func (t *trust) trusts(addr netip.Addr) bool {
	addr = addr.WithZone("")
	for _, p := range t.proxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// headerName is a header's name as it is usually written, and in lower case.
type headerName struct{ usual, lower string }

var (
	xForwardedFor = headerName{"X-Forwarded-For", "x-forwarded-for"}
	forwarded     = headerName{"Forwarded", "forwarded"}
)

// client gives the address of the client for whom a trusted peer asks: the
// right-most one in the header that is not trusted, and if all are, the
// left-most. What clients wrote themselves is to the left of that, and decides
// nothing. When there is no header, or an element to the right of the answer is
// no address (unknown, obfuscated, malformed), it is the peer's.
func (t *trust) client(peer netip.Addr, h *head) netip.Addr {
	lines, name := h.xForwardedFor, xForwardedFor
	if t.header == Forwarded {
		lines, name = h.forwarded, forwarded
	}
	chain := chain{trust: t}
	line, rest, more := bytes.Cut(lines, lineBreak)
	chain.line(line)
	for more {
		line, rest, more = bytes.Cut(rest, lineBreak)
		if colon := bytes.IndexByte(line, ':'); colon >= 0 && isName(line[:colon], name.usual, name.lower) {
			chain.line(line[colon+1:])
		}
	}
	if chain.client.IsValid() {
		return chain.client
	}
	return peer
}

var lineBreak = []byte("\r\n")

// chain follows the elements of a header from left to right.
type chain struct {
	trust  *trust
	client netip.Addr // so far; the zero Addr when it is not known
	broken bool       // the last element that is not trusted is no address
}

// line follows the elements of one line.
func (c *chain) line(b []byte) {
	if c.trust.header == Forwarded {
		c.forwarded(b)
		return
	}
	for more := true; more; {
		var element []byte
		element, b, more = bytes.Cut(b, comma)
		if element = trimBlanks(element); len(element) > 0 {
			c.node(element)
		}
	}
}

var comma = []byte(",")

// node follows an element that names a node: an address, in brackets or not,
// with a port or not.
func (c *chain) node(b []byte) {
	addr, ok := parseNode(b)
	switch {
	case !ok:
		c.fail()
	case !c.trust.trusts(addr):
		c.client, c.broken = addr, false
	case !c.client.IsValid() && !c.broken:
		c.client = addr
	}
}

func (c *chain) fail() { c.client, c.broken = netip.Addr{}, true }

// forwarded follows the elements of a Forwarded line: lists of name=value
// pairs. One that cannot be read breaks the chain, and the next begins behind the
// next comma, in quotes or not: a quote that a client has left open hides nothing
// of what its proxy writes behind it. Only one that ends where the proxy quotes a
// text that begins with a comma or a semicolon, as no host does, passes for well
// written; then it is the peer's, as no element that the client wrote is the last.
func (c *chain) forwarded(b []byte) {
	var node []byte // of the element, when found
	var pairs, nodes int
	for {
		b = trimBlanks(b)
		if len(b) == 0 || b[0] == ',' || b[0] == ';' {
			if len(b) == 0 || b[0] == ',' {
				switch {
				case nodes == 1:
					c.node(node)
				case pairs > 0:
					c.fail() // nobody is named, or two are
				}
				node, pairs, nodes = nil, 0, 0
			}
			if len(b) == 0 {
				return
			}
			b = b[1:]
			continue
		}
		name, value, rest, ok := cutPair(b)
		if !ok {
			c.fail()
			node, pairs, nodes = nil, 0, 0
			_, b, _ = bytes.Cut(b, comma)
			continue
		}
		pairs++
		if isName(name, "for", "for") {
			node, nodes = value, nodes+1
		}
		b = rest
	}
}

// cutPair takes name=value off the start of b. The value may be quoted. Not
// quoted it may hold more than a token, as some proxies write addresses so.
func cutPair(b []byte) (name, value, rest []byte, ok bool) {
	equals := 0
	for equals < len(b) && token[b[equals]] {
		equals++
	}
	if equals == 0 || equals == len(b) || b[equals] != '=' {
		return nil, nil, nil, false
	}
	name, b = b[:equals], b[equals+1:]
	if len(b) == 0 || b[0] != '"' {
		end := 0
		for end < len(b) && !strings.ContainsRune("\t \",;", rune(b[end])) {
			end++
		}
		value, rest = b[:end], b[end:]
	} else {
		end := 1
		for end < len(b) && b[end] != '"' {
			if b[end] == '\\' {
				end++
			}
			end++
		}
		if end >= len(b) {
			return nil, nil, nil, false
		}
		value, rest = b[1:end], b[end+1:] // an address has no use for escapes
	}
	after := trimBlanks(rest)
	return name, value, rest, len(after) == 0 || after[0] == ',' || after[0] == ';'
}

// maxNode bounds the length of an address with its port.
const maxNode = len("[0000:0000:0000:0000:0000:ffff:255.255.255.255]:65535")

// parseNode reads an address: IPv4, IPv6 or IPv6 in brackets, the first and the
// last with a port behind it or not. Zones are not accepted.
func parseNode(b []byte) (netip.Addr, bool) {
	if len(b) == 0 || len(b) > maxNode || bytes.IndexByte(b, '%') >= 0 {
		return netip.Addr{}, false
	}
	bracketed := b[0] == '['
	if bracketed {
		end := bytes.IndexByte(b, ']')
		if end < 0 || !isNodePort(b[end+1:]) {
			return netip.Addr{}, false
		}
		b = b[1:end]
	} else if colon := bytes.IndexByte(b, ':'); colon >= 0 && bytes.IndexByte(b[colon+1:], ':') < 0 {
		if !isNodePort(b[colon:]) {
			return netip.Addr{}, false
		}
		b = b[:colon]
	}
	// The string lives no longer than the call: an address without a zone keeps
	// nothing of it, and the error is dropped.
	addr, err := netip.ParseAddr(unsafe.String(unsafe.SliceData(b), len(b)))
	if err != nil || bracketed && addr.Is4() {
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

// isNodePort says whether b is nothing, or a colon and a port: a number, or in
// Forwarded a word that begins with an underscore.
func isNodePort(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if b[0] != ':' || len(b) == 1 {
		return false
	}
	if b[1] == '_' {
		for _, c := range b[2:] {
			if !token[c] {
				return false
			}
		}
		return len(b) > 2
	}
	port := 0
	for _, c := range b[1:] {
		if !isDigit(c) {
			return false
		}
		if port = port*10 + int(c-'0'); port > 65535 {
			return false
		}
	}
	return true
}
