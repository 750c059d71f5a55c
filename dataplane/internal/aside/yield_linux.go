package aside

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// breath is how long a yield takes at least, in ns. A timer that is over before
// it is waited for, as one of 5 µs, is no yield at all.
const breath = 25_000

// NewYield gives a function that lets redirects go first, and what ends it.
//
// runtime.Gosched is not enough on a node with one core: the scheduler does not
// look for requests that have arrived as long as any goroutine can run, so that
// they would wait up to 10 ms behind a backlog. A timer of the runtime's would
// take a millisecond when there is nothing else to do. So this waits for the
// kernel's timer, as redirects wait for their sockets.
func NewYield() (yield, end func()) {
	if runtime.GOMAXPROCS(0) > 1 {
		return runtime.Gosched, func() {} // another core looks
	}
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return runtime.Gosched, func() {}
	}
	file := os.NewFile(uintptr(fd), "timer")
	soon := unix.ItimerSpec{Value: unix.Timespec{Nsec: breath}}
	var expired [8]byte
	yield = func() {
		if unix.TimerfdSettime(fd, 0, &soon, nil) != nil {
			runtime.Gosched()
			return
		}
		_, _ = file.Read(expired[:]) // what fails is a shorter yield
	}
	return yield, func() { _ = file.Close() }
}
