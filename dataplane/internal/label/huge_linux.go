package label

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// useHugePages asks the kernel to back the memory by huge pages as it comes into
// use. Each request looks at places at random, and the processor remembers where a
// few thousand pages are: with small ones, finding out took longer than reading.
// It is advice, for whole huge pages only: one of which the kernel is told half
// could never become one, and what the table has beside it needs that, too.
func useHugePages(all []line) {
	const page = 2 << 20
	begin := uintptr(unsafe.Pointer(unsafe.SliceData(all)))
	end := (begin + uintptr(len(all))*unsafe.Sizeof(line{})) &^ (page - 1)
	if begin = (begin + page - 1) &^ (page - 1); begin < end {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, begin, end-begin, unix.MADV_HUGEPAGE)
	}
}
