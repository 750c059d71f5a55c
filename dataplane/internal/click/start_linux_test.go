package click

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// recordSlowly is recordTimes, no quicker than segments are made.
func recordSlowly(t *testing.T, r *Recorder, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		recordTimes(r, i, i+1)
		waitFor(t, "there are spare segments", func() bool { return len(r.spares) == spareCount })
	}
}

// leave makes the spool of a node that has ended, with so many clicks and no spare
// segment. It is a copy, so that nothing in it is in use.
func leave(t *testing.T, dir string, boot uint64, clicks int) {
	t.Helper()
	r := open(t, func(c *Config) { c.Boot, c.MaxBytes = boot, 32<<20 })
	recordSlowly(t, r, 1, 1+clicks)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for len(r.spares) > 0 {
		if err := os.Remove((<-r.spares).path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(dir, os.DirFS(r.config.Dir)); err != nil {
		t.Fatal(err)
	}
}

// fill takes what a disk has left, to the last byte or but for some, until it is called.
func fill(t *testing.T, dir string, but int64) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, pageSize))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err == nil {
		err = f.Truncate(info.Size() - but)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// startsDegraded opens a recorder on a disk that takes nothing, checks that it serves,
// and that it heals when the disk does. The clicks behind that are left in the spool.
func startsDegraded(t *testing.T, dir string, level Level, cause error, mend func()) {
	t.Helper()
	registry := prometheus.NewRegistry()
	r := open(t, func(c *Config) {
		c.Dir, c.Boot, c.Level, c.MaxBytes, c.Registerer, c.Retention = dir, 6, level, 32<<20, registry, time.Hour
	})
	recordSlowly(t, r, 1, 601)
	if account := r.Ledger(); account.Recorded != 600 || account.Lost() != 0 || !errors.Is(r.Degraded(), cause) {
		t.Fatalf("%+v, degraded: %v", account, r.Degraded())
	}
	if got := metric(t, registry, "aff_clicks_spool_degraded"); got != 1 {
		t.Errorf("aff_clicks_spool_degraded is %v", got)
	}
	if got := readAll(t, r.Log(), 0); len(got) != 600 {
		t.Errorf("%d clicks", len(got))
	}
	mend()
	waitFor(t, "the recorder heals", func() bool { return r.Degraded() == nil && !r.current.Load().plain() })
	if got := metric(t, registry, "aff_clicks_spool_degraded"); got != 0 {
		t.Errorf("healed: aff_clicks_spool_degraded is %v", got)
	}
	recordTimes(r, 601, 651)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// checkLeft checks that two boots have left their clicks: all of the first, and those of
// the second that were in files, with an account of the others.
func checkLeft(t *testing.T, dir string) {
	t.Helper()
	r := open(t, func(c *Config) { c.Dir, c.Boot, c.MaxBytes = dir, 7, 32<<20 })
	if len(r.Earlier()) != 2 || len(r.Warnings()) != 0 {
		t.Fatalf("%d logs, %v", len(r.Earlier()), r.Warnings())
	}
	for i, want := range []int{100, 50} {
		l := r.Earlier()[i]
		cursor := l.Cursor(0)
		got := readOn(t, cursor)
		if len(got) != want || got[want-1].Sequence != l.last || l.Identity().Boot != uint64(5+i) {
			t.Errorf("boot %d: %d clicks, want %d", l.Identity().Boot, len(got), want)
		}
		if account := cursor.Ledger(); account.Answered != l.last || account.Dropped[LostMemory] != l.last-uint64(want) {
			t.Errorf("boot %d: %+v", l.Identity().Boot, account)
		}
		cursor.Close()
	}
}

func TestANodeStartsOnADiskThatIsFull(t *testing.T) {
	for name, but := range map[string]int64{"no room at all": 0, "no room for a segment": 64 << 10} {
		for _, level := range []Level{Process, Fsync} {
			t.Run(name+"/"+string(level), func(t *testing.T) {
				dir := tmpfs(t, "3m")
				leave(t, dir, 5, 100)
				free := fill(t, dir, but)
				startsDegraded(t, dir, level, unix.ENOSPC, free)
				checkLeft(t, dir)
			})
		}
	}
}

// What has filled the disk may be the spool itself.
func TestADiskThatClicksHaveFilledHealsWhenTheyArePublished(t *testing.T) {
	dir := tmpfs(t, "1500k")
	leave(t, dir, 5, 1000)
	fill(t, dir, 64<<10)
	r := open(t, func(c *Config) { c.Dir, c.Boot, c.MaxBytes = dir, 6, 32<<20 })
	if len(r.Earlier()) != 1 || !errors.Is(r.Degraded(), unix.ENOSPC) {
		t.Fatalf("%d logs, degraded: %v", len(r.Earlier()), r.Degraded())
	}
	l := r.Earlier()[0]
	if got := readAll(t, l, 0); len(got) != 1000 {
		t.Fatalf("%d clicks", len(got))
	}
	l.Acknowledge(l.last)
	waitFor(t, "the recorder heals", func() bool { return r.Degraded() == nil && !r.current.Load().plain() })
}

func TestANodeStartsOnADiskThatIsReadOnly(t *testing.T) {
	for _, level := range []Level{Process, Fsync} {
		t.Run(string(level), func(t *testing.T) {
			disk := tmpfs(t, "8m")
			dir := filepath.Join(disk, "clicks")
			leave(t, dir, 5, 100)
			remount := func(flags uintptr) {
				if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT|flags, "size=8m"); err != nil {
					t.Fatal(err)
				}
			}
			remount(unix.MS_RDONLY)
			startsDegraded(t, dir, level, unix.EROFS, func() { remount(0) })
			checkLeft(t, dir)
		})
	}
}

func TestANodeStartsWhereItsFolderCannotBeMadeYet(t *testing.T) {
	disk := tmpfs(t, "8m")
	if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	r := open(t, func(c *Config) { c.Dir = filepath.Join(disk, "node", "clicks") })
	close(r.stop) // what follows does maintain's work
	r.stopped.Wait()
	r.stop = make(chan struct{}) // Close's
	r.heal()
	recordTimes(r, 1, 11)
	if err := r.Degraded(); !errors.Is(err, unix.EROFS) || r.Ledger().Recorded != 10 {
		t.Fatalf("degraded: %v, %+v", err, r.Ledger())
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	r.heal()
	if err := r.Degraded(); err != nil || r.current.Load().plain() || !r.log.boot.present() {
		t.Errorf("degraded: %v, clicks are in memory: %t", err, r.current.Load().plain())
	}
}

func TestANodeStartsOnADiskInWhichDamageIsFound(t *testing.T) {
	for _, cause := range []error{unix.EUCLEAN, unix.EBADMSG} {
		failed := true
		failSyncs(t, func(string) error {
			if failed {
				return cause
			}
			return nil
		})
		r := still(t)
		recordTimes(r, 1, 11)
		if err := r.Degraded(); !errors.Is(err, cause) || r.Ledger().Recorded != 10 {
			t.Errorf("degraded: %v, %+v", err, r.Ledger())
		}
		failed = false
		r.heal()
		if err := r.Degraded(); err != nil || r.current.Load().plain() || !r.log.boot.present() {
			t.Errorf("degraded: %v, clicks are in memory: %t", err, r.current.Load().plain())
		}
	}
}
