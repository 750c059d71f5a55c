package click

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// within reads what there is of a backlog, so many clicks at a time, and what is left
// with Each.
func within(t *testing.T, cursor *Cursor, bytes, clicks int) (times []int64, byWithin, told int) {
	t.Helper()
	var c Click
	taken := 0
	take := func() bool {
		if taken == clicks {
			return false
		}
		taken++
		times = append(times, c.Time)
		return true
	}
	for {
		for before := -1; before < len(times) && cursor.Ahead(bytes); {
			before, taken = len(times), 0
			cursor.Within(&c, take)
			byWithin += len(times) - before
		}
		taken = 0
		before := len(times)
		switch err := cursor.Each(&c, take); {
		case errors.Is(err, ErrDamaged):
			told++
		case err != nil:
			t.Fatal(err)
		case len(times) == before:
			return times, byWithin, told
		}
	}
}

// fullSegments records n clicks of 1 KiB, and gives how many of them are in segments that are
// over.
func fullSegments(t *testing.T, n int, change ...func(*Config)) (r *Recorder, full int) {
	t.Helper()
	r = open(t, change...)
	recordSlowly(t, r, 1, n+1)
	readsNow(t, over(r)[0])
	for _, s := range over(r) {
		full += int(s.sealed.Load() - 1)
	}
	if full < n/2 {
		t.Fatalf("%d of %d clicks are in segments that are over", full, n)
	}
	return r, full
}

// over are the segments of a recorder that take no clicks any more.
func over(r *Recorder) (list []*segment) {
	for _, s := range all(r.Log()) {
		if s.sealed.Load() != 0 {
			list = append(list, s)
		}
	}
	return list
}

// readsNow skips where the file system of the spool does not know RWF_NOWAIT, as overlayfs.
func readsNow(t *testing.T, s *segment) {
	t.Helper()
	f, err := os.Open(s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := readNow(int(f.Fd()), make([]byte, pageSize), 0, inMemory(int(f.Fd()))); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skipf("files in %s are not read without a wait: %v", t.TempDir(), err)
	}
}

// forget has the kernel forget what is in memory of a segment's file.
func forget(t *testing.T, s *segment) {
	t.Helper()
	giveBack(s.bytes(), func() {}) // not release, which is for who trims
	f, err := os.Open(s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		t.Fatal(err)
	}
	mem := s.bytes()
	there := make([]byte, len(mem)/pageSize) // to read some would have the kernel get it
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(unsafe.Pointer(&there[0]))); errno != 0 || slices.ContainsFunc(there, func(b byte) bool { return b&1 != 0 }) {
		t.Skipf("%v: the kernel does not forget a file in %s", errno, t.TempDir())
	}
}

func TestABacklogIsReadWithoutAWait(t *testing.T) {
	const n = 2000
	for name, before := range map[string]func(*testing.T, *Recorder){
		"in memory": func(*testing.T, *Recorder) {},
		"on the disk alone": func(t *testing.T, r *Recorder) {
			for _, s := range over(r) {
				forget(t, s)
			}
		},
	} {
		for _, bytes := range []int{pageSize, 100 << 10, 100 << 20} {
			for _, clicks := range []int{1, 7, n} {
				t.Run(fmt.Sprintf("%s, %d bytes, %d clicks", name, bytes, clicks), func(t *testing.T) {
					r, full := fullSegments(t, n)
					before(t, r)
					cursor := r.Log().Cursor(0)
					defer cursor.Close()
					times, byWithin, told := within(t, cursor, bytes, clicks)
					for i, got := range times {
						if got != int64(i+1) {
							t.Fatalf("click %d is %d", i+1, got)
						}
					}
					if len(times) != n || told != 0 || cursor.Position() != n+1 {
						t.Errorf("%d of %d clicks, damage %d times, at %d", len(times), n, told, cursor.Position())
					}
					if least := full * 9 / 10; clicks == n && byWithin < least {
						t.Errorf("%d clicks came without a wait, want %d", byWithin, least)
					}
				})
			}
		}
	}
}

