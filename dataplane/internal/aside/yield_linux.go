package aside

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// NewYield gives a function that lets redirects go first if its caller has gone
// on for a Turn: on a core that both share, a redirect waits that long. It is to be
// called behind each piece of work, of some µs.
//
// runtime.Gosched is not enough where threads share a core: the kernel lets one
// that computes go on for up to some milliseconds before another, which waits for
// input most of the time, has its turn. The threads of both are to have ShortTurns.
func NewYield() (yield func()) {
	last := time.Now()
	alone := runtime.GOMAXPROCS(0) == 1
	return func() {
		if time.Since(last) < Turn {
			return
		}
		if !alone {
			// A system call that Go's scheduler need not know of: it takes as long as
			// others compute, and the P would only change hands.
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // cannot fail
		}
		runtime.Gosched() // what else runs beside redirects may have this P only
		last = time.Now()
	}
}
