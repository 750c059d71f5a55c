package label

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size of a huge page, in bytes.
const hugePage = 2 << 20

// reserve gives so many lines, all zero, for as long as the process lives: a node
// has them from its start to its end.
//
// They are in huge pages where the kernel has such. Each request looks at places at
// random, and the processor remembers where a few thousand pages are: with small
// ones, finding out took longer than reading. In the heap they are not. There,
// memory that was used before and is cleared comes in small pages, and a fifth of
// all of it may be garbage.
func reserve(n int64) []line {
	bytes := n * int64(unsafe.Sizeof(line{}))
	mem, err := unix.Mmap(-1, 0, int(bytes+hugePage), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]line, n) // a limit on mappings; so large a slice begins at a page, and so each line at 64 bytes
	}
	// From a whole huge page on: what is not used of the mapping takes no memory.
	begin := -uintptr(unsafe.Pointer(unsafe.SliceData(mem))) % hugePage
	mem = mem[begin : begin+uintptr(bytes)]
	_ = unix.Madvise(mem[:bytes&^(hugePage-1)], unix.MADV_HUGEPAGE) // advice
	return unsafe.Slice((*line)(unsafe.Pointer(unsafe.SliceData(mem))), n)
}
