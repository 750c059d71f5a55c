package aside

import (
	"time"

	"golang.org/x/sys/unix"
)

// Turn is for how long a thread with short turns asks for a core at a time: the least
// that Linux gives. Whoever yields loses what is left of his turn (since 6.18), and so
// little.
const Turn = 100 * time.Microsecond

// ShortTurns gives a thread short turns: 0 is the calling one. The threads that it
// makes inherit them. Linux knows such turns since 6.12. Without them, a thread may go
// on for up to some ms while one that was woken waits, and to yield costs as much.
func ShortTurns(tid int) {
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL {
		return // what somebody has chosen on purpose
	}
	attr.Runtime = uint64(Turn)
	_ = unix.SchedSetAttr(tid, attr, 0) // best effort; older kernels pass it over
}
