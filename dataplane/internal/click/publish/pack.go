package publish

import (
	"encoding/binary"
	"math/bits"
)

// packer writes one block of Snappy (https://github.com/google/snappy, format_description.txt)
// of strings as they come. Those of clicks are like others of their kind, so it looks for
// what has been before only where that is likely: at the begin of a string and behind what
// was the same, among what followed there last; and then, beside the earlier one, where the
// two agree again, as they do behind a number of as many digits.
type packer struct {
	block []byte // without the length at its head, behind what the caller has put there
	from  int    // of what is not in it yet
	seen  [1 << seenBits]uint32
}

const (
	seenBits = 11
	least    = 6       // bytes that are referred to: three, and one for the text behind them
	farthest = 1 << 16 // what refers to something has two bytes for how far before it is
	longest  = 64      // bytes that are referred to at once

	// What a piece of a block is, in the lowest two bits of its first byte.
	pieceText, pieceNear, pieceFar = 0, 1, 2
)

// begin starts a block behind out, whose storage becomes the packer's.
func (p *packer) begin(out []byte) {
	p.block, p.from = out, 0
	clear(p.seen[:]) // what is packed depends on the batch alone
}

// add packs what has been appended to all from i on, the end of which may stay for the
// next call.
func (p *packer) add(all []byte, i int) {
	back := 0 // to what was the same last
	for i+8 <= len(all) {
		next := binary.LittleEndian.Uint64(all[i:])
		slot := &p.seen[next<<(64-8*least)*0x9e3779b97f4a7c15>>(64-seenBits)]
		was := int(*slot)
		*slot = uint32(i) //nolint:gosec // a batch is smaller
		if far := i - was; far > 0 && far < farthest && same(all, was, next) {
			back = far
		} else if back == 0 {
			i += 8
			continue
		} else if differ := next ^ binary.LittleEndian.Uint64(all[i-back:]); differ<<(64-8*least) != 0 {
			i += 8 - bits.LeadingZeros64(differ)/8
			continue
		}
		i = p.refer(all, i, back)
	}
}

// same says whether the first bytes of next are at a place.
func same(all []byte, at int, next uint64) bool {
	return (next^binary.LittleEndian.Uint64(all[at:]))<<(64-8*least) == 0
}

// refer writes that what is at i has been so far before, and gives where that ends.
func (p *packer) refer(all []byte, i, back int) int {
	end := i + least
	for end+8 <= len(all) {
		if differ := binary.LittleEndian.Uint64(all[end:]) ^ binary.LittleEndian.Uint64(all[end-back:]); differ != 0 {
			end += bits.TrailingZeros64(differ) / 8
			break
		}
		end += 8
	}
	for i > p.from && i > back && all[i-1] == all[i-1-back] {
		i--
	}
	p.text(all[p.from:i])
	p.from = end
	n := end - i
	for n > longest {
		p.far(min(n-4, longest), back) // none is left with less than four
		n -= min(n-4, longest)
	}
	if n < 12 && back < 1<<11 {
		p.block = append(p.block, byte(back>>8<<5|(n-4)<<2|pieceNear), byte(back))
	} else {
		p.far(n, back)
	}
	return end
}

func (p *packer) far(n, back int) {
	p.block = append(p.block, byte((n-1)<<2|pieceFar), byte(back), byte(back>>8))
}

// text writes b as it is.
func (p *packer) text(b []byte) {
	for len(b) > 0 {
		n := min(len(b), 1<<16)
		switch {
		case n <= 16 && cap(b) >= 16: // most are, and this takes half as long
			end := len(p.block) + 1 + n
			p.block = append(append(p.block, byte((n-1)<<2|pieceText)), b[:16]...)[:end]
			return
		case n <= 60:
			p.block = append(p.block, byte((n-1)<<2|pieceText))
		case n <= 1<<8:
			p.block = append(p.block, 60<<2|pieceText, byte(n-1))
		default:
			p.block = binary.LittleEndian.AppendUint16(append(p.block, 61<<2|pieceText), uint16(n-1))
		}
		p.block = append(p.block, b[:n]...)
		b = b[n:]
	}
}
