package aside

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// onOneCore keeps the calling goroutine on a thread of the first core, as threads of a
// node are.
func onOneCore(t *testing.T, turn time.Duration) {
	t.Helper()
	runtime.LockOSThread() // which ends with the goroutine
	TakeTurns(0, turn)
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Error(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Error(err)
	}
}

// cpuTime is what the calling thread has had of a core.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var had unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &had); err != nil {
		t.Error(err)
	}
	return time.Duration(had.Nano())
}

// The core is full with what is here; what other processes have of it does not count.
func TestWorkBesideACoreThatIsFullHasItsShare(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	var stop atomic.Bool
	var had atomic.Int64 // ns of the core, by all three
	var others sync.WaitGroup
	for range 2 {
		others.Go(func() {
			onOneCore(t, LoopTurn)
			begin := cpuTime(t)
			for !stop.Load() {
			}
			had.Add(int64(cpuTime(t) - begin))
		})
	}
	var worked, took time.Duration
	var turns int
	var work sync.WaitGroup
	work.Go(func() {
		onOneCore(t, Turn)
		yield := NewYield()
		first := cpuTime(t)
		for begin := time.Now(); took < 500*time.Millisecond; took = time.Since(begin) {
			piece := time.Now()
			for time.Since(piece) < 5*time.Microsecond {
			}
			spent := time.Since(piece)
			worked += min(spent, 10*time.Microsecond) // more is others' time
			before := time.Now()
			yield()
			if time.Since(before) > 100*time.Microsecond {
				turns++
			}
		}
		had.Add(int64(cpuTime(t) - first))
	})
	work.Wait()
	stop.Store(true)
	others.Wait()
	all := time.Duration(had.Load())
	if got := float64(worked) / float64(all); got < 0.08 || got > 0.5 {
		t.Errorf("it worked for %v of %v: its share is to be about a fifth", worked, all)
	}
	if turns < 10 {
		t.Errorf("others went first %d times in %v", turns, took)
	}
}

// Of two Ps, a loop that keeps one leaves one to all goroutines.
func TestGoroutinesHaveShorterTurnsWhereLoopsKeepTheOtherPs(t *testing.T) {
	now := time.Now()
	work := turns{all: 2}
	work.over(now)
	count := func() (shared int) {
		for range 100 {
			now = now.Add(yieldAfter)
			if work.shares(now) {
				shared++
				work.over(now)
			}
		}
		return shared
	}
	free := count()
	release := KeepP()
	kept := count()
	release()
	if again := count(); free != 10 || kept != 100 || again != 10 {
		t.Errorf("of 100 turns, others had the P in %d, in %d while a loop kept the other one, and then in %d", free, kept, again)
	}
}