// What is not in memory Ahead waits for, and Within never does.
func TestWhatIsOnTheDiskAloneIsNotReadBeforeItIsLoaded(t *testing.T) {
	r, _ := fullSegments(t, 2000)
	s := over(r)[0]
	cursor := r.Log().Cursor(0)
	defer cursor.Close()
	var c Click
	n := 0
	take := func() bool { n++; return true }
	if !cursor.Ahead(1 << 20) {
		t.Fatal("there is no backlog")
	}
	forget(t, s)
	if cursor.Within(&c, take); n > windowBytes/1000 {
		t.Errorf("%d clicks were read from the disk", n)
	}
	const part = 64 << 10
	before := n
	if !cursor.Ahead(part) {
		t.Fatal("it was not loaded")
	}
	if cursor.Within(&c, take); n == before || n > before+(part+windowBytes)/1000 {
		t.Errorf("of %d bytes that were loaded, %d clicks are there", part, n-before)
	}
	if !cursor.Ahead(1 << 20) {
		t.Fatal("it was not loaded")
	}
	if cursor.Within(&c, take); n != int(s.sealed.Load()-1) {
		t.Errorf("of what was loaded, %d clicks are there, want %d", n, s.sealed.Load()-1)
	}
}

func TestClicksOfAnySizeAreReadWithoutAWait(t *testing.T) {
	r := open(t)
	const n = 60
	sizes := []int{0, 100, windowBytes - 2*fixedBytes, windowBytes, 3 * windowBytes, MaxRecord - fixedBytes}
	for i := range n {
		r.Record(&Event{Time: int64(i + 1), Destination: bytes.Repeat([]byte{byte(i)}, sizes[i%len(sizes)])})
		waitFor(t, "there are spare segments", func() bool { return len(r.spares) == spareCount })
	}
	readsNow(t, over(r)[0])
	cursor := r.Log().Cursor(0)
	defer cursor.Close()
	var c Click
	got := 0
	for before := -1; before < got && cursor.Ahead(1<<20); {
		before = got
		cursor.Within(&c, func() bool {
			if want := bytes.Repeat([]byte{byte(got)}, sizes[got%len(sizes)]); c.Time != int64(got+1) || !bytes.Equal(c.Destination, want) {
				t.Errorf("click %d is %d, with %d bytes, want %d", got+1, c.Time, len(c.Destination), len(want))
			}
			got++
			return true
		})
	}
	if got < n/2 {
		t.Errorf("%d of %d clicks came without a wait", got, n)
	}
}

// Who was held up may fill a place long after its segment is over.
func TestAClickThatIsStillBeingWrittenIsWaitedFor(t *testing.T) {
	const at, n = 100, 2000
	for name, spoil := range map[string]func(record []byte){
		"not begun":        func(record []byte) { storeHead(record, 0, 0) },
		"copied half-made": func(record []byte) { record[len(record)-1] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := fullSegments(t, n)
			s := over(r)[0]
			mem := s.bytes()
			pos := segmentHead
			for range at {
				pos += int(uint32(loadHead(mem, pos)))
			}
			record := mem[pos : pos+int(uint32(loadHead(mem, pos)))]
			whole := bytes.Clone(record)
			spoil(record)
			cursor := r.Log().Cursor(0)
			defer cursor.Close()
			var c Click
			got := 0
			take := func() bool { got++; return true }
			if !cursor.Ahead(1 << 20) {
				t.Fatal("there is no backlog")
			}
			if cursor.Within(&c, take); got != at || cursor.Ahead(1<<20) {
				t.Errorf("%d clicks, want %d", got, at)
			}
			copy(record, whole)
			if !cursor.Ahead(1 << 20) {
				t.Error("it is not seen to be written")
			}
			if cursor.Within(&c, take); got != int(s.sealed.Load()-1) || c.Sequence != uint64(got) {
				t.Errorf("%d clicks, the last one is %d, want %d", got, c.Sequence, s.sealed.Load()-1)
			}
		})
	}
}

// A segment's file is open while its clicks are read, and no longer.
func TestABacklogLeavesNoFileOpen(t *testing.T) {
	r, _ := fullSegments(t, 2000)
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := files()
	cursor := r.Log().Cursor(0)
	if _, byWithin, _ := within(t, cursor, 1<<20, 7); byWithin == 0 {
		t.Error("no click came without a wait")
	}
	cursor.Close()
	other := r.Log().Cursor(0) // ends in the middle of one
	if !other.Ahead(1 << 20) {
		t.Error("there is no backlog")
	}
	other.Close()
	if after := files(); after > before {
		t.Errorf("%d files are open, and were %d", after, before)
	}
}

