package redirect

import (
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/affleet/affleet/dataplane/internal/aside"
)

const (
	// behind is by how much the nice value of all other threads is above that of
	// loops. What computes all the time beside a loop that does so, too, has 29% of
	// the core then (sched_prio_to_weight of the kernel: 423 and 1024), which is
	// more than publishing takes of it. And a loop that waits now and then has not
	// used up its share when it is woken: only then may it interrupt others.
	behind = 4

	mostNice, leastNice = -20, 19 // nice values go from more to less
)

// goBefore gives loops a larger share of the cores than all other threads of the
// process have, and these short turns. Their share stays as it is where loops may have
// more: with CAP_SYS_NICE, or RLIMIT_NICE. Else they stand back.
func goBefore(loops []int) {
	nice := niceOf(loops[0])
	for _, tid := range loops {
		if unix.Setpriority(unix.PRIO_PROCESS, tid, max(nice-behind, mostNice)) != nil {
			nice = min(nice+behind, leastNice)
			break
		}
	}
	seen := make(map[int]bool)
	for again := true; again; { // a thread that was as before may have made another
		again = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return // best effort: then all have the same
		}
		for _, t := range threads {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || slices.Contains(loops, tid) || seen[tid] {
				continue
			}
			seen[tid], again = true, true
			standBack(tid, nice)
		}
	}
}

// standBack gives a thread a nice value, unless its own is higher, and short turns.
// Threads that it makes inherit both.
func standBack(tid, nice int) {
	if niceOf(tid) < nice {
		_ = unix.Setpriority(unix.PRIO_PROCESS, tid, nice) // fails only for a thread that is gone
	}
	aside.ShortTurns(tid)
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
