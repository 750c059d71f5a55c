package redirect

import (
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// turn is for how long a loop asks for a core at a time.
	turn = 100 * time.Microsecond

	// behind is by how much the nice value of all other threads is above that of
	// loops. What computes all the time beside a loop that does so, too, has 29% of
	// the core then (sched_prio_to_weight of the kernel: 423 and 1024), which is
	// more than publishing takes of it. And a loop that waits now and then has not
	// used up its share when it is woken: only then may it interrupt others.
	behind = 4

	mostNice, leastNice = -20, 19 // nice values go from more to less
)

// goFirst lets the calling thread interrupt others when it has been woken, as long
// as it takes no more than its share: Linux does so since 6.12 for threads that ask
// for shorter turns than those that run. Without it, they go on for up to some ms.
func goFirst() {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL {
		return // what somebody has chosen on purpose
	}
	attr.Runtime = uint64(turn)
	_ = unix.SchedSetAttr(0, attr, 0) // best effort; older kernels pass it over
}

// goBefore gives loops a larger share of the cores than all other threads of the
// process have. Theirs stays as it is where loops may have more: with CAP_SYS_NICE,
// or RLIMIT_NICE. Else they stand back.
func goBefore(loops []int) {
	nice := niceOf(loops[0])
	for _, tid := range loops {
		if unix.Setpriority(unix.PRIO_PROCESS, tid, max(nice-behind, mostNice)) != nil {
			standBack(loops, nice)
			return
		}
	}
}

// standBack gives the threads of the process a lesser share of the cores than its
// loops have, whose nice value is given. Threads that they make inherit it.
func standBack(loops []int, nice int) {
	for again := true; again; { // a thread that had its old share may have made another
		again = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return // best effort: then all have the same
		}
		for _, t := range threads {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || slices.Contains(loops, tid) || niceOf(tid) > nice {
				continue
			}
			if unix.Setpriority(unix.PRIO_PROCESS, tid, min(nice+behind, leastNice)) == nil {
				again = nice < leastNice
			}
		}
	}
}

// niceOf is the nice value of a thread, as the system call tells it; that of one
// that is gone is the highest.
func niceOf(tid int) int {
	priority, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	if err != nil {
		return leastNice
	}
	return 20 - priority
}
