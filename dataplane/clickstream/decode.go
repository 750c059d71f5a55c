package clickstream

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/klauspost/compress/s2"
)

// Batch is one message: consecutive clicks of one node.
type Batch struct {
	Node, Region string
	Boot         Hex
	// First is the sequence of the first click of the message; without clicks,
	// the one that the next click will have.
	First uint64
	// Count is how many clicks the message holds. From Consume, Clicks are
	// those that are wanted and new.
	Count  uint64
	Ledger Ledger
	Clicks []Click

	// Where the message lies; Consume knows.
	StreamSequence uint64
	Stored         time.Time // when the stream took it
	Pending        uint64    // messages behind it
}

// ErrMalformed is wrapped by what is said about a message that is no batch.
var ErrMalformed = errors.New("malformed batch")

// Decode reads one message, the bytes of an aff.click.v1.Batch. It keeps no
// reference to data. Fields that it does not know are from newer nodes, and
// are skipped.
func Decode(data []byte) (*Batch, error) {
	var d decoder
	b, err := d.head(data)
	if err != nil {
		return nil, err
	}
	return b, d.clicks(nil, nil)
}

// decoder reads one message after another; it belongs to one goroutine.
type decoder struct {
	batch    *Batch
	packed   string // what was compressed in the message, once it is not any more
	strings  []string
	raw      []string // the clicks
	reuse    bool     // storage of clicks belongs to the decoder
	storage  []Click
	form     AddressForm
	epoch    Hex
	baseTime int64
	revision int64
	wanted   wanted
}

// The tags of what a batch has most of, each one byte.
const (
	tagString = 8<<3 | wireBytes
	tagClick  = 9<<3 | wireBytes
)

// The wire type that each field of Batch must have.
var batchWire = [...]uint8{
	1: wireBytes, 2: wireBytes, 3: wireFixed64, 4: wireVarint, 5: wireVarint, 6: wireFixed64, 7: wireVarint,
	8: wireBytes, 9: wireBytes, 10: wireVarint, 11: wireBytes, 12: wireBytes,
}

// head reads all but the clicks, which refer to strings: the order of fields
// means nothing.
func (d *decoder) head(data []byte) (*Batch, error) {
	b := new(Batch)
	*d = decoder{batch: b, strings: d.strings[:0], raw: d.raw[:0], wanted: d.wanted, reuse: d.reuse, storage: d.storage}
	if err := d.fields(string(data)); err != nil {
		return nil, malformed(err)
	}
	if d.packed != "" {
		if len(d.strings) > 0 || len(d.raw) > 0 {
			return nil, malformed(errSnappy)
		}
		packed := d.packed
		d.packed = ""
		if err := d.fields(packed); err != nil {
			return nil, malformed(err)
		}
		if d.packed != "" {
			return nil, malformed(errSnappy)
		}
	}
	b.Count = uint64(len(d.raw))
	if len(d.strings) == 0 {
		d.strings = append(d.strings, "")
	}
	d.strings[0] = "" // whatever it holds, 0 stands for nothing
	return b, nil
}

// fields reads the fields of a message, or of what is compressed in it.
func (d *decoder) fields(s string) error {
	b := d.batch
	for s != "" {
		if tag := s[0]; tag == tagString || tag == tagClick { // nearly all
			n, at := number(s, 1)
			if at == 0 || n > uint64(len(s)-at) {
				return errTruncated
			}
			end := at + int(n)
			if tag == tagString {
				d.strings = append(d.strings, s[at:end])
			} else {
				d.raw = append(d.raw, s[at:end])
			}
			if d.many() {
				return errMany
			}
			s = s[end:]
			continue
		}
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
		case 8: // with a tag that is longer than it need be
			d.strings = append(d.strings, f.bytes)
		case 9:
			d.raw = append(d.raw, f.bytes)
		case 10:
			d.form = AddressForm(min(f.value, 255))
		case 11:
			if err := b.Ledger.decode(f.bytes); err != nil {
				return err
			}
		case 12:
			if d.packed != "" {
				return errSnappy
			}
			if d.packed, err = unpack(f.bytes); err != nil {
				return err
			}
		}
		if d.many() {
			return errMany
		}
	}
	return nil
}

func (d *decoder) many() bool { return len(d.strings) > maxEntries || len(d.raw) > maxEntries }

// maxEntries bounds the clicks of a message, and its strings: nodes put 256 KiB into
// one before they compress it, and each takes two bytes. In memory it takes hundreds.
const maxEntries = 128 << 10

// maxUnpacked is more than any node puts into a message, many times.
const maxUnpacked = 32 << 20

// unpack gives what is compressed in a message.
func unpack(packed string) (string, error) {
	src := []byte(packed)
	n, err := s2.DecodedLen(src)
	if err != nil || n > maxUnpacked {
		return "", errSnappy
	}
	b, err := s2.Decode(make([]byte, n), src)
	if err != nil {
		return "", errSnappy
	}
	return unsafe.String(unsafe.SliceData(b), len(b)), nil // nobody else has b
}

