package aside

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sync is f.Sync, but that nothing waits for the disk other than the caller. On
// one core the kernel is asked to do it and to say when it is done.
func Sync(f *os.File) error {
	if runtime.GOMAXPROCS(0) > 1 {
		return f.Sync()
	}
	q := shared()
	if q == nil {
		return f.Sync()
	}
	err := q.sync(f)
	if errors.Is(err, errNotTaken) {
		return f.Sync() // this file system does not know how
	}
	return err
}

// errNotTaken says that the kernel did not take the request.
var errNotTaken = errors.New("not taken")

// queue is a context of the kernel's for asynchronous requests, of which there
// is one at a time.
type queue struct {
	mu      sync.Mutex
	context uintptr
	event   int      // eventfd, on which the kernel says that a request is done
	done    *os.File // the same
}

// shared is the process's queue, nil when there can be none. It is never given
// back: the kernel takes 10 ms and more for that.
var shared = sync.OnceValue(func() *queue {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil
	}
	q := &queue{event: fd, done: os.NewFile(uintptr(fd), "aio")}
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&q.context)), 0); errno != 0 {
		_ = q.done.Close()
		return nil
	}
	return q
})

// request is the kernel's struct iocb, for little and big endian alike: what
// they differ in is zero.
type request struct {
	_      uint64 // data
	_      uint64 // key and flags
	opcode uint16
	_      int16 // priority
	fd     uint32
	_      [4]uint64 // buffer, length, offset, reserved
	flags  uint32
	event  uint32
}

// result is the kernel's struct io_event.
type result struct {
	data, request uint64
	res, res2     int64
}

const (
	opSync    = 2 // IOCB_CMD_FSYNC
	flagEvent = 1 // IOCB_FLAG_RESFD
)

func (q *queue) sync(f *os.File) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	r := &request{opcode: opSync, flags: flagEvent, event: uint32(q.event)}
	list := &[1]*request{r}
	var errno syscall.Errno
	if err := raw.Control(func(fd uintptr) { // the kernel holds the file from then on
		r.fd = uint32(fd)
		_, _, errno = unix.Syscall(unix.SYS_IO_SUBMIT, q.context, 1, uintptr(unsafe.Pointer(list)))
	}); err != nil {
		return f.Sync() // which says why in its own words
	}
	runtime.KeepAlive(r)
	if errno != 0 {
		return fmt.Errorf("%w: %w", errNotTaken, errno)
	}
	var count [8]byte
	if _, err := q.done.Read(count[:]); err != nil {
		return fmt.Errorf("wait for the disk: %w", err)
	}
	var done result
	n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, q.context, 0, 1, uintptr(unsafe.Pointer(&done)), 0, 0)
	switch {
	case errno != 0:
		return os.NewSyscallError("io_getevents", errno)
	case n != 1:
		return errors.New("BUG: the kernel said that it was done, and was not")
	case done.res < 0:
		return &os.PathError{Op: "sync", Path: f.Name(), Err: syscall.Errno(-done.res)}
	}
	return nil
}
