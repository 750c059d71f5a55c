package click

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// disk is what a disk holds for sure, while a recorder of level fsync runs: the
// pieces that were synced, as they were then. Of every other page a power cut
// may leave what was there before or what came later.
type disk struct {
	r     *Recorder
	files map[string][]byte
	marks []byte
}

func newDisk(t *testing.T, r *Recorder) *disk {
	d := &disk{r: r, files: make(map[string][]byte), marks: bytes.Clone(r.log.boot.mem)}
	real := syncMemory
	syncMemory = func(mem []byte) error {
		if &mem[0] == &r.log.boot.mem[0] {
			r.mu.Lock()
			copy(d.marks, mem)
			r.mu.Unlock()
			return real(mem)
		}
		r.log.mu.Lock()
		defer r.log.mu.Unlock()
		for _, s := range r.log.segments {
			if s.leaving {
				continue
			}
			live := s.bytes()
			for at := 0; at < len(live); at += pageSize {
				if &live[at] == &mem[0] {
					copy(d.file(s)[at:], mem)
				}
			}
		}
		return real(mem)
	}
	t.Cleanup(func() { syncMemory = real })
	return d
}

// file is a segment's: at first as it was synced when it was made.
func (d *disk) file(s *segment) []byte {
	f := d.files[s.path]
	if f == nil {
		f = make([]byte, s.size)
		copy(f, s.bytes()[:32])
		d.files[s.path] = f
	}
	return f
}

