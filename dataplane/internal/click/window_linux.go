package click

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// readNow reads what is in memory of a file from a position on: EAGAIN when that is
// nothing. Go's scheduler need not know of a call that does not wait. A tmpfs does not know
// RWF_NOWAIT, and has all in memory.
func readNow(fd int, p []byte, pos int, tmpfs bool) (int, error) {
	flags := uintptr(unix.RWF_NOWAIT)
	if tmpfs {
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

// inMemory says whether a file is on a tmpfs: it has no disk to be waited for.
func inMemory(fd int) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.TMPFS_MAGIC
}

// readAlone has the kernel read of a file what it is asked for, and nothing ahead of that:
// else who reads without a wait has it read more, for 50 µs at a time, until all of the
// file is in memory.
func readAlone(fd int) { _ = unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM) } // advice

// ask has the kernel begin to read so many bytes, all at once.
func ask(fd, pos, bytes int) { _ = unix.Fadvise(fd, int64(pos), int64(bytes), unix.FADV_WILLNEED) } // advice

// openToRead opens a file whose time of access stays: to note that might wait for a
// journal.
func openToRead(path string) (fd int, err error) {
	fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err == unix.EPERM { // somebody else's file
		return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	return fd, err
}
