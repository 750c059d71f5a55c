package controlplane

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newQueue gives a function that lets all run first that has something to do by
// now, also by what has come over the network, and what frees it. One goroutine
// uses them.
//
// With one core, runtime.Gosched does not do that: the scheduler does not look
// at the network as long as any goroutine can run. So the caller waits for an
// event of its own, which it has caused itself. When nothing else can run, the
// scheduler asks the kernel for events then, and gets those that came before
// too. It begins with the last one, which is the caller's: that goes behind the
// others once more.
func newQueue() (queue, end func()) {
	if runtime.GOMAXPROCS(0) > 1 {
		return runtime.Gosched, func() {} // another core looks
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return runtime.Gosched, func() {}
	}
	file := os.NewFile(uintptr(fd), "queue")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return runtime.Gosched, func() {}
	}
	// Nobody reads what is added up here: the poller reports each change once.
	one, waited := uint64(1), false
	event := func(fd uintptr) (done bool) {
		if !waited {
			_, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
			waited = errno == 0
			return !waited
		}
		waited = false
		return true
	}
	queue = func() {
		_ = raw.Read(event) // if it fails, there is the rest
		runtime.Gosched()
	}
	return queue, func() { _ = file.Close() }
}
