package publish

import (
	"encoding/binary"
	"hash/maphash"
	"runtime"
	"slices"

	"github.com/affleet/affleet/dataplane/internal/click"
)

const (
	// A batch is cut when it has this age or, encoded and before it is
	// compressed, this many bytes. One click alone may be larger.
	maxBatchBytes = 256 << 10

	maxStrings = 6000    // of a batch, so that the table below stays sparse
	slots      = 1 << 13 // a power of two
	clickBytes = 384     // a click's numbers and address, encoded, at most
)

// encoder writes one clickv1.Batch at a time, by hand: strings and clicks are
// written in the order in which they come up, and packed when they are all
// there. It belongs to one goroutine.
type encoder struct {
	identity []byte // the fields that each batch of a log begins with
	limit    int    // bytes of a batch

	head     int    // bytes of the batch before the block, without its own head
	sealed   bool   // all is in the block
	buf      []byte // the strings, which are compressed, and what the clicks refer to
	records  []byte // the clicks, which are not
	packer   packer // of the strings
	yield    func() // lets redirects go first
	first    uint64
	clicks   uint64
	epoch    uint64
	time     int64
	revision int64

	parameters []byte               // of the click that is added
	labels     [labelSlots]labelled // that clicks have had, by the hash of what was recorded
	memo       []byte               // of these: what was recorded, and what it became

	seed       maphash.Seed // so that no client can choose strings that meet in the table
	generation uint16
	table      [slots]slot
	strings    []text
	targets    []target // what came with the string as a link when it was one last
	host       uint32   // of the click before: most have the same
}

// labelSlots is for how many sets of labels a batch remembers what it wrote: there are
// few of them, and a click that is labelled has several strings in its set.
const labelSlots = 1 << 5

// labelled is a set of labels that a click had: where it lies in memo, as it was
// recorded and then as it is written.
type labelled struct {
	generation    uint16
	from, mid, to uint32
}

// slot has the place of a string in the batch of this generation, and the half of
// the string's hash that does not say which slot it is.
type slot struct {
	hash              uint32
	generation, index uint16
}

// text is a string of the batch: where it lies in buf.
type text struct{ from, to uint32 }

// target are strings that a link has the same ones of in most clicks.
type target struct{ affiliate, campaign, variant, destination uint32 }

// The tags of clickv1.Batch and its parts: field number << 3 | wire type.
const (
	wireVarint, wireFixed64, wireBytes = 0, 1, 2

	tagNode         = 1<<3 | wireBytes
	tagRegion       = 2<<3 | wireBytes
	tagBoot         = 3<<3 | wireFixed64
	tagFirst        = 4<<3 | wireVarint
	tagBaseTime     = 5<<3 | wireVarint
	tagEpoch        = 6<<3 | wireFixed64
	tagBaseRevision = 7<<3 | wireVarint
	tagString       = 8<<3 | wireBytes
	tagClick        = 9<<3 | wireBytes
	tagAddressForm  = 10<<3 | wireVarint
	tagLedger       = 11<<3 | wireBytes
	tagSnappy       = 12<<3 | wireBytes
)

func newEncoder(id click.Identity) *encoder {
	e := &encoder{limit: maxBatchBytes, seed: maphash.MakeSeed(), yield: runtime.Gosched}
	e.identify(id)
	return e
}

// identify says whose the batches are that begin from now on.
func (e *encoder) identify(id click.Identity) {
	e.identity = appendBytes(e.identity[:0], tagNode, []byte(id.Node))
	e.identity = appendBytes(e.identity, tagRegion, []byte(id.Region))
	e.identity = binary.LittleEndian.AppendUint64(append(e.identity, tagBoot), id.Boot)
	e.identity = appendVarint(e.identity, tagAddressForm, uint64(id.Address))
}

// begin starts a batch in the storage of buf, which becomes the encoder's.
func (e *encoder) begin(buf []byte, first uint64) {
	e.buf, e.records = e.buf[:0], e.records[:0]
	e.first, e.clicks = first, 0
	e.strings, e.targets, e.memo = append(e.strings[:0], text{}), append(e.targets[:0], target{}), e.memo[:0]
	e.host = 0
	e.openBlock(buf)
	if e.generation++; e.generation == 0 {
		e.table, e.labels, e.generation = [slots]slot{}, [labelSlots]labelled{}, 1
	}
}

// openBlock writes what comes before the block, and leaves room for the block's head.
func (e *encoder) openBlock(buf []byte) {
	out := appendVarint(append(buf[:0], e.identity...), tagFirst, e.first)
	e.head, e.sealed = len(out), false
	e.packer.begin(append(out, make([]byte, blockHead)...))
}

