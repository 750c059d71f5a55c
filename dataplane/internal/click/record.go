package click

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"sync/atomic"
	"unsafe"
)

// A record, little-endian, at an offset that is a multiple of 8:
//
//	 0  u64  head: length in bytes, padded to a multiple of 8 (low half) and
//	         checksum of everything behind the head (high half)
//	 8  u32  index in its segment
//	12  u8   version of this layout: 1
//	13  u8   outcome
//	14  u16  status
//	16  u32  rule
//	20  u8   flags: 1 is HEAD, 2 is an address that is truncated where the policy
//	         does not say so
//	21  u8   bytes of the address: 0, 4, 8 (hashed) or 16
//	22  u16  zero
//	24  i64  time, µs since 1970
//	32  u64  epoch
//	40  i64  revision
//	48  u16  bytes of each of the fields, in the order of the constants below
//	70  u16  bytes of the extras: 0 when there are none
//	72       the address, the fields, the extras, zeros up to the length
//
// The extras, which a reader may pass over:
//
//	0  u32  autonomous system
//	4  2 bytes  country
//	6  u8   parameters
//	7  u8   labels
//	8       each parameter, then each label: bytes of name and value, u16 each,
//	        the name, the value
//
// A reader that does not know the version of a record counts it as damaged.
const (
	recordVersion = 1
	fixedBytes    = 72
	extraBytes    = 8

	// MaxRecord is the most bytes that a record may have. All that a client
	// sends fits several times; only an operator's own fields can exceed it.
	MaxRecord = 64<<10 - 8

	flagHead      = 1
	flagTruncated = 2 // earlier versions do not write it, and pass over it
)

// The fields of a record, in order.
const (
	fieldDomain = iota // link's domain and path: one string for the reader
	fieldLink
	fieldAffiliate
	fieldCampaign
	fieldVariant
	fieldDestination
	fieldUserAgent
	fieldReferrer
	fieldLanguages
	fieldHost
	fieldPath
	fields
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum covers a record behind its head. The segment's salt is in it, so
// that nothing that a client can send looks like a record.
func checksum(salt uint32, body []byte) uint32 { return crc32.Update(salt, castagnoli, body) }

// load and store access a record's head. The storage of a segment is aligned
// to 8 bytes and so is every record.
func loadHead(mem []byte, pos int) uint64 {
	return atomic.LoadUint64((*uint64)(unsafe.Pointer(&mem[pos : pos+8][0])))
}

func storeHead(mem []byte, pos int, head uint64) {
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&mem[pos : pos+8][0])), head)
}

// layout says where an event goes in a record.
type layout struct {
	length  int // of the record, padded
	address int // bytes
	extra   int // bytes
	part    [fields]uint16
	pairs   [2]int // parameters, labels
}

// plan cuts what is over-long, leaves out what is not to be recorded, and
// measures the record. It gives false when the event does not fit into one.
func (l *layout) plan(e *Event, p *policy) bool {
	path := e.Path
	if string(path) == string(e.LinkPath) {
		path = nil // the link's own
	}
	whole := len(e.LinkDomain) | len(e.LinkPath) | len(e.Affiliate) | len(e.Campaign) | len(e.Variant) | len(e.Destination)
	if whole > MaxRecord {
		return false
	}
	l.part[fieldDomain] = uint16(len(e.LinkDomain))
	l.part[fieldLink] = uint16(len(e.LinkPath))
	l.part[fieldAffiliate] = uint16(len(e.Affiliate))
	l.part[fieldCampaign] = uint16(len(e.Campaign))
	l.part[fieldVariant] = uint16(len(e.Variant))
	l.part[fieldDestination] = uint16(min(len(e.Destination), p.destination))
	l.part[fieldUserAgent] = uint16(min(len(e.UserAgent), p.userAgent))
	l.part[fieldReferrer] = uint16(min(len(e.Referrer), p.referrer))
	l.part[fieldLanguages] = uint16(min(len(e.Languages), p.languages))
	l.part[fieldHost] = uint16(min(len(e.Host), p.host))
	l.part[fieldPath] = uint16(min(len(path), p.path))
	l.address = p.addressBytes(e)
	n := fixedBytes + l.address
	for _, p := range l.part {
		n += int(p)
	}
	l.extra = 0
	if len(e.Parameters) > 0 || len(e.Labels) > 0 || e.ASN != 0 || e.Country != [2]byte{} {
		l.planExtra(e, p)
	}
	l.length = (n + l.extra + 7) &^ 7
	return l.length <= MaxRecord
}

