package link

import (
	"math/bits"

	"github.com/zeebo/xxh3"
)

// SetHash is the sum, modulo 2^128, of the hashes of the entries of a state.
// It does not depend on their order, and putting or deleting an entry is one
// addition or subtraction. It guards against loss and damage, not against
// somebody who can choose the entries.
type SetHash struct{ Hi, Lo uint64 }

// HashEntry is the share of one entry: the XXH3-128 of its value, seeded with
// the XXH3-64 of its key.
func HashEntry(key, value []byte) SetHash {
	h := xxh3.Hash128Seed(value, xxh3.Hash(key))
	return SetHash{h.Hi, h.Lo}
}

// Add puts an entry.
func (h SetHash) Add(entry SetHash) SetHash {
	lo, carry := bits.Add64(h.Lo, entry.Lo, 0)
	hi, _ := bits.Add64(h.Hi, entry.Hi, carry)
	return SetHash{hi, lo}
}

// Sub deletes an entry.
func (h SetHash) Sub(entry SetHash) SetHash {
	lo, borrow := bits.Sub64(h.Lo, entry.Lo, 0)
	hi, _ := bits.Sub64(h.Hi, entry.Hi, borrow)
	return SetHash{hi, lo}
}
