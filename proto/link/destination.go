package link

import (
	"bytes"
)

// CheckDestination checks what Location may be: an absolute http or https URL
// in ASCII, or a template of one, without user information, control characters, spaces and
// backslashes, with a host, at most MaxDestination bytes. Whatever passes,
// net/url parses to the same host, and so it does once macros are filled in.
func CheckDestination(field, destination string) error {
	if err := checkDestination(field, []byte(destination)); err != nil {
		return err
	}
	return nil
}

func checkDestination(field string, url []byte) *Error {
	if len(url) == 0 {
		return invalid(field, "a destination looks like https://store.com/p/123", "is missing")
	}
	if len(url) > MaxDestination {
		return invalid(field, "", "is %d bytes long, and at most %d are allowed", len(url), MaxDestination)
	}
	var seen urlClass
	for _, c := range url {
		seen |= urlClasses[c]
	}
	if seen&urlBad != 0 {
		return badByte(field, url)
	}
	rest, err := cutScheme(field, url)
	if err != nil {
		return err
	}
	authority := authorityOf(rest)
	if err := checkAuthority(field, url, authority); err != nil {
		return err
	}
	if seen&urlPercent != 0 {
		if err := checkEscapes(field, url, rest[len(authority):]); err != nil {
			return err
		}
	}
	if seen&urlBrace != 0 {
		return checkTemplate(field, url, rest[len(authority):])
	}
	return nil
}

// urlClass says what the bytes of a URL are, all at once.
type urlClass uint8

const (
	urlBad     urlClass = 1 << iota // may not stand in it
	urlBrace                        // begins or ends a macro
	urlPercent                      // begins an escape
	urlBehind                       // ends the authority
)

var urlClasses = func() (classes [256]urlClass) {
	for c := range classes {
		switch {
		case c <= ' ' || c >= 0x7f || c == '\\':
			classes[c] = urlBad
		case c == '{' || c == '}':
			classes[c] = urlBrace
		case c == '%':
			classes[c] = urlPercent
		case c == '/' || c == '?' || c == '#':
			classes[c] = urlBehind
		}
	}
	return classes
}()

// badByte says what is wrong with a URL that has a byte of the class urlBad.
func badByte(field string, url []byte) *Error {
	for _, c := range url {
		switch {
		case urlClasses[c] != urlBad:
		case c < ' ' || c == 0x7f:
			return invalid(field, "percent-encode it", "has the control character %#02x in it", c)
		case c == '\\':
			return invalid(field, "write it as %5C, or as a slash", "%q has a backslash in it", url)
		default:
			return invalid(field, "percent-encode it: "+escapeURL(url), "%q has a space or a byte outside ASCII in it", url)
		}
	}
	panic("BUG: a URL without a bad byte is said to have one")
}

// authorityOf is the host, with its port, of what follows the scheme.
func authorityOf(rest []byte) []byte {
	for i, c := range rest {
		if urlClasses[c] == urlBehind {
			return rest[:i]
		}
	}
	return rest
}

func cutScheme(field string, url []byte) ([]byte, *Error) {
	const hint = "a destination looks like https://store.com/p/123"
	for _, scheme := range []string{"https://", "http://"} {
		if len(url) >= len(scheme) && bytes.EqualFold(url[:len(scheme)], []byte(scheme)) {
			return url[len(scheme):], nil
		}
	}
	i := bytes.IndexAny(url, ":/?#")
	if i > 0 && url[i] == ':' {
		return nil, invalid(field, hint, "%q is not an http or https URL", url)
	}
	return nil, invalid(field, hint, "%q is relative", url)
}

func checkAuthority(field string, url, authority []byte) *Error {
	if bytes.IndexByte(authority, '@') >= 0 {
		return invalid(field, "leave out what stands before the @", "%q has user information in it", url)
	}
	var buf [MaxHost + 1]byte
	if len(authority) == 0 || authority[0] == ':' {
		return invalid(field, "", "%q has no host", url)
	}
	_, ok := AppendCanonicalHost(buf[:0], authority)
	if i := bytes.IndexAny(authority, "{}"); !ok && i >= 0 {
		return invalid(field, "write the host in full: a macro may stand behind it only", "%q has a %q in its host", url, authority[i])
	}
	if !ok {
		return invalid(field, "", "%q has a host or port that is none", url)
	}
	return nil
}

// checkEscapes checks the percent escapes of the path; in query and fragment
// anything goes, as it does for browsers.
func checkEscapes(field string, url, rest []byte) *Error {
	for i := 0; i < len(rest); i++ {
		switch rest[i] {
		case '?':
			if j := bytes.IndexByte(rest, '#'); j > i {
				i = j - 1
				continue
			}
			return nil
		case '%':
			if _, n := decodeByte(rest[i:]); n == 0 {
				return invalid(field, "write a percent sign as %25", "%q has a broken percent escape", url)
			}
		}
	}
	return nil
}

// escapeURL percent-encodes what cannot stand in a URL.
func escapeURL(url []byte) string {
	var b []byte
	for _, c := range url {
		if c <= ' ' || c >= 0x7f || c == '\\' {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}