// planExtra measures the extras.
func (l *layout) planExtra(e *Event, p *policy) {
	l.extra = extraBytes
	for i, pairs := range [...]struct {
		all  []Pair
		room int
	}{{e.Parameters, p.parameters}, {e.Labels, MaxLabels}} {
		var size int
		l.pairs[i], size = fitting(pairs.all, pairs.room)
		l.extra += size
	}
}

// fitting says how many pairs have room in so many bytes, and what they take.
func fitting(pairs []Pair, room int) (count, size int) {
	for ; count < min(len(pairs), math.MaxUint8); count++ {
		more := 4 + len(pairs[count].Name) + len(pairs[count].Value)
		if size+more > room {
			break
		}
		size += more
	}
	return count, size
}

// write fills the record b, all but its head.
func (l *layout) write(b []byte, index uint32, e *Event, p *policy) {
	le := binary.LittleEndian
	fixed := b[:fixedBytes]
	le.PutUint32(fixed[8:], index)
	fixed[12] = recordVersion
	fixed[13] = e.Outcome
	le.PutUint16(fixed[14:], e.Status)
	le.PutUint32(fixed[16:], e.Rule)
	if e.Head {
		fixed[20] = flagHead
	}
	if l.address > 0 && e.GPC && p.form != AddressTruncated {
		fixed[20] |= flagTruncated
	}
	fixed[21] = uint8(l.address)
	le.PutUint64(fixed[24:], uint64(e.Time))
	le.PutUint64(fixed[32:], e.Epoch)
	le.PutUint64(fixed[40:], uint64(e.Revision))
	for i, p := range l.part {
		le.PutUint16(fixed[48+2*i:], p)
	}
	le.PutUint16(fixed[70:], uint16(l.extra))
	n := fixedBytes
	p.writeAddress(b[n:n+l.address], e)
	n += l.address
	n += copy(b[n:], e.LinkDomain)
	n += copy(b[n:], e.LinkPath)
	n += copy(b[n:], e.Affiliate)
	n += copy(b[n:], e.Campaign)
	n += copy(b[n:], e.Variant)
	n += copy(b[n:], e.Destination[:l.part[fieldDestination]])
	n += copy(b[n:], e.UserAgent[:l.part[fieldUserAgent]])
	n += copy(b[n:], e.Referrer[:l.part[fieldReferrer]])
	n += copy(b[n:], e.Languages[:l.part[fieldLanguages]])
	n += copy(b[n:], e.Host[:l.part[fieldHost]])
	n += copy(b[n:], e.Path[:l.part[fieldPath]])
	if l.extra > 0 {
		l.writeExtra(b[n:n+l.extra], e, p)
	}
}

func (l *layout) writeExtra(b []byte, e *Event, p *policy) {
	if !p.omitASN {
		binary.LittleEndian.PutUint32(b, e.ASN)
	}
	if !p.omitCountry {
		b[4], b[5] = e.Country[0], e.Country[1]
	}
	b[6], b[7] = uint8(l.pairs[0]), uint8(l.pairs[1])
	b = b[extraBytes:]
	for i := range l.pairs[0] {
		b = writePair(b, &e.Parameters[i])
	}
	for i := range l.pairs[1] {
		b = writePair(b, &e.Labels[i])
	}
}

func writePair(b []byte, p *Pair) []byte {
	binary.LittleEndian.PutUint16(b, uint16(len(p.Name)))
	binary.LittleEndian.PutUint16(b[2:], uint16(len(p.Value)))
	n := 4 + copy(b[4:], p.Name)
	return b[n+copy(b[n:], p.Value):]
}

// Click is a recorded click. Its slices belong to the cursor that gave it and
// are valid until the cursor's next step.
type Click struct {
	Sequence uint64
	Time     int64 // µs since 1970
	Epoch    uint64
	Revision int64

	Link, Affiliate, Campaign, Variant, Destination []byte
	UserAgent, Referrer, Languages, Host            []byte
	Path                                            []byte // empty when it is the link's own
	Address                                         []byte // 0, 4, 8 or 16 bytes, under the policy of its boot unless Truncated
	Parameters, Labels                              Pairs
	Country                                         [2]byte // zero when unknown
	ASN                                             uint32  // 0 when unknown

	Rule      uint32
	Status    uint16
	Outcome   uint8
	Head      bool
	Truncated bool // the address is, under a policy that does not say so
}

