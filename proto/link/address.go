package link

import (
	"bytes"
	"net/netip"
	"strings"
)

// ParsePrefix reads an address or a prefix in CIDR form, in its canonical form:
// without bits behind the prefix, no IPv4 written as IPv6, no zone, and not
// everything. An address is the prefix of it alone. For what is not canonical,
// the hint is the cure. The error's field is left to the caller.
func ParsePrefix(text string) (netip.Prefix, error) {
	prefix, err := parsePrefix(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	return prefix, nil
}

func parsePrefix(text string) (netip.Prefix, *Error) {
	bad := func(hint, format string, args ...any) (netip.Prefix, *Error) {
		return netip.Prefix{}, invalid("", hint, format, args...)
	}
	const example = "an address or a prefix looks like 203.0.113.7, 203.0.113.0/24 or 2001:db8::/48"
	const most = 64 // the longest prefix has 43 bytes
	if text == "" {
		return bad(example, "is missing")
	}
	var prefix netip.Prefix
	address, bits, slash := strings.Cut(text[:min(len(text), most)], "/")
	addr, err := netip.ParseAddr(address)
	switch {
	case err != nil || len(text) > most:
		return bad(example, "%.*q is no address", most, text)
	case addr.Zone() != "":
		return bad("write it as "+addr.WithZone("").String(), "%q has a zone, which means something on one machine only", text)
	case slash:
		if prefix, err = netip.ParsePrefix(text); err != nil {
			return bad(example, "%q is no prefix: %q is not its length in bits", text, bits)
		}
	default:
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	switch {
	case prefix.Bits() == 0:
		return bad("a policy says what is done about everybody", "%q is everybody", text)
	case addr.Is4In6():
		plain := netip.PrefixFrom(addr.Unmap(), max(prefix.Bits()-96, 1)).Masked()
		return bad("write it as "+FormatPrefix(plain), "%q is an IPv4 address written as IPv6, which no request has", text)
	case prefix.Masked() != prefix:
		return bad("write it as "+prefix.Masked().String()+", or as "+addr.String()+" for that address alone", "%q has bits behind its first %d", text, prefix.Bits())
	}
	if canonical := FormatPrefix(prefix); text != canonical && text != prefix.String() {
		return bad("write it as "+canonical, "%q is not canonical", text)
	}
	return prefix, nil
}

// isIPv6 says whether s is an IPv6 address without a zone, as netip.ParseAddr does,
// which allocates to say no.
func isIPv6(s []byte) bool {
	const most = 8 // groups of 16 bits
	groups, gap := 0, false
	if bytes.HasPrefix(s, []byte("::")) {
		gap, s = true, s[2:]
	}
	for len(s) > 0 {
		n := 0
		for n < len(s) && unhex(s[n]) <= 15 {
			n++
		}
		if n < len(s) && s[n] == '.' {
			if !isIPv4(s) {
				return false
			}
			groups += 2
			break
		}
		if n == 0 || n > 4 || groups == most {
			return false
		}
		groups++
		if s = s[n:]; len(s) == 0 {
			break
		}
		if s[0] != ':' || len(s) == 1 {
			return false
		}
		if s = s[1:]; s[0] == ':' {
			if gap {
				return false
			}
			gap, s = true, s[1:]
		}
	}
	return groups == most && !gap || groups < most && gap
}

// isIPv4 likewise.
func isIPv4(s []byte) bool {
	for dots := 0; ; dots++ {
		n, value := 0, 0
		for n < len(s) && n < 3 && '0' <= s[n] && s[n] <= '9' {
			value = 10*value + int(s[n]-'0')
			n++
		}
		if n == 0 || n > 1 && s[0] == '0' || value > 255 {
			return false
		}
		if s = s[n:]; dots == 3 || len(s) == 0 || s[0] != '.' {
			return dots == 3 && len(s) == 0
		}
		s = s[1:]
	}
}

// resemblesIPv6 says whether a host has brackets, and in them what addresses are made
// of, in lower case.
func resemblesIPv6(host string) bool {
	inside, begins := strings.CutPrefix(host, "[")
	inside, ends := strings.CutSuffix(inside, "]")
	return begins && ends && len(inside) > 1 && strings.Trim(inside, "0123456789abcdef:.") == ""
}

// FormatPrefix writes a prefix in the form that is the shortest: that of one
// address is the address.
func FormatPrefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
