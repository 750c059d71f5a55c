package clickstream

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Batch is one message: consecutive clicks of one node.
type Batch struct {
	Node, Region string
	Boot         Hex
	// First is the sequence of the first click; without clicks, the one that
	// the next click will have.
	First  uint64
	Ledger Ledger
	Clicks []Click
}

// Ledger is a node's account since its boot: Answered = Recorded + all of
// Dropped. When Final is true, the boot has ended and nothing follows.
type Ledger struct {
	Answered uint64            `json:"answered"`
	Recorded uint64            `json:"recorded"`
	Dropped  map[string]uint64 `json:"dropped,omitempty"` // by reason: "spool_full"
	Final    bool              `json:"final,omitempty"`
}

var dropReasons = [...]string{"unspecified", "spool_full", "too_large", "corrupt", "lost_memory"}

// ErrMalformed is wrapped by what Decode says about a message that is none.
var ErrMalformed = errors.New("malformed batch")

// Decode reads one message, the bytes of an aff.click.v1.Batch. It keeps no
// reference to data.
func Decode(data []byte) (*Batch, error) {
	d := decoder{batch: new(Batch), strings: make([]string, 0, 64)}
	if err := d.decode(string(data)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return d.batch, nil
}

var (
	errTruncated = errors.New("it ends in the middle of a field")
	errWire      = errors.New("a field has the wrong wire type")
	errIndex     = errors.New("an index points behind the strings")
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

type decoder struct {
	batch    *Batch
	strings  []string
	form     AddressForm
	epoch    Hex
	baseTime int64
	revision int64
}

// The wire type that each field of Batch must have.
var batchWire = [...]uint8{
	1: wireBytes, 2: wireBytes, 3: wireFixed64, 4: wireVarint, 5: wireVarint, 6: wireFixed64, 7: wireVarint,
	8: wireBytes, 9: wireBytes, 10: wireVarint, 11: wireBytes,
}

// decode goes over the message twice: clicks refer to strings, and the order
// of fields means nothing.
func (d *decoder) decode(data string) error {
	b := d.batch
	clicks := 0
	for s := data; s != ""; {
		f, rest, err := next(s)
		if err != nil {
			return err
		}
		s = rest
		if f.number < uint64(len(batchWire)) && f.number > 0 && batchWire[f.number] != f.wire {
			return errWire
		}
		switch f.number {
		case 1:
			b.Node = f.bytes
		case 2:
			b.Region = f.bytes
		case 3:
			b.Boot = Hex(f.value)
		case 4:
			b.First = f.value
		case 5:
			d.baseTime = int64(f.value)
		case 6:
			d.epoch = Hex(f.value)
		case 7:
			d.revision = int64(f.value)
		case 8:
			d.strings = append(d.strings, f.bytes)
		case 9:
			clicks++
		case 10:
			d.form = AddressForm(f.value)
		case 11:
			if err := b.Ledger.decode(f.bytes); err != nil {
				return err
			}
		}
	}
	if len(d.strings) == 0 {
		d.strings = append(d.strings, "")
	}
	d.strings[0] = "" // whatever it holds, 0 stands for nothing
	if clicks == 0 {
		return nil
	}
	b.Clicks = make([]Click, clicks)
	i := 0
	for s := data; s != ""; {
		f, rest, _ := next(s) // the same fields as before
		s = rest
		if f.number == 9 {
			c := &b.Clicks[i]
			c.Sequence = b.First + uint64(i)
			if err := d.click(c, f.bytes); err != nil {
				return err
			}
			i++
		}
	}
	return nil
}

// clickNumber says which fields of Click are plain numbers; the others are
// bytes.
const clickNumber = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<9 | 1<<10 | 1<<11 |
	1<<13 | 1<<14 | 1<<15 | 1<<16 | 1<<17 | 1<<20 | 1<<21

func (d *decoder) click(c *Click, s string) error {
	b := d.batch
	c.Node, c.Region, c.Boot, c.Epoch = b.Node, b.Region, b.Boot, d.epoch
	c.Revision, c.Status, c.Method = d.revision, 302, "GET"
	microseconds := d.baseTime
	for s != "" {
		f, rest, err := next(s)
		if err != nil {
			return err
		}
		s = rest
		if f.number < 64 && clickNumber>>f.number&1 == 1 && f.wire != wireVarint {
			return errWire
		}
		switch f.number {
		case 1:
			microseconds = d.baseTime + signed(f.value)
		case 2:
			c.Revision = d.revision + signed(f.value)
		case 3:
			err = d.text(&c.Link, f.value)
		case 4:
			err = d.text(&c.Affiliate, f.value)
		case 5:
			err = d.text(&c.Campaign, f.value)
		case 6:
			err = d.text(&c.Variant, f.value)
		case 7:
			c.Rule = uint32(f.value)
		case 8:
			err = d.text(&c.Destination, f.value)
		case 9:
			if f.value != 0 {
				c.Status = int(uint32(f.value))
			}
		case 10:
			if f.value == 1 {
				c.Method = "HEAD"
			}
		case 11:
			c.Outcome = Outcome(f.value)
		case 12:
			if f.wire != wireBytes {
				return errWire
			}
			c.Address = Address{bytes: f.bytes, form: d.form}
		case 13:
			err = d.text(&c.UserAgent, f.value)
		case 14:
			err = d.text(&c.Referrer, f.value)
		case 15:
			err = d.text(&c.Languages, f.value)
		case 16:
			err = d.text(&c.Host, f.value)
		case 17:
			err = d.text(&c.Path, f.value)
		case 18:
			err = d.pairs(f, func(a, b string) { c.Parameters = append(c.Parameters, Parameter{a, b}) })
		case 19:
			err = d.pairs(f, func(a, b string) { c.Labels = append(c.Labels, Label{a, b}) })
		case 20:
			err = d.text(&c.Country, f.value)
		case 21:
			c.ASN = uint32(f.value)
		}
		if err != nil {
			return err
		}
	}
	if c.Path == "" { // the link's own
		if i := strings.IndexByte(c.Link, '/'); i >= 0 {
			c.Path = c.Link[i:]
		}
	}
	c.Time = time.UnixMicro(microseconds).UTC()
	return nil
}

// text looks up an index.
func (d *decoder) text(to *string, index uint64) error {
	if index >= uint64(len(d.strings)) {
		return errIndex
	}
	*to = d.strings[index]
	return nil
}

// pairs reads packed indexes two by two.
func (d *decoder) pairs(f field, add func(a, b string)) error {
	if f.wire != wireBytes {
		return errWire
	}
	for s := f.bytes; s != ""; {
		var pair [2]string
		for i := range pair {
			index, rest, err := uvarint(s)
			if err != nil {
				return err
			}
			if err := d.text(&pair[i], index); err != nil {
				return err
			}
			s = rest
		}
		add(pair[0], pair[1])
	}
	return nil
}

func (l *Ledger) decode(s string) error {
	for s != "" {
		f, rest, err := next(s)
		if err != nil {
			return err
		}
		s = rest
		switch {
		case f.number == 3 && f.wire == wireBytes:
			if err := l.drop(f.bytes); err != nil {
				return err
			}
		case f.number > 0 && f.number <= 4 && (f.number == 3 || f.wire != wireVarint):
			return errWire
		case f.number == 1:
			l.Answered = f.value
		case f.number == 2:
			l.Recorded = f.value
		case f.number == 4:
			l.Final = f.value != 0
		}
	}
	return nil
}

func (l *Ledger) drop(s string) error {
	var reason, clicks uint64
	for s != "" {
		f, rest, err := next(s)
		if err != nil {
			return err
		}
		s = rest
		if f.wire != wireVarint && (f.number == 1 || f.number == 2) {
			return errWire
		}
		switch f.number {
		case 1:
			reason = f.value
		case 2:
			clicks = f.value
		}
	}
	name := fmt.Sprintf("reason_%d", reason)
	if reason < uint64(len(dropReasons)) {
		name = dropReasons[reason]
	}
	if l.Dropped == nil {
		l.Dropped = make(map[string]uint64)
	}
	l.Dropped[name] += clicks
	return nil
}
