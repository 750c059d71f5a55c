package clickstream

import "errors"

var (
	errTruncated = errors.New("it ends in the middle of a field")
	errWire      = errors.New("a field has the wrong wire type")
	errIndex     = errors.New("an index points behind the strings")
	errSnappy    = errors.New("what is compressed in it is damaged, or not alone")
	errMany      = errors.New("it has more clicks or strings than a batch can have")
	errTime      = errors.New("a click has a time that no clock shows")
)

// The wire types of protobuf.
const (
	wireVarint, wireFixed64, wireBytes, wireFixed32 = 0, 1, 2, 5
)

// field is one field of a message.
type field struct {
	number uint64
	wire   uint8
	value  uint64 // of a number
	bytes  string // of bytes
}

// next takes the first field off s.
func next(s string) (f field, rest string, err error) {
	tag, s, err := uvarint(s)
	if err != nil {
		return f, s, err
	}
	f.number, f.wire = tag>>3, uint8(tag&7)
	switch f.wire {
	case wireVarint:
		f.value, s, err = uvarint(s)
		return f, s, err
	case wireBytes:
		n, s, err := uvarint(s)
		if err != nil || n > uint64(len(s)) {
			return f, s, errTruncated
		}
		f.bytes = s[:n]
		return f, s[n:], nil
	case wireFixed64, wireFixed32:
		n := 8
		if f.wire == wireFixed32 {
			n = 4
		}
		if len(s) < n {
			return f, s, errTruncated
		}
		for i := n - 1; i >= 0; i-- {
			f.value = f.value<<8 | uint64(s[i])
		}
		return f, s[n:], nil
	}
	return f, s, errWire
}

// number gives the number at a place, and where it ends: 0 when it does not.
func number(s string, at int) (v uint64, end int) {
	if at+1 < len(s) {
		a, b := s[at], s[at+1]
		if a < 0x80 {
			return uint64(a), at + 1
		}
		if b < 0x80 {
			return uint64(a&0x7f) | uint64(b)<<7, at + 2
		}
	}
	v, rest, err := uvarint(s[at:])
	if err != nil {
		return 0, 0
	}
	return v, len(s) - len(rest)
}

// uvarint takes a number off s.
func uvarint(s string) (uint64, string, error) {
	if len(s) > 0 && s[0] < 0x80 {
		return uint64(s[0]), s[1:], nil
	}
	var v uint64
	for i := 0; i < len(s) && i < 10; i++ {
		b := s[i]
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			return v, s[i+1:], nil
		}
	}
	return 0, s, errTruncated
}

func signed(v uint64) int64 { return int64(v>>1) ^ -int64(v&1) }