func malformed(err error) error { return fmt.Errorf("%w: %w", ErrMalformed, err) }

// clicks reads those clicks of the message that lie in the ranges, which are
// in order, and match the filter. Without ranges: all.
func (d *decoder) clicks(ranges []Range, filter *Filter) error {
	b := d.batch
	if b.Count == 0 || filter != nil && !d.wanted.find(filter, d.strings) {
		return nil
	}
	most := b.Count
	if len(ranges) > 0 {
		most = 0
		for _, r := range ranges {
			most += r.Len()
		}
	}
	switch {
	case d.reuse:
		d.storage = slices.Grow(d.storage[:0], int(most))
		b.Clicks = d.storage
	case filter == nil:
		b.Clicks = make([]Click, 0, most)
	}
	if len(ranges) == 0 {
		ranges = []Range{{b.First, b.First + b.Count - 1}}
	}
	for _, r := range ranges {
		for i, s := range d.raw[r.From-b.First : r.To+1-b.First] {
			if filter != nil {
				if match, err := d.wanted.match(s); err != nil {
					return malformed(err)
				} else if !match {
					continue
				}
			}
			b.Clicks = append(b.Clicks, Click{})
			c := &b.Clicks[len(b.Clicks)-1]
			c.Sequence = r.From + uint64(i)
			if err := d.click(c, s); err != nil {
				b.Clicks = nil
				return malformed(err)
			}
		}
	}
	return nil
}

// The years 1 to 9998, in microseconds: JSON and databases take no others.
const (
	minTime = -62135596800 * 1e6
	maxTime = 253370764800 * 1e6
)

// clickNumber says which fields of Click are plain numbers; the others are
// bytes.
const clickNumber = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<9 | 1<<10 | 1<<11 |
	1<<13 | 1<<14 | 1<<15 | 1<<16 | 1<<17 | 1<<20 | 1<<21 | 1<<22

func (d *decoder) click(c *Click, s string) error {
	b := d.batch
	c.Node, c.Region, c.Boot, c.Epoch = b.Node, b.Region, b.Boot, d.epoch
	c.Revision, c.Status, c.Method = d.revision, 302, "GET"
	microseconds, form := d.baseTime, d.form
	for i := 0; i < len(s); {
		tag, at := number(s, i)
		v, end := number(s, at)
		if tag&7 != wireVarint || tag >= 64<<3 || at == 0 {
			f, rest, err := next(s[i:])
			if err == nil {
				err = d.other(c, f)
			}
			if err != nil {
				return err
			}
			i = len(s) - len(rest)
			continue
		}
		if i = end; end == 0 {
			return errTruncated
		}
		var text *string
		switch tag >> 3 {
		case 1:
			microseconds = d.baseTime + signed(v)
		case 2:
			c.Revision = d.revision + signed(v)
		case 3:
			text = &c.Link
		case 4:
			text = &c.Affiliate
		case 5:
			text = &c.Campaign
		case 6:
			text = &c.Variant
		case 7:
			c.Rule = uint32(v)
		case 8:
			text = &c.Destination
		case 9:
			if v != 0 {
				c.Status = int(uint32(v))
			}
		case 10:
			c.Method = method(v)
		case 11:
			c.Outcome = Outcome(min(v, 255))
		case 12, 18, 19:
			return errWire
		case 13:
			text = &c.UserAgent
		case 14:
			text = &c.Referrer
		case 15:
			text = &c.Languages
		case 16:
			text = &c.Host
		case 17:
			text = &c.Path
		case 20:
			text = &c.Country
		case 21:
			c.ASN = uint32(v)
		case 22:
			if v != 0 {
				form = AddressForm(min(v, 255))
			}
		}
		if text == nil {
			continue
		}
		if v >= uint64(len(d.strings)) {
			return errIndex
		}
		*text = d.strings[v]
	}
	if c.Path == "" { // the link's own
		if i := strings.IndexByte(c.Link, '/'); i >= 0 {
			c.Path = c.Link[i:]
		}
	}
	if microseconds < minTime || microseconds >= maxTime {
		return errTime
	}
	c.Address.tell(form)
	c.Time = time.UnixMicro(microseconds).UTC()
	return nil
}

// other takes a field of a click that is no number, or is not known.
func (d *decoder) other(c *Click, f field) error {
	if f.number < 64 && clickNumber>>f.number&1 == 1 && f.wire != wireVarint {
		return errWire
	}
	switch f.number {
	case 12:
		if f.wire != wireBytes {
			return errWire
		}
		c.Address.bytes = f.bytes
	case 18:
		return d.pairs(f, func(a, b string) { c.Parameters = append(c.Parameters, Parameter{a, b}) })
	case 19:
		return d.pairs(f, func(a, b string) { c.Labels = append(c.Labels, Label{a, b}) })
	}
	return nil
}

// method is the name of a number of aff.click.v1.Method.
func method(number uint64) string {
	switch number {
	case 0:
		return "GET"
	case 1:
		return "HEAD"
	}
	return "method_" + strconv.FormatUint(number, 10) // of a newer node
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
