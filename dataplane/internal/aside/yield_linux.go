package aside

import (
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// breath is how long a wait takes at least, in ns. A timer that is over before
	// it is waited for, as one of 5 µs, is no wait at all.
	breath = 25_000
	// leastTurn is for how long work goes on before it waits. When the waits are
	// long, because there are redirects all the time, it is this share of them: work
	// has a fifth of a core that is full, and does not fall behind for good.
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
	last, turn := time.Now(), leastTurn
	yield = func() {
		begin := time.Now()
		if begin.Sub(last) < turn {
			return
		}
		if unix.TimerfdSettime(fd, 0, &soon, nil) != nil {
			runtime.Gosched()
		} else {
			_, _ = file.Read(expired[:]) // what fails is a shorter wait
		}
		last = time.Now()
		turn = max(leastTurn, last.Sub(begin)/share)
	}
	return yield, func() { _ = file.Close() }
}
