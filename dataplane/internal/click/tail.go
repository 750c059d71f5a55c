package click

import "encoding/binary"

// The tail of a record has what only some clicks have, little-endian:
//
//	0  u32  autonomous system
//	4  u8   bytes of the country: 0 to 2, which follow
//	        parameters: bytes of the name (u16), of the value (u16), both
const tailFixed = 5

const paramHead = 4

// planTail measures the tail and says how many parameters are kept.
func (l *layout) planTail(e *Event) {
	size := 0
	for i := range e.Params {
		p := &e.Params[i]
		more := paramHead + len(p.Name) + len(p.Value)
		if size+more > MaxParams {
			break
		}
		size += more
		l.params++
	}
	if size > 0 || e.Country != "" || e.ASN != 0 {
		l.tail = tailFixed + min(len(e.Country), 2) + size
	}
}

// writeTail appends the tail to b, which has room for it.
func (l *layout) writeTail(b []byte, e *Event) {
	le := binary.LittleEndian
	country := e.Country[:min(len(e.Country), 2)]
	b = le.AppendUint32(b, e.ASN)
	b = append(append(b, byte(len(country))), country...)
	for i := range e.Params[:l.params] {
		p := &e.Params[i]
		b = le.AppendUint16(b, uint16(len(p.Name)))
		b = le.AppendUint16(b, uint16(len(p.Value)))
		b = append(append(b, p.Name...), p.Value...)
	}
}

// readTail reads a tail; false when it contradicts itself.
func (c *Click) readTail(b []byte) bool {
	c.ASN, c.Country, c.Params = 0, nil, nil
	if len(b) == 0 {
		return true
	}
	if len(b) < tailFixed || len(b) < tailFixed+int(b[4]) {
		return false
	}
	c.ASN = binary.LittleEndian.Uint32(b)
	c.Country, c.Params = b[tailFixed:tailFixed+int(b[4])], b[tailFixed+int(b[4]):]
	for rest := c.Params; len(rest) > 0; {
		var ok bool
		if _, _, rest, ok = NextParam(rest); !ok {
			return false
		}
	}
	return true
}

// NextParam takes the first parameter off those of a Click; false when there is
// none.
func NextParam(params []byte) (name, value, rest []byte, ok bool) {
	if len(params) < paramHead {
		return nil, nil, nil, false
	}
	n := paramHead + int(binary.LittleEndian.Uint16(params))
	end := n + int(binary.LittleEndian.Uint16(params[2:]))
	if end > len(params) {
		return nil, nil, nil, false
	}
	return params[paramHead:n], params[n:end], params[end:], true
}
