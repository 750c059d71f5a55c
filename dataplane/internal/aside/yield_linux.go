package aside

import (
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// leastTurn is for how long work goes on before it lets others go first. When
	// that takes long, because there are redirects all the time, it is this share of
	// it: work has a fifth of a core that is full, and does not fall behind for good.
	leastTurn = 20 * time.Microsecond
	share     = 4
)

// NewYield gives a function that lets redirects go first if its caller has gone
// on for long enough, and what ends it. It is to be called behind each piece of
// work, of some µs.
//
// runtime.Gosched is not enough on a node with one core: the scheduler does not
// look for requests that have arrived as long as any goroutine can run, so that
// they would wait up to 10 ms behind a backlog. A timer of the runtime's would
// take a millisecond when there is nothing else to do. So the caller queues
// behind them: it waits for an event of its own, which it has caused itself. The
// scheduler has nothing to run then, asks the kernel for events, and gets all
// that are there in the order in which they happened, this one last.
func NewYield() (yield, end func()) {
	if runtime.GOMAXPROCS(0) > 1 {
		return runtime.Gosched, func() {} // another core looks
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return runtime.Gosched, func() {}
	}
	file := os.NewFile(uintptr(fd), "turn")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return runtime.Gosched, func() {}
	}
	// Nobody reads what is added up here: the poller reports each change once.
	one, waited := uint64(1), false
	queue := func(fd uintptr) (done bool) {
		if !waited {
			_, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
			waited = errno == 0
			return !waited
		}
		waited = false
		return true
	}
	last, turn := time.Now(), leastTurn
	yield = func() {
		begin := time.Now()
		if begin.Sub(last) < turn {
			return
		}
		if raw.Read(queue) != nil {
			runtime.Gosched()
		}
		last = time.Now()
		turn = max(leastTurn, last.Sub(begin)/share)
	}
	return yield, func() { _ = file.Close() }
}