// At level fsync, who publishes a click that a power cut takes would give its sequence out
// twice.
func TestABacklogThatIsNotOnTheDiskYetIsNotRead(t *testing.T) {
	r, _ := fullSegments(t, 2000, func(c *Config) { c.Level, c.Sync = Fsync, time.Hour })
	for _, s := range over(r) {
		s.durable.Store(segmentHead)
	}
	cursor := r.Log().Cursor(0)
	defer cursor.Close()
	var c Click
	n := 0
	take := func() bool { n++; return true }
	if cursor.Ahead(1<<20) || n > 0 {
		t.Errorf("there is a backlog, and %d clicks", n)
	}
	s := over(r)[0]
	s.durable.Store(segmentHead + 10*int64(loadHead(s.bytes(), segmentHead)&0xffffffff))
	if !cursor.Ahead(1 << 20) {
		t.Error("there is no backlog")
	}
	if cursor.Within(&c, take); n != 10 {
		t.Errorf("%d clicks, want 10", n)
	}
}

// What somebody removes stays mapped, and is read there.
func TestABacklogWhoseFilesWereRemovedIsReadAllTheSame(t *testing.T) {
	const n = 2000
	r, _ := fullSegments(t, n)
	list := over(r)
	for _, s := range list[:len(list)/2] {
		if err := os.Remove(s.path); err != nil {
			t.Fatal(err)
		}
	}
	cursor := r.Log().Cursor(0)
	defer cursor.Close()
	times, byWithin, told := within(t, cursor, 1<<20, 7)
	if len(times) != n || told != 0 {
		t.Errorf("%d of %d clicks, damage %d times", len(times), n, told)
	}
	if byWithin == 0 || byWithin == n {
		t.Errorf("%d of %d clicks came without a wait", byWithin, n)
	}
}

// To step over thousands of clicks takes long, and they need not be in memory.
func TestACursorThatStartsInTheMiddleOfASegmentFindsItsPlaceWithEach(t *testing.T) {
	const n = 2000
	r := open(t)
	recordSlowly(t, r, 1, n+1)
	readsNow(t, over(r)[0])
	cursor := r.Log().Cursor(100)
	defer cursor.Close()
	if cursor.Ahead(1 << 20) {
		t.Error("Within would step over a hundred clicks")
	}
	var c Click
	one := 0
	if err := cursor.Each(&c, func() bool { one++; return one == 1 }); err != nil {
		t.Fatal(err)
	}
	if c.Sequence != 102 || !cursor.Ahead(1<<20) {
		t.Errorf("at click %d there is no backlog", c.Sequence)
	}
}

// Who records has the segment that is not over.
func TestWhatIsBeingRecordedIsNoBacklog(t *testing.T) {
	r := open(t)
	recordTimes(r, 1, 11)
	cursor := r.Log().Cursor(0)
	defer cursor.Close()
	if cursor.Ahead(1 << 20) {
		t.Error("there is a backlog")
	}
	if got := len(readOn(t, cursor)); got != 10 {
		t.Errorf("%d clicks, want 10", got)
	}
}

func TestABacklogWhoseFileIsCutOffIsReadAllTheSame(t *testing.T) {
	const n = 2000
	for name, cut := range map[string]func(t *testing.T, cursor *Cursor, s *segment){
		"before it is looked at": func(t *testing.T, _ *Cursor, s *segment) { cutOff(t, s, 8*pageSize) },
		"behind that": func(t *testing.T, cursor *Cursor, s *segment) {
			if !cursor.Ahead(100 << 20) {
				t.Fatal("there is no backlog")
			}
			cutOff(t, s, 8*pageSize)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := fullSegments(t, n)
			cursor := r.Log().Cursor(0)
			defer cursor.Close()
			s := over(r)[0]
			cut(t, cursor, s)
			times, _, told := within(t, cursor, 100<<20, n)
			account := r.Ledger()
			lost := account.Lost()
			if told == 0 || lost == 0 || lost >= uint64(s.sealed.Load()-1) || uint64(len(times)) != n-lost {
				t.Errorf("%d of %d clicks, %d are lost, damage %d times", len(times), n, lost, told)
			}
			for i := range times[1:] {
				if times[i+1] <= times[i] {
					t.Fatalf("click %d follows %d", times[i+1], times[i])
				}
			}
		})
	}
}

// An earlier boot's clicks may be damaged anywhere.
func TestAnEarlierBootsClicksAreReadWithAWait(t *testing.T) {
	dir := t.TempDir()
	r := open(t, func(c *Config) { c.Dir, c.Boot = dir, 5 })
	const n = 2000
	recordSlowly(t, r, 1, n+1)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = open(t, func(c *Config) { c.Dir, c.Boot = dir, 6 })
	cursor := r.Earlier()[0].Cursor(0)
	defer cursor.Close()
	if times, byWithin, _ := within(t, cursor, 1<<20, n); len(times) != n || byWithin != 0 {
		t.Errorf("%d of %d clicks, %d of them by Within", len(times), n, byWithin)
	}
}
