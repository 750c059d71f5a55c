package table

import (
	"iter"
	"unsafe"
)

// Memory gives where the links are in memory, in no order: the first address and
// the number of bytes of each block. What is in them is for nobody else to read.
func (t *Table) Memory() iter.Seq2[uintptr, uintptr] {
	return func(yield func(uintptr, uintptr) bool) {
		c := &t.contents
		for i := 0; i < len(c.shards); {
			s := c.shards[i]
			if !yield(uintptr(unsafe.Pointer(unsafe.SliceData(s.index))), uintptr(cap(s.index))*unsafe.Sizeof(s.index[0])) ||
				!yield(uintptr(unsafe.Pointer(unsafe.SliceData(s.arena))), uintptr(cap(s.arena))) {
				return
			}
			i += 1 << (c.bits - s.depth)
		}
	}
}
