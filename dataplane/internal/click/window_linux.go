package click

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// readNow reads what is in memory of a file from a position on: EAGAIN when that is
// nothing. Go's scheduler need not know of a call that does not wait.
func readNow(fd int, p []byte, pos int, inMemory bool) (int, error) {
	flags := uintptr(unix.RWF_NOWAIT)
	if inMemory {
		flags = 0
	}
	vector := unix.Iovec{Base: unsafe.SliceData(p)}
	vector.SetLen(len(p))
	n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&vector)), 1, uintptr(pos), 0, flags)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// inMemory says whether a file has no disk to be waited for. Those of a tmpfs do not know
// RWF_NOWAIT.
func inMemory(fd int) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.TMPFS_MAGIC
}
