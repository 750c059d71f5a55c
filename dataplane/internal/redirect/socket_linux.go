package redirect

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// polled says that recv and send work on a descriptor of the runtime's poller.
const polled = true

// recv reads what the non-blocking socket has, without telling the scheduler:
// it returns at once in any case.
func recv(fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd,
			uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}

// send writes what fits into the non-blocking socket's buffer, likewise.
func send(fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd,
			uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), syscall.MSG_NOSIGNAL, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}

// unread gives how many bytes the socket has.
func unread(fd uintptr) int {
	n, _ := unix.IoctlGetInt(int(fd), unix.SIOCINQ) // 0 of what has none
	return n
}
