package table

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	hugePage = 2 << 20
	// linkRoom is about what a link takes until its table is built, in bytes.
	linkRoom = 170
	// What is worth it, and how far an announcement is believed, in bytes.
	minReserve = 8 * hugePage
	maxReserve = 512 << 20
	// The heap takes more from the system than what it is asked for.
	heapMargin = 128 << 20
)

var reserved atomic.Bool

// Reserve has a process that has built no table yet take the memory for one of so
// many links in huge pages, where the kernel makes such (Linux 6.1). Memory that is
// taken 4 kB at a time was a fifth of what loading cost, on a kernel above a
// hypervisor.
//
// The heap cannot be asked for memory of a kind. So a piece of the size is taken
// from it, made of huge pages, and given back to it before anything was written
// there: what is built next lies in it. What stays free goes back to the system
// with all other garbage of the load. That the memory may be of huge pages is not
// advised: the kernel would fill what was given back again later.
func Reserve(links int) {
	size := roomFor(links)
	if size < minReserve || reserved.Swap(true) || !mappable(size+heapMargin) {
		return
	}
	room := make([]byte, size)
	begin := int(-uintptr(unsafe.Pointer(unsafe.SliceData(room))) % hugePage)
	pages := (size - begin) / hugePage
	inParallel(min(runtime.GOMAXPROCS(0), maxWorkers), pages, func(i int) {
		page := room[begin+i*hugePage:][:hugePage]
		page[0] = 0                                // there has to be something of it
		_ = unix.Madvise(page, unix.MADV_COLLAPSE) // advice
	})
	runtime.KeepAlive(room)
	room = nil
	runtime.GC()
}

// roomFor is what a table of so many links is believed to take, in bytes.
func roomFor(links int) int { return min(links, maxReserve/linkRoom) * linkRoom }

// mappable says whether the process may have so much more memory: the heap ends it
// otherwise.
func mappable(size int) bool {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	return err == nil && unix.Munmap(mem) == nil
}
