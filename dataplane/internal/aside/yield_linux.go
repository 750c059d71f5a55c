package aside

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// leastTurn is for how long work goes on before it lets others go first. When that
// takes long, because there are redirects all the time, it goes on for as long as it
// has waited: how the core is shared is the kernel's then, which takes from the share
// of who yields (since Linux 6.18 what is left of his turn).
const leastTurn = 100 * time.Microsecond

// NewYield gives a function that lets redirects go first if its caller has gone
// on for long enough. It is to be called behind each piece of work, of some µs.
//
// runtime.Gosched is not enough where threads share a core: the kernel lets one
// that computes go on for up to some milliseconds before another, which waits for
// input most of the time, has its turn.
func NewYield() (yield func()) {
	last, turn := time.Now(), leastTurn
	alone := runtime.GOMAXPROCS(0) == 1
	return func() {
		begin := time.Now()
		if begin.Sub(last) < turn {
			return
		}
		if !alone {
			// A system call that Go's scheduler need not know of: it takes as long as
			// others compute, and the P would only change hands.
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // cannot fail
		}
		runtime.Gosched() // what else runs beside redirects may have this P only
		last = time.Now()
		turn = max(leastTurn, last.Sub(begin))
	}
}
