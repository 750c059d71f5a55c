package click

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// backlog makes a log of segments that are over, of which nobody removes any.
func backlog(t *testing.T, level Level, change ...func(*Config)) *Recorder {
	t.Helper()
	r := filled(t, level, change...)
	r.Log().Acknowledge(r.Last())
	return r
}

// filled has segments of which nothing is acknowledged.
func filled(t *testing.T, level Level, change ...func(*Config)) *Recorder {
	t.Helper()
	set := func(c *Config) { c.Level, c.SegmentBytes, c.MaxBytes = level, minSegment, 64*minSegment }
	r := open(t, append([]func(*Config){set}, change...)...)
	close(r.stop) // what follows does maintain's work
	r.stopped.Wait()
	r.stop = make(chan struct{}) // Close's
	e := Event{UserAgent: make([]byte, 1000)}
	for range 10 {
		for current := r.current.Load(); r.current.Load() == current; {
			r.Record(&e)
		}
		r.refill()
	}
	return r
}

func TestNoFileIsRemovedWhileABacklogDrains(t *testing.T) {
	r := filled(t, Process)
	e := Event{UserAgent: make([]byte, 1000)}
	for range 2 * 4 * waiting {
		for current := r.current.Load(); r.current.Load() == current; {
			r.Record(&e)
		}
		r.refill()
	}
	last := r.Last()
	for _, step := range []struct {
		acknowledged uint64
		gone         int
	}{{last / 3, 0}, {last, goneAtOnce}, {last, goneAtOnce}} {
		r.Log().Acknowledge(step.acknowledged)
		r.removedAt = time.Time{}
		before := files(t, r)
		if r.trim(); before-files(t, r) != step.gone {
			t.Errorf("with %d of %d clicks acknowledged, %d of %d files are gone, want %d", step.acknowledged, last, before-files(t, r), before, step.gone)
		}
	}
}

func TestWhatWasSentGoesAFewFilesAtATime(t *testing.T) {
	r := filled(t, Process, func(c *Config) { c.MaxBytes, c.Retention = 128*minSegment, time.Hour })
	keepSome(t, r, rand.New(rand.NewPCG(41, 42)), 0, 750) // some 25 MB
	r.Log().Acknowledge(r.Last())
	r.sent.mu.Lock()
	for _, f := range r.sent.files {
		f.newest = time.Now().Add(-2 * time.Hour)
	}
	kept := len(r.sent.files)
	r.sent.mu.Unlock()
	r.removedAt = time.Now().Add(time.Hour) // no time since, however long this takes
	for _, want := range []int{0, goneAtOnce} {
		r.trim()
		if gone := kept - len(r.sent.files); gone != want {
			t.Errorf("%d of %d files are gone, want %d", gone, kept, want)
		}
		r.removedAt = time.Time{}
	}
}

// It is done with each batch that is acknowledged, and what a backlog leaves waits to be
// removed until it is drained.
func TestTrimmingDoesNotGrowWithWhatIsLeft(t *testing.T) {
	const rounds = 100
	r := backlog(t, Process)
	trim := func() {
		if _, err := r.log.trim(keepCount, 0, false, r.pause); err != nil {
			t.Fatal(err)
		}
	}
	trim()
	left := r.log.gone
	if len(left) == 0 {
		t.Fatal("nothing is left")
	}
	defer func() { r.log.gone = left }()
	r.log.gone = append(left[:len(left):len(left)], make([]*segment, 100_000)...) // nobody looks at them
	made := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.TotalAlloc
	}
	before := made()
	for range rounds {
		trim()
	}
	if each := (made() - before) / rounds; each > 1<<10 {
		t.Errorf("each takes %d bytes of memory", each)
	}
}

// files is how many a recorder has.
func files(t *testing.T, r *Recorder) int {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(r.log.boot.dir, segmentPattern))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestFilesOfABacklogGoByAndBy(t *testing.T) {
	r := backlog(t, Process)
	before := files(t, r)
	for _, step := range []struct{ most, gone int }{{0, 0}, {2, 2}, {2, 4}, {math.MaxInt, 8}} {
		if _, err := r.log.trim(keepCount, step.most, false, func() {}); err != nil {
			t.Fatal(err)
		}
		if got := before - files(t, r); got < step.gone || step.most < math.MaxInt && got > step.gone {
			t.Errorf("at most %d at once: %d files are gone, want %d", step.most, got, step.gone)
		}
		for _, s := range r.log.gone {
			if s.bytes() != nil {
				t.Errorf("at most %d at once: %s has not given its memory back", step.most, s.path)
			}
		}
	}
}

func TestMemoryOfABacklogGoesAtOnce(t *testing.T) {
	r := backlog(t, Memory)
	before := len(r.log.segments)
	if _, err := r.log.trim(keepCount, 0, true, func() {}); err != nil {
		t.Fatal(err)
	}
	if gone := before - len(r.log.segments); gone < 8 {
		t.Errorf("%d of %d segments are gone", gone, before)
	}
}

// A collection of garbage takes the core from redirects, and what a backlog takes of
// the heap would bring on one after the other.
func TestMemoryOfABacklogIsNotOfTheHeap(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := backlog(t, Memory)
	runtime.ReadMemStats(&after)
	grown := after.TotalAlloc - before.TotalAlloc
	if held := uint64(len(r.log.segments)) * minSegment; held < 8*minSegment || grown > held/2 {
		t.Errorf("%d bytes of segments took %d bytes of the heap", held, grown)
	}
}
