package redirect

import (
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/affleet/affleet/dataplane/internal/aside"
)

const (
	// behind is by how much the nice value of all other threads is above that of
	// loops. What computes all the time beside a loop that does so, too, has 29% of
	// the core then (sched_prio_to_weight of the kernel: 423 and 1024), which is
	// more than publishing takes of it.
	behind = 4
	// farBehind is the same beside a loop that leaves the others as much anyhow, since
	// it waits for the rest of the time. Linux lets a thread that is woken interrupt
	// others only when it has not used up its share. Where it has, it waits until they
	// yield, or for the next tick, up to 4 ms: a collection of garbage does not yield,
	// and neither does the kernel when it writes files out.
	farBehind = 20
	// busy is the share of its time from which on a loop does not leave them as much.
	busy = 0.7

	// How often a loop looks at that: behind so many turns, and not before so long.
	weighTurns = 16
	weighTime  = 10 * time.Millisecond

	mostNice, leastNice = -20, 19 // nice values go from more to less
)

// standing is how far a loop goes before others.
type standing struct {
	far     bool  // it leaves others enough of its core
	applied bool  // its nice value says so
	turns   int   // since it was looked at
	at      int64 // when that was, ns of the clock
	used    int64 // CPU time of the loop's thread then, ns
}

// weigh looks at what the loop takes of its core, and goes before others as far as that
// leaves room for them. It is called with each turn.
func (l *loop) weigh() {
	s := &l.standing
	if s.turns++; s.turns < weighTurns {
		return
	}
	s.turns = 0
	now, _ := l.group.srv.clock.read()
	if now-s.at < int64(weighTime) {
		return
	}
	var cpu unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &cpu) != nil {
		return // it stays as it is
	}
	used := cpu.Nano()
	s.far = float64(used-s.used) < busy*float64(now-s.at)
	s.at, s.used = now, used
	if s.applied == s.far || !l.group.mayRise.Load() {
		return
	}
	s.applied = s.far
	by := behind
	if s.far {
		by = farBehind
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, max(l.group.othersNice-by, mostNice)) // best effort: RLIMIT_NICE may end in between
}

// goBefore gives loops a larger share of the cores than all other threads of the
// process have, and these turns that loops interrupt. Their share stays as it is where
// loops may have more: with CAP_SYS_NICE, or RLIMIT_NICE. Else they stand back. It says
// what nice value the others have, and whether loops may change their own.
func goBefore(loops []int) (nice int, may bool) {
	nice, may = niceOf(loops[0]), true
	for _, tid := range loops {
		if unix.Setpriority(unix.PRIO_PROCESS, tid, max(nice-behind, mostNice)) != nil {
			nice, may = min(nice+behind, leastNice), false
			break
		}
	}
	seen := make(map[int]bool)
	for again := true; again; { // a thread that was as before may have made another
		again = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return nice, may // best effort: then all have the same
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
	return nice, may
}

// standBack gives a thread a nice value, unless its own is higher, and turns that loops
// interrupt. Threads that it makes inherit both.
func standBack(tid, nice int) {
	if niceOf(tid) < nice {
		_ = unix.Setpriority(unix.PRIO_PROCESS, tid, nice) // fails only for a thread that is gone
	}
	aside.TakeTurns(tid, aside.Turn)
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