// add appends a click, and gives false when it has to be the first of the next
// batch: for want of room, after a gap, or at a new epoch. Where reading the click
// panics, nothing was added but strings that no click has.
func (e *encoder) add(c *click.Click) bool {
	if e.clicks == 0 {
		if len(e.buf) > 0 { // of one that was not added
			e.begin(e.packer.block, c.Sequence)
		}
		e.time, e.epoch, e.revision = c.Time, c.Epoch, c.Revision
		e.buf = appendVarint(e.buf, tagBaseTime, uint64(c.Time))
		e.buf = binary.LittleEndian.AppendUint64(append(e.buf, tagEpoch), c.Epoch)
		e.buf = appendVarint(e.buf, tagBaseRevision, uint64(c.Revision))
		e.buf = append(e.buf, tagString, 0) // entry 0
	} else if c.Sequence != e.first+e.clicks || c.Epoch != e.epoch || len(e.strings) > maxStrings ||
		len(e.identity)+len(e.buf)+len(e.records)+clickBytes+size(c) > e.limit {
		return false
	}

	// A string is written when it is seen first.
	known := len(e.strings)
	link := e.index(c.Link)
	to, fresh := e.targets[link], int(link) == known
	if fresh || !e.leadsTo(to, c) {
		to = target{affiliate: e.index(c.Affiliate), campaign: e.index(c.Campaign), variant: e.index(c.Variant)}
		if fresh { // and so is where it leads
			to.destination = e.write(c.Destination)
		} else {
			to.destination = e.index(c.Destination)
		}
		e.targets[link] = to
	}
	agent, referrer, languages := e.index(c.UserAgent), e.index(c.Referrer), e.index(c.Languages)
	if !e.is(e.host, c.Host) {
		e.host = e.index(c.Host)
	}
	path := e.index(c.Path)
	country := uint32(0)
	if c.Country[0] != 0 {
		country = e.index(c.Country[:])
	}
	e.parameters = e.pairs(e.parameters[:0], c.Parameters)
	labels := e.labelsOf(c.Labels)

	b := append(e.records, tagClick, 0) // its length, below
	start := len(b)
	b = appendVarint(b, 1<<3, zigzag(c.Time-e.time))
	b = appendVarint(b, 2<<3, zigzag(c.Revision-e.revision))
	b = appendVarint(b, 3<<3, uint64(link))
	b = appendVarint(b, 4<<3, uint64(to.affiliate))
	b = appendVarint(b, 5<<3, uint64(to.campaign))
	b = appendVarint(b, 6<<3, uint64(to.variant))
	b = appendVarint(b, 7<<3, uint64(c.Rule))
	b = appendVarint(b, 8<<3, uint64(to.destination))
	if c.Status != 302 {
		b = appendVarint(b, 9<<3, uint64(c.Status))
	}
	if c.Head {
		b = append(b, 10<<3, 1)
	}
	b = appendVarint(b, 11<<3, uint64(c.Outcome))
	if len(c.Address) > 0 {
		b = appendBytes(b, 12<<3|wireBytes, c.Address)
	}
	b = appendVarint(b, 13<<3, uint64(agent))
	b = appendVarint(b, 14<<3, uint64(referrer))
	b = appendVarint(b, 15<<3, uint64(languages))
	b = appendHigh(b, 16, uint64(e.host))
	b = appendHigh(b, 17, uint64(path))
	b = appendPacked(b, 18, e.parameters)
	b = appendPacked(b, 19, labels)
	b = appendHigh(b, 20, uint64(country))
	b = appendHigh(b, 21, uint64(c.ASN))
	if c.Truncated {
		b = appendHigh(b, 22, uint64(click.AddressTruncated))
	}
	e.records = setLength(b, start)
	e.clicks++
	return true
}

// setLength writes how long the bytes from start on are into the byte before
// them, or makes room for more.
func setLength(b []byte, start int) []byte {
	n := uint64(len(b) - start)
	if n < 0x80 {
		b[start-1] = byte(n)
		return b
	}
	var length [binary.MaxVarintLen64]byte
	return slices.Replace(b, start-1, start, length[:binary.PutUvarint(length[:], n)]...)
}

// pairs writes the strings of pairs, and gives their indexes.
func (e *encoder) pairs(b []byte, pairs click.Pairs) []byte {
	for pair, ok := pairs.Next(); ok; pair, ok = pairs.Next() {
		b = binary.AppendUvarint(b, uint64(e.index(pair.Name)))
		b = binary.AppendUvarint(b, uint64(e.index(pair.Value)))
	}
	return b
}

// labelsOf is pairs for labels. What it gives is valid until the next call.
func (e *encoder) labelsOf(labels click.Pairs) []byte {
	recorded := labels.Bytes()
	if len(recorded) == 0 {
		return nil
	}
	known := &e.labels[maphash.Bytes(e.seed, recorded)%labelSlots]
	if known.generation != e.generation || string(e.memo[known.from:known.mid]) != string(recorded) {
		from := len(e.memo)
		e.memo = append(e.memo, recorded...)
		mid := len(e.memo)
		e.memo = e.pairs(e.memo, labels)
		*known = labelled{e.generation, uint32(from), uint32(mid), uint32(len(e.memo))}
	}
	return e.memo[known.mid:known.to]
}

