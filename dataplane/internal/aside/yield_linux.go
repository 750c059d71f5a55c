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
const share = 10 * yieldAfter

// NewYield gives a function that lets redirects go first if its caller has gone
// on for 100 µs. It is to be called behind each piece of work, of some µs.
//
// runtime.Gosched is not enough where threads share a core: the kernel lets one
// that computes go on for up to some milliseconds before another, which waits for
// input most of the time, has its turn. The threads of both are to TakeTurns.
//
// And it costs some 10 µs where another P is idle, since it wakes a thread to look
// for work. What waits for a P finds that one by itself, so it is called with each
// turn only where there is just the caller's.
func NewYield() (yield func()) {
	t := turns{all: runtime.GOMAXPROCS(0)}
	t.over(time.Now())
	return func() {
		if time.Since(t.last) < yieldAfter {
			return
		}
		if t.all > 1 {
			// A system call that Go's scheduler need not know of: it takes as long as
			// others compute, and the P would only change hands.
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // cannot fail
		}
		if t.shares(time.Now()) {
			runtime.Gosched()
			t.over(time.Now())
		}
	}
}

// turns are those of a goroutine.
type turns struct {
	all          int       // Ps
	last, shared time.Time // when others had the core last, and the P
}

// shares says, when others have had the core, whether they are to have the P, too.
func (t *turns) shares(now time.Time) bool {
	t.last = now
	return t.all-int(kept.Load()) <= 1 || now.Sub(t.shared) >= share
}

// over notes that others have had the P.
func (t *turns) over(now time.Time) { t.last, t.shared = now, now }
