package table

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	hugePage = 2 << 20
	// linkRoom is about what a link takes until its table is built, in bytes.
	linkRoom = 170
	// What is worth it, and how far an announcement is believed, in bytes.
	minReserve = 8 * hugePage
	maxReserve = 2 << 30
)

// Reserve has a process that holds no table yet take the memory for one of so
// many links in huge pages, as far as the kernel has them. Memory that is asked
// for 4 kB at a time was a fifth of what loading cost, and more where the kernel
// runs on a hypervisor.
//
// The heap asks for no huge pages by itself, and its memory cannot be asked for in
// advance; but what it once had stays as it was advised. So a piece of the size is
// taken, advised, and given back to the heap before anything was written to it. The
// number may be wrong: what is not used takes no memory.
func Reserve(links int) {
	size := min(links, maxReserve/linkRoom) * linkRoom
	if size < minReserve || !mappable(size) {
		return
	}
	room := make([]byte, size)
	begin := int(-uintptr(unsafe.Pointer(unsafe.SliceData(room))) % hugePage)
	end := begin + (size-begin)&^(hugePage-1)
	_ = unix.Madvise(room[begin:end], unix.MADV_HUGEPAGE) // advice
	runtime.GC()                                          // room is garbage
}

// mappable says whether the process may have so much more memory: the heap ends it
// otherwise.
func mappable(size int) bool {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	return err == nil && unix.Munmap(mem) == nil
}
