package click

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// benchmarkRecord measures Record with segments at hand, as they are as long as
// the disk keeps up: in rounds that fit into what has been prepared, rotation
// included. Nothing may be dropped. The time that counts is cpu-ns/click, of the
// writers' own threads: it does not depend on what else the machine does.
func benchmarkRecord(b *testing.B, level Level, writers int) {
	const round = 800_000
	events := browserEvents(4096)
	var cpu atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	for done, boot := 0, uint64(1); done < b.N; boot++ {
		b.StopTimer()
		r, err := Open(Config{
			Dir: b.TempDir(), Level: level, Node: "bench", Boot: boot, Retention: -1,
			MaxBytes: 1 << 30, SegmentBytes: 160 << 20,
		})
		if err != nil {
			b.Fatal(err)
		}
		n := min(round, b.N-done)
		var wait sync.WaitGroup
		b.StartTimer()
		for w := range writers {
			wait.Go(func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				before := threadTime(b)
				for i := w; i < n; i += writers {
					r.Record(&events[i&4095])
				}
				cpu.Add(threadTime(b) - before)
			})
		}
		wait.Wait()
		b.StopTimer()
		if account := r.Ledger(); account.Lost() > 0 || account.Recorded != uint64(n) {
			b.Fatalf("%+v after %d clicks", account, n)
		}
		r.log.Acknowledge(uint64(n))
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
		done += n
		b.StartTimer()
	}
	b.ReportMetric(float64(cpu.Load())/float64(b.N), "cpu-ns/click")
}

// threadTime is the time that this thread has computed, in ns.
func threadTime(b *testing.B) int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Error(err)
	}
	return ts.Nano()
}

func BenchmarkRecord(b *testing.B) {
	for _, level := range []Level{Process, Memory} {
		for _, writers := range []int{1, 2} {
			b.Run(fmt.Sprintf("%s/writers=%d", level, writers), func(b *testing.B) { benchmarkRecord(b, level, writers) })
		}
	}
}

// BenchmarkPrepareSegment is what making a segment ready costs, off the
// redirect path: about 24,000 clicks find room in one.
func BenchmarkPrepareSegment(b *testing.B) {
	dir := b.TempDir()
	for i := range b.N {
		s, err := newSegment(dir, 1, uint64(i+1), 8<<20, func() {})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.remove(func() {}); err != nil {
			b.Fatal(err)
		}
	}
}
