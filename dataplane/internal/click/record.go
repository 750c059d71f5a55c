package click

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
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
//	20  u8   flags: 1 is HEAD
//	21  u8   bytes of the address: 0, 4 or 16
//	22  u16  zero
//	24  i64  time, µs since 1970
//	32  u64  epoch
//	40  i64  revision
//	48  u16  bytes of each of the fields, in the order of the constants below
//	70  u16  bytes of the tail: 0 when it would say nothing
//	72       the address, the fields, the tail, zeros up to the length
//
// A reader that does not know the version of a record counts it as damaged.
const (
	recordVersion = 1
	fixedBytes    = 72

	// MaxRecord is the most bytes that a record may have. All that a client
	// sends fits several times; only an operator's own fields can exceed it.
	MaxRecord = 64<<10 - 8

	flagHead = 1
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
	part    [fields]uint16
	tail    int // bytes
	params  int // that are kept
}

// plan cuts what is over-long and measures the record. It gives false when
// the event does not fit into one.
func (l *layout) plan(e *Event) bool {
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
	l.part[fieldDestination] = uint16(len(e.Destination))
	l.part[fieldUserAgent] = uint16(min(len(e.UserAgent), MaxUserAgent))
	l.part[fieldReferrer] = uint16(min(len(e.Referrer), MaxReferrer))
	l.part[fieldLanguages] = uint16(min(len(e.Languages), MaxLanguages))
	l.part[fieldHost] = uint16(min(len(e.Host), MaxHost))
	l.part[fieldPath] = uint16(min(len(path), MaxPath))
	switch {
	case !e.Address.IsValid():
		l.address = 0
	case e.Address.Is4() || e.Address.Is4In6():
		l.address = 4
	default:
		l.address = 16
	}
	n := fixedBytes + l.address
	for _, p := range l.part {
		n += int(p)
	}
	l.planTail(e)
	l.length = (n + l.tail + 7) &^ 7
	return l.length <= MaxRecord
}

// write fills the record b, all but its head.
func (l *layout) write(b []byte, index uint32, e *Event, form AddressForm) {
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
	fixed[21] = uint8(l.address)
	le.PutUint64(fixed[24:], uint64(e.Time))
	le.PutUint64(fixed[32:], e.Epoch)
	le.PutUint64(fixed[40:], uint64(e.Revision))
	for i, p := range l.part {
		le.PutUint16(fixed[48+2*i:], p)
	}
	n := fixedBytes
	n += writeAddress(b[n:n+l.address], e.Address, form)
	n += copy(b[n:], e.LinkDomain)
	n += copy(b[n:], e.LinkPath)
	n += copy(b[n:], e.Affiliate)
	n += copy(b[n:], e.Campaign)
	n += copy(b[n:], e.Variant)
	n += copy(b[n:], e.Destination)
	n += copy(b[n:], e.UserAgent[:l.part[fieldUserAgent]])
	n += copy(b[n:], e.Referrer[:l.part[fieldReferrer]])
	n += copy(b[n:], e.Languages[:l.part[fieldLanguages]])
	n += copy(b[n:], e.Host[:l.part[fieldHost]])
	n += copy(b[n:], e.Path[:l.part[fieldPath]])
	if l.tail > 0 {
		le.PutUint16(fixed[70:], uint16(l.tail))
		l.writeTail(b[n:n], e)
	}
}

// writeAddress applies the privacy policy.
func writeAddress(b []byte, a netip.Addr, form AddressForm) int {
	switch len(b) {
	case 4:
		v4 := a.As4()
		if form == AddressTruncated {
			v4[3] = 0
		}
		return copy(b, v4[:])
	case 16:
		v6 := a.As16()
		if form == AddressTruncated {
			clear(v6[6:])
		}
		return copy(b, v6[:])
	}
	return 0
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
	Country                                         []byte
	Params                                          []byte // see NextParam
	Address                                         []byte // 0, 4 or 16 bytes, under the policy of its boot

	Rule    uint32
	ASN     uint32
	Status  uint16
	Outcome uint8
	Head    bool
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
	c.Head = b[20]&flagHead != 0
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
	if end > len(b) {
		return 0, false
	}
	return index, c.readTail(b[n:end])
}

// verify says whether a whole record lies at pos, and how long it is.
func verify(mem []byte, pos int, salt uint32) (length int, ok bool) {
	head := loadHead(mem, pos)
	length = int(uint32(head))
	if length < fixedBytes || length > MaxRecord || length%8 != 0 || length > len(mem)-pos {
		return 0, false
	}
	return length, checksum(salt, mem[pos+8:pos+length]) == uint32(head>>32)
}