// cut writes what a power cut could leave now into a folder.
func (d *disk) cut(t *testing.T, rnd *rand.Rand) (dir string) {
	t.Helper()
	dir = t.TempDir()
	boot := filepath.Join(dir, filepath.Base(d.r.log.boot.dir))
	if err := os.Mkdir(boot, 0o700); err != nil {
		t.Fatal(err)
	}
	late := rnd.IntN(5) * 25 // percent of the pages that were written later than promised
	write := func(name string, durable, live []byte) {
		image := bytes.Clone(durable)
		for at := 0; at < len(image); at += pageSize {
			if rnd.IntN(100) < late {
				copy(image[at:at+pageSize], live[at:])
			}
		}
		if err := os.WriteFile(filepath.Join(boot, name), image, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.r.mu.Lock() // maintain has held it since it wiped a segment
	defer d.r.mu.Unlock()
	d.r.log.mu.Lock()
	defer d.r.log.mu.Unlock()
	write(bootFile, d.marks, d.r.log.boot.mem)
	for _, s := range d.r.log.segments {
		if s.leaving {
			continue
		}
		write(filepath.Base(s.path), d.file(s), s.bytes())
	}
	return dir
}

func TestAPowerCutTakesNothingThatWasSynced(t *testing.T) {
	// The test syncs by itself.
	r := open(t, func(c *Config) { c.Level, c.Sync, c.Boot, c.MaxBytes = Fsync, time.Hour, 5, 4<<20 })
	for len(r.spares) < spareCount {
		time.Sleep(time.Millisecond)
	}
	d := newDisk(t, r)
	rnd := rand.New(rand.NewPCG(11, 12))
	cursor := r.Log().Cursor(0)
	defer cursor.Close()
	var promised, acknowledged, recorded uint64
	for step := range 400 {
		for range rnd.IntN(60) {
			recorded++
			r.Record(&Event{Time: int64(recorded), UserAgent: randomBytes(rnd, 700)})
		}
		for len(r.spares) < spareCount { // the ring turns
			time.Sleep(100 * time.Microsecond)
		}
		if rnd.IntN(2) == 0 {
			r.sync()
		}
		var c Click
		for ok, err := cursor.Next(&c); ok; ok, err = cursor.Next(&c) {
			if err != nil || c.Time != int64(c.Sequence) {
				t.Fatal(c, err)
			}
			promised = c.Sequence
		}
		if rnd.IntN(3) == 0 && promised > 0 {
			acknowledged = max(acknowledged, promised-uint64(rnd.IntN(20)))
			acknowledged = min(acknowledged, promised)
			r.Log().Acknowledge(acknowledged)
			for len(r.spares) < spareCount {
				time.Sleep(100 * time.Microsecond)
			}
		}
		if step%4 == 0 {
			checkImage(t, d.cut(t, rnd), acknowledged, promised, recorded, fmt.Sprintf("step %d", step))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if promised < 5000 || r.number < 12 {
		t.Fatalf("%d clicks, segment %d: too little happened", promised, r.number)
	}
}

// checkImage recovers what a power cut left.
func checkImage(t *testing.T, dir string, acknowledged, promised, recorded uint64, when string) {
	t.Helper()
	r, err := Open(Config{Dir: dir, Node: "n", Boot: 6, SegmentBytes: minSegment, MaxBytes: 8 << 20, Level: Process, Retention: -1})
	if err != nil {
		t.Fatalf("%s: the node does not start: %v", when, err)
	}
	defer r.Close()
	if len(r.Earlier()) != 1 || len(r.Warnings()) != 0 {
		t.Fatalf("%s: %d logs, %v", when, len(r.Earlier()), r.Warnings())
	}
	l := r.Earlier()[0]
	if l.Acknowledged() > acknowledged {
		t.Fatalf("%s: %d are acknowledged, want at most %d", when, l.Acknowledged(), acknowledged)
	}
	next := acknowledged + 1
	for _, c := range readAll(t, l, acknowledged) {
		if c.Sequence > promised {
			if c.Time < int64(promised) || c.Time > int64(recorded) {
				t.Fatalf("%s: sequence %d is click %d", when, c.Sequence, c.Time)
			}
			continue
		}
		if c.Sequence != next || c.Time != int64(next) {
			t.Fatalf("%s: sequence %d is click %d, want %d", when, c.Sequence, c.Time, next)
		}
		next++
	}
	if next <= promised {
		t.Fatalf("%s: clicks from %d to %d are lost, of %d recorded", when, next, promised, recorded)
	}
}

func TestAtLevelFsyncReadersSeeWhatIsOnTheDisk(t *testing.T) {
	r := open(t, func(c *Config) { c.Level, c.Sync = Fsync, time.Hour })
	r.Record(&Event{Status: 302})
	if got := readAll(t, r.Log(), 0); len(got) != 0 {
		t.Fatalf("%d clicks before the sync", len(got))
	}
	r.sync()
	r.Record(&Event{Status: 301})
	if got := readAll(t, r.Log(), 0); len(got) != 1 || got[0].Status != 302 {
		t.Fatalf("%d clicks after the sync", len(got))
	}
}

func TestAClickIsOnTheDiskWithinTheWindow(t *testing.T) {
	r := open(t, func(c *Config) { c.Level, c.Sync = Fsync, 5*time.Millisecond })
	for range 20 {
		r.Record(&Event{UserAgent: make([]byte, 1000)})
		waitFor(t, "the click is synced", func() bool {
			s := r.current.Load()
			_, offset, _ := s.begun()
			return s.durable.Load() == offset
		})
	}
	if r.Degraded() != nil {
		t.Fatal(r.Degraded())
	}
}

func TestADiskThatFailsToSyncDegradesAndHeals(t *testing.T) {
	real := syncMemory
	defer func() { syncMemory = real }()
	r := open(t, func(c *Config) { c.Level, c.Sync = Fsync, time.Hour })
	syncMemory = func([]byte) error { return os.ErrDeadlineExceeded }
	r.Record(&Event{Status: 302})
	r.sync()
	if r.Degraded() == nil {
		t.Fatal("nobody is told")
	}
	if got := readAll(t, r.Log(), 0); len(got) != 1 {
		t.Fatalf("%d clicks can be published", len(got))
	}
	r.sync() // of nothing: the disk has not come back
	if r.Degraded() == nil {
		t.Fatal("it heals without the disk")
	}
	syncMemory = real
	r.Record(&Event{Status: 302})
	r.sync()
	if r.Degraded() != nil {
		t.Fatal(r.Degraded())
	}
}

// Of two segments that are synced, the disk does not take the first.
func TestASyncThatWorksDoesNotHideWhatFailedBesideIt(t *testing.T) {
	real := syncMemory
	defer func() { syncMemory = real }()
	r := still(t)
	first := r.current.Load()
	for i := 0; r.current.Load() == first; i++ {
		recordTimes(r, i, i+1)
	}
	recordTimes(r, 0, 1)
	syncMemory = func(mem []byte) error {
		if &mem[0] == &first.bytes()[0] {
			return unix.EIO
		}
		return real(mem)
	}
	r.sync()
	if !errors.Is(r.Degraded(), unix.EIO) {
		t.Errorf("degraded: %v", r.Degraded())
	}
}

// A folder that takes no new file says nothing about syncs, which work again.
func TestASyncThatWorksDoesNotHealTheFolder(t *testing.T) {
	real := syncMemory
	defer func() { syncMemory = real }()
	folder := errors.New("no new file")
	for _, sooner := range []bool{false, true} {
		r := still(t)
		if sooner {
			r.degraded.Store(&folder)
		}
		syncMemory = func([]byte) error { return unix.EIO }
		for range 2 {
			recordTimes(r, 0, 1)
			r.sync()
		}
		if !sooner {
			r.degraded.Store(&folder)
		}
		syncMemory = real
		recordTimes(r, 0, 1)
		r.sync()
		if !errors.Is(r.Degraded(), folder) {
			t.Errorf("the folder failed sooner than the sync: %t, degraded: %v", sooner, r.Degraded())
		}
	}
}

// The folder was removed, and is made anew; a sync fails just before it counts as healed.
func TestSyncsThatFailGoOnToBeToldOfWhenTheFolderHasHealed(t *testing.T) {
	real := syncMemory
	defer func() { syncMemory, step = real, nil }()
	r := still(t)
	if err := os.RemoveAll(r.log.boot.dir); err != nil {
		t.Fatal(err)
	}
	syncMemory = func([]byte) error { return unix.EIO }
	failed := func() bool {
		recordTimes(r, 0, 1)
		r.sync()
		return r.syncFailed.Load() != nil
	}
	during := false
	step = func(name string) {
		if name == "rotate: done" { // clicks are in the new folder
			during = failed()
		}
	}
	r.heal()
	if !during {
		t.Fatal("no sync has failed while the folder healed")
	}
	if failed(); !errors.Is(r.Degraded(), unix.EIO) {
		t.Errorf("degraded: %v", r.Degraded())
	}
}

// The segment whose sync failed is behind, and what is in memory is never synced.
func TestClicksLeaveMemoryAlsoWhenASyncHadFailedBefore(t *testing.T) {
	real := syncMemory
	defer func() { syncMemory = real }()
	r := open(t, func(c *Config) { c.Level, c.Sync, c.MaxBytes = Fsync, time.Hour, 32<<20 })
	away := inTheWay(t, r)
	syncMemory = func([]byte) error { return os.ErrDeadlineExceeded }
	recordTimes(r, 1, 2)
	r.sync()
	if r.syncFailed.Load() == nil {
		t.Fatal("the sync has not failed")
	}
	for i := 2; !r.current.Load().plain(); i++ {
		recordTimes(r, i, i+1)
		waitFor(t, "there are spare segments", func() bool { return len(r.spares) == spareCount })
	}
	away()
	syncMemory = real
	waitFor(t, "clicks are in files", func() bool { return r.Degraded() == nil && !r.current.Load().plain() })
	if r.syncFailed.Load() != nil {
		t.Error("the sync counts as failed, and the folder works")
	}
}

func TestWhatFailsWhileTheFolderHealsIsToldOf(t *testing.T) {
	r := open(t, func(c *Config) { c.MaxBytes = 32 << 20 })
	close(r.stop) // what follows does maintain's work
	r.stopped.Wait()
	r.stop = make(chan struct{}) // Close's
	before := errors.New("before")
	r.degraded.Store(&before)
	later := errors.New("later")
	r.yield = func() { r.degraded.Store(&later) } // while segments are made
	r.heal()
	if !errors.Is(r.Degraded(), later) {
		t.Errorf("degraded: %v", r.Degraded())
	}
	r.yield = runtime.Gosched
	r.heal()
	if r.Degraded() != nil {
		t.Errorf("degraded: %v", r.Degraded())
	}
}

// failSyncs lets each sync of a file fail of which it is said to, until the test ends.
// Nobody may be syncing meanwhile.
func failSyncs(t *testing.T, fails func(name string) error) {
	real := syncFile
	syncFile = func(f *os.File) error {
		if err := fails(f.Name()); err != nil {
			return err
		}
		return real(f)
	}
	t.Cleanup(func() { syncFile = real })
}

// still opens a recorder of level fsync, and does maintain's and syncEvery's work.
func still(t *testing.T, change ...func(*Config)) *Recorder {
	t.Helper()
	level := func(c *Config) { c.Level, c.Sync, c.MaxBytes = Fsync, time.Hour, 32<<20 }
	r := open(t, append([]func(*Config){level}, change...)...)
	close(r.stop)
	r.stopped.Wait()
	r.stop = make(chan struct{}) // Close's
	return r
}

// The disk has just failed: that is why the marks are apart.
func TestASyncThatFailsWhileMarksGetTheirFileCostsNoFile(t *testing.T) {
	for works := range 4 {
		failed, syncs := false, 0
		failSyncs(t, func(string) error {
			if syncs++; failed && syncs > works {
				return unix.EIO
			}
			return nil
		})
		r := still(t, func(c *Config) { c.Boot = 5 })
		recordTimes(r, 1, 11)
		r.sync()
		if err := r.log.boot.detach(); err != nil {
			t.Fatal(err)
		}
		failed, syncs = true, 0
		for range 2 {
			r.heal()
			if s := r.current.Load(); !r.log.boot.present() || s.plain() || r.Degraded() == nil {
				t.Errorf("%d syncs work: the file is there: %t, clicks are in memory: %t, degraded: %v", works, r.log.boot.present(), s.plain(), r.Degraded())
			}
			if r.log.boot.apart() != (works == 0) { // a file that is not on the disk takes no other's place
				t.Errorf("%d syncs work: the marks are apart: %t", works, r.log.boot.apart())
			}
			syncs = works
		}
		killed := t.TempDir()
		if err := os.CopyFS(killed, os.DirFS(r.config.Dir)); err != nil {
			t.Fatal(err)
		}
		failed = false
		r.heal()
		if r.log.boot.apart() || r.Degraded() != nil {
			t.Errorf("%d syncs work: the marks are apart: %t, degraded: %v", works, r.log.boot.apart(), r.Degraded())
		}
		next := open(t, func(c *Config) { c.Dir, c.Boot = killed, 6 })
		if len(next.Earlier()) != 1 || len(next.Warnings()) != 0 {
			t.Errorf("%d syncs work: %d logs, %v", works, len(next.Earlier()), next.Warnings())
		} else if got := readAll(t, next.Earlier()[0], 0); len(got) != 10 {
			t.Errorf("%d syncs work: %d clicks", works, len(got))
		}
	}
}

func TestAFolderThatIsMadeAnewIsUsedOnceItsNameIsOnTheDisk(t *testing.T) {
	r := still(t)
	recordTimes(r, 1, 11)
	if err := os.RemoveAll(r.log.boot.dir); err != nil {
		t.Fatal(err)
	}
	failed := true
	failSyncs(t, func(name string) error {
		if failed && name == r.config.Dir {
			return unix.EIO
		}
		return nil
	})
	for range 2 {
		r.heal()
		for range spareCount + 1 {
			r.leave(r.current.Load())
			r.refill()
		}
		if !r.current.Load().plain() || !errors.Is(r.Degraded(), unix.EIO) {
			t.Fatalf("clicks are in memory: %t, degraded: %v", r.current.Load().plain(), r.Degraded())
		}
	}
	failed = false
	r.heal()
	if r.current.Load().plain() || r.Degraded() != nil {
		t.Errorf("clicks are in memory: %t, degraded: %v", r.current.Load().plain(), r.Degraded())
	}
}

// Nobody syncs a segment whose file is gone: its clicks are as in memory.
func TestAFolderThatIsRemovedDuringASyncHoldsUpNoClick(t *testing.T) {
	r := still(t)
	real := syncMemory
	defer func() { syncMemory = real }()
	syncMemory = func(mem []byte) error {
		syncMemory = real
		err := real(mem)
		recordTimes(r, 11, 16)
		if err := os.RemoveAll(r.log.boot.dir); err != nil {
			t.Error(err)
		}
		r.heal()
		return err
	}
	recordTimes(r, 1, 11)
	r.sync()
	recordTimes(r, 16, 21)
	r.sync()
	clicks := readAll(t, r.Log(), 0)
	if len(clicks) != 20 || r.Degraded() != nil {
		t.Errorf("%d of 20 clicks can be read; degraded: %v", len(clicks), r.Degraded())
	}
}
