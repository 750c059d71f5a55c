package click

import (
	"os"

	"golang.org/x/sys/unix"
)

// allocate gives a new file its blocks, where the file system can do so ahead.
func allocate(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch err {
		case unix.EINTR:
			continue
		case unix.EOPNOTSUPP:
			return nil // writing zeros does it
		}
		return err
	}
}

// populate makes pages present and writable.
func populate(mem []byte) {
	if unix.Madvise(mem, unix.MADV_POPULATE_WRITE) != nil { // before Linux 5.14
		touch(mem)
	}
}

// memoryFile makes a file that is on no disk.
func memoryFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("marks", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "memory"), nil
}

// errUnclean is what a file system gives where it finds damage.
const errUnclean = unix.EUCLEAN
