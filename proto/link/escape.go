package link

import "strings"

// keepTable marks the bytes that an escaper leaves as they are.
type keepTable [256]bool

func keeping(more string) *keepTable {
	var t keepTable
	for c := range t {
		t[c] = c < 0x80 && (isAlphanumeric(byte(c)) || strings.IndexByte("-._~"+more, byte(c)) >= 0)
	}
	return &t
}

// The bytes that stand as they are: in a value that is escaped; in one that is
// not, in a path and behind it. The latter lack what would begin another part,
// parameter or value of a URL.
var (
	keepUnreserved = keeping("")
	keepRawPath    = keeping("/!$&'()*+,;=:@")
	keepRawQuery   = keeping("/!$'()*+,:@?")
)

// keepForwarded marks the bytes of a request's query that may follow in a
// Location: all that can stand in a header and in a query of a URL.
var keepForwarded = func() *keepTable {
	var t keepTable
	for c := '!'; c <= '~'; c++ {
		t[c] = !strings.ContainsRune("\"#<>\\`", c)
	}
	return &t
}()

// form is how a value is written.
type form uint8

const (
	plainText form = iota // as it is
	pathText              // with percent escapes
	queryText             // with percent escapes, and "+" for a space
)

// appendEscapedText appends a value as one component of a URL.
func appendEscapedText(dst, value []byte, from form) []byte {
	for {
		n := keepUnreserved.run(value)
		dst = append(dst, value[:n]...)
		if value = value[n:]; len(value) == 0 {
			return dst
		}
		c, n := value[0], 1
		if from != plainText {
			c, n = decodeLoose(value, from)
		}
		value = value[n:]
		dst = appendByte(dst, c, keepUnreserved)
	}
}

// appendRawText appends a value as it is written but for the bytes that keep
// does not allow. Percent escapes stay.
func appendRawText(dst, value []byte, keep *keepTable) []byte {
	for {
		n := keep.run(value)
		dst = append(dst, value[:n]...)
		if value = value[n:]; len(value) == 0 {
			return dst
		}
		if _, n := decodeByte(value); n == 3 {
			dst = append(dst, '%')
		} else {
			dst = appendByte(dst, value[0], keep)
		}
		value = value[1:]
	}
}

// appendForwarded appends a parameter of a request as it is, but for the bytes
// that cannot stand in a Location.
func appendForwarded(dst, text []byte) []byte {
	for {
		n := keepForwarded.run(text)
		dst = append(dst, text[:n]...)
		if text = text[n:]; len(text) == 0 {
			return dst
		}
		dst = appendByte(dst, text[0], keepForwarded)
		text = text[1:]
	}
}

// run is how many of the first bytes stay as they are.
func (t *keepTable) run(b []byte) int {
	for i, c := range b {
		if !t[c] {
			return i
		}
	}
	return len(b)
}

func appendByte(dst []byte, c byte, keep *keepTable) []byte {
	if keep[c] {
		return append(dst, c)
	}
	return append(dst, '%', upperHex[c>>4], upperHex[c&15])
}

// decodeLoose is decodeByte for what clients send: a broken escape stands for
// itself.
func decodeLoose(b []byte, from form) (byte, int) {
	switch c := b[0]; {
	case c == '+' && from == queryText:
		return ' ', 1
	case c == '%':
		if c, n := decodeByte(b); n == 3 {
			return c, 3
		}
	}
	return b[0], 1
}

// appendDecodedQuery appends a piece of a query without its escapes.
func appendDecodedQuery(dst, b []byte) []byte {
	for i := 0; i < len(b); {
		c, n := decodeLoose(b[i:], queryText)
		dst = append(dst, c)
		i += n
	}
	return dst
}

// hasEscape says whether a piece of a query is written other than it is.
func hasEscape(b []byte) bool {
	for _, c := range b {
		if c == '%' || c == '+' {
			return true
		}
	}
	return false
}

// sameName says whether two names of parameters are the same without their
// escapes.
func sameName(a, b []byte) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	if x, y := a[0], b[0]; x != y && x != '%' && x != '+' && y != '%' && y != '+' {
		return false
	}
	return string(a) == string(b) || (hasEscape(a) || hasEscape(b)) && sameDecoded(a, b, queryText)
}

// isNamed says whether a name of a parameter is, without its escapes, a plain
// one.
func isNamed(name, as []byte) bool {
	if !hasEscape(name) {
		return string(name) == string(as)
	}
	return sameDecoded(name, as, plainText)
}

func sameDecoded(a, b []byte, form form) bool {
	for len(a) > 0 && len(b) > 0 {
		x, n := decodeLoose(a, queryText)
		y, m := b[0], 1
		if form != plainText {
			y, m = decodeLoose(b, form)
		}
		if x != y {
			return false
		}
		a, b = a[n:], b[m:]
	}
	return len(a)+len(b) == 0
}
