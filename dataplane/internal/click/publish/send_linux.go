package publish

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendNow writes what a socket has room for, and gives how much that is; nothing where it
// fails. Of what more follows, the kernel makes large packets. Go's scheduler need not know
// of a call that does not wait.
func sendNow(fd uintptr, p []byte, more bool) int {
	flags := unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	if more {
		flags |= unix.MSG_MORE
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}
