package aside

import (
	"time"

	"golang.org/x/sys/unix"
)

// Linux knows how long a thread goes on at a time since 6.12, from 100 µs on. Without
// that, one may go on for up to some ms while another that was woken waits, and to yield
// costs as much: whoever yields loses what is left of his turn (since 6.18).
const (
	// LoopTurn is what a thread that answers redirects asks for. One that is woken
	// interrupts at once what has longer turns; what has the same first ends its own.
	LoopTurn = 100 * time.Microsecond
	// Turn is what all other threads ask for. They yield before it is over.
	Turn = 125 * time.Microsecond

	// yieldAfter is for how long work goes on before others are let go first.
	yieldAfter = 100 * time.Microsecond
)

// TakeTurns gives a thread turns of this length: 0 is the calling one. The threads that
// it makes inherit them.
func TakeTurns(tid int, turn time.Duration) {
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL {
		return // what somebody has chosen on purpose
	}
	attr.Runtime = uint64(turn)
	_ = unix.SchedSetAttr(tid, attr, 0) // best effort; older kernels pass it over
}
