package aside

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// kept is how many Ps of Go's scheduler loops keep for themselves.
var kept atomic.Int32

// KeepP is called by a loop that keeps a P of Go's scheduler until release.
func KeepP() (release func()) {
	kept.Add(1)
	return func() { kept.Add(-1) }
}

// share is for how long others wait for a P where there are several for them.
const share = 10 * Turn

// NewYield gives a function that lets redirects go first if its caller has gone
// on for a Turn: on a core that both share, a redirect waits that long. It is to be
// called behind each piece of work, of some µs.
//
// runtime.Gosched is not enough where threads share a core: the kernel lets one
// that computes go on for up to some milliseconds before another, which waits for
// input most of the time, has its turn. The threads of both are to have ShortTurns.
//
// And it costs some 10 µs where another P is idle, since it wakes a thread to look
// for work. What waits for a P finds that one by itself, so it is called with each
// turn only where there is just the caller's.
func NewYield() (yield func()) {
	last := time.Now()
	shared := last
	all := runtime.GOMAXPROCS(0)
	return func() {
		if time.Since(last) < Turn {
			return
		}
		if all > 1 {
			// A system call that Go's scheduler need not know of: it takes as long as
			// others compute, and the P would only change hands.
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // cannot fail
		}
		last = time.Now()
		if all-int(kept.Load()) > 1 && last.Sub(shared) < share {
			return
		}
		runtime.Gosched()
		last = time.Now()
		shared = last
	}
}