// size is an upper bound of what the click's strings take, encoded.
func size(c *click.Click) int {
	const heads = 11*4 + len(c.Country) // and pairs count 4 for each
	return heads + 2*(c.Parameters.Len()+c.Labels.Len()) + len(c.Link) + len(c.Affiliate) + len(c.Campaign) + len(c.Variant) + len(c.Destination) +
		len(c.UserAgent) + len(c.Referrer) + len(c.Languages) + len(c.Host) + len(c.Path)
}

// leadsTo says whether a click has these strings. To compare them takes less than to
// find them one by one.
func (e *encoder) leadsTo(t target, c *click.Click) bool {
	return e.is(t.destination, c.Destination) && e.is(t.affiliate, c.Affiliate) && e.is(t.campaign, c.Campaign) && e.is(t.variant, c.Variant)
}

// is says whether a place has a string.
func (e *encoder) is(index uint32, s []byte) bool {
	t := &e.strings[index]
	return string(e.buf[t.from:t.to]) == string(s)
}

// index gives the place of a string in the batch, where it is written unless
// it is there already.
func (e *encoder) index(s []byte) uint32 {
	if len(s) == 0 {
		return 0
	}
	hash := maphash.Bytes(e.seed, s)
	half := uint32(hash >> 32)
	for i := hash; ; i++ {
		at := &e.table[i%slots]
		if at.generation != e.generation {
			index := e.write(s)
			*at = slot{half, e.generation, uint16(index)} // last: see add
			return index
		}
		if at.hash == half && e.is(uint32(at.index), s) {
			return uint32(at.index)
		}
	}
}

// write appends a string to the batch and gives its place, by which alone it is found.
func (e *encoder) write(s []byte) uint32 {
	if len(s) == 0 {
		return 0
	}
	index := uint32(len(e.strings))
	e.buf = appendBytes(e.buf, tagString, s)
	end := uint32(len(e.buf))
	e.packer.add(e.buf, len(e.buf)-len(s))
	e.strings = append(e.strings, text{end - uint32(len(s)), end})
	e.targets = append(e.targets, target{})
	return index
}

// end finishes the batch with the account and gives its bytes to the caller.
func (e *encoder) end(account *click.Ledger, final bool) []byte {
	var scratch [160]byte
	b := scratch[:0]
	b = appendVarint(b, 1<<3, account.Answered)
	b = appendVarint(b, 2<<3, account.Recorded)
	for reason, clicks := range account.Dropped {
		if clicks > 0 {
			var drop [16]byte
			d := appendVarint(drop[:0], 1<<3, uint64(reason))
			b = appendBytes(b, 3<<3|wireBytes, appendVarint(d, 2<<3, clicks))
		}
	}
	if final {
		b = append(b, 4<<3, 1)
	}
	return appendBytes(e.pack(), tagLedger, b)
}

const (
	// blockHead is what the tag of a block and its two lengths take, where these are 16 KiB
	// or more; no batch has 2 MiB.
	blockHead = 1 + 2*3
	// copied is how much is copied in one go.
	copied = 16 << 10
)

// seal ends the block. The clicks are mostly numbers that no search would find again, and
// become text as they are.
func (e *encoder) seal() {
	p := &e.packer
	p.text(e.buf[p.from:])
	p.from = len(e.buf)
	for part := range slices.Chunk(e.records, copied) {
		e.yield()
		p.text(part)
	}
	e.yield()
	e.sealed = true
}

// pack gives the batch with what was written, compressed where that is less.
func (e *encoder) pack() []byte {
	if !e.sealed {
		e.seal()
	}
	p := &e.packer
	out := p.block
	p.block = nil
	plain := len(e.buf) + len(e.records)
	block := out[e.head+blockHead:]
	length := binary.AppendUvarint(make([]byte, 0, binary.MaxVarintLen64), uint64(plain))
	n := len(length) + len(block)
	if n+4 >= plain {
		return append(append(out[:e.head], e.buf...), e.records...)
	}
	head := append(binary.AppendUvarint(append(out[:e.head], tagSnappy), uint64(n)), length...)
	if len(head) == e.head+blockHead { // of a large batch: the block is where it belongs
		return out
	}
	return append(head, block...)
}

func zigzag(v int64) uint64 { return uint64(v<<1) ^ uint64(v>>63) }

// appendVarint writes a field, unless it has its default.
func appendVarint(b []byte, tag byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(append(b, tag), v)
}

// appendHigh is appendVarint for the fields from 16 on, whose tags have two bytes.
func appendHigh(b []byte, field byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(append(b, field<<3&0x7f|0x80|wireVarint, field>>4), v)
}

// appendPacked writes numbers that are encoded already, unless there are none.
func appendPacked(b []byte, field byte, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return append(binary.AppendUvarint(append(b, field<<3&0x7f|0x80|wireBytes, field>>4), uint64(len(v))), v...)
}

func appendBytes(b []byte, tag byte, v []byte) []byte {
	return append(binary.AppendUvarint(append(b, tag), uint64(len(v))), v...)
}