// read fills c from the record b, which has been checked for its length; it
// gives false when the record contradicts itself or is of another version.
// c.Sequence stays as it is.
func (c *Click) read(b []byte) (index uint32, ok bool) {
	if len(b) < fixedBytes || b[12] != recordVersion {
		return 0, false
	}
	le := binary.LittleEndian
	index = le.Uint32(b[8:])
	c.Outcome = b[13]
	c.Status = le.Uint16(b[14:])
	c.Rule = le.Uint32(b[16:])
	c.Head, c.Truncated = b[20]&flagHead != 0, b[20]&flagTruncated != 0
	c.Time = int64(le.Uint64(b[24:]))
	c.Epoch = le.Uint64(b[32:])
	c.Revision = int64(le.Uint64(b[40:]))
	n := fixedBytes + int(b[21])
	if n > len(b) {
		return 0, false
	}
	c.Address = b[fixedBytes:n]
	// The link's two parts lie side by side and are read as one.
	end := n + int(le.Uint16(b[48:])) + int(le.Uint16(b[50:]))
	if end > len(b) {
		return 0, false
	}
	c.Link, n = b[n:end], end
	for i, field := range [...]*[]byte{
		&c.Affiliate, &c.Campaign, &c.Variant, &c.Destination,
		&c.UserAgent, &c.Referrer, &c.Languages, &c.Host, &c.Path,
	} {
		end = n + int(le.Uint16(b[52+2*i:]))
		if end > len(b) {
			return 0, false
		}
		*field, n = b[n:end], end
	}
	end = n + int(le.Uint16(b[70:]))
	return index, end <= len(b) && c.readExtra(b[n:end])
}

// readExtra gives false when the extras contradict themselves.
func (c *Click) readExtra(b []byte) bool {
	c.Parameters, c.Labels, c.Country, c.ASN = Pairs{}, Pairs{}, [2]byte{}, 0
	if len(b) == 0 {
		return true
	}
	if len(b) < extraBytes {
		return false
	}
	c.ASN, c.Country = binary.LittleEndian.Uint32(b), [2]byte(b[4:6])
	parameters, labels := int(b[6]), int(b[7])
	var ok bool
	if c.Parameters, b, ok = splitPairs(b[extraBytes:], parameters); !ok {
		return false
	}
	c.Labels, _, ok = splitPairs(b, labels)
	return ok
}

// Pairs are the parameters or labels of a recorded click.
type Pairs struct{ b []byte }

// splitPairs takes the first pairs off b.
func splitPairs(b []byte, count int) (pairs Pairs, rest []byte, ok bool) {
	rest = b
	for range count {
		if len(rest) < 4 {
			return Pairs{}, nil, false
		}
		n := 4 + int(binary.LittleEndian.Uint16(rest)) + int(binary.LittleEndian.Uint16(rest[2:]))
		if n > len(rest) {
			return Pairs{}, nil, false
		}
		rest = rest[n:]
	}
	return Pairs{b[:len(b)-len(rest)]}, rest, true
}

// Next takes the first pair off, and gives false when there is none. The pair is
// of the click's storage.
func (p *Pairs) Next() (Pair, bool) {
	if len(p.b) == 0 {
		return Pair{}, false
	}
	name := 4 + int(binary.LittleEndian.Uint16(p.b))
	end := name + int(binary.LittleEndian.Uint16(p.b[2:]))
	pair := Pair{Name: p.b[4:name], Value: p.b[name:end]}
	p.b = p.b[end:]
	return pair, true
}

// Bytes are the pairs as they lie in the record: who has the same has the same pairs.
func (p *Pairs) Bytes() []byte { return p.b }

// Len is how many bytes the pairs take, with 4 for each.
func (p *Pairs) Len() int { return len(p.b) }

// verify says whether a whole record lies at pos, and how long it is.
func verify(mem []byte, pos int, salt uint32) (length int, ok bool) {
	head := loadHead(mem, pos)
	length = int(uint32(head))
	if length < fixedBytes || length > MaxRecord || length%8 != 0 || length > len(mem)-pos {
		return 0, false
	}
	return length, checksum(salt, mem[pos+8:pos+length]) == uint32(head>>32)
}
