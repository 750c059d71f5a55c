package click

import (
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// tmpfs mounts a small file system.
func tmpfs(t *testing.T, size string) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a file system")
	}
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("this machine does not let the test mount a file system: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// immutable is FS_IMMUTABLE_FL of linux/fs.h.
const immutable = 0x10

// fails records while the folder takes no new file, and checks that not a click
// is dropped and that the operator is told.
func fails(t *testing.T, r *Recorder, registry *prometheus.Registry) (recorded uint64) {
	t.Helper()
	e := Event{UserAgent: make([]byte, 1000)}
	for range 4000 { // 16 segments
		waitFor(t, "there is a segment to go on with", func() bool { return len(r.spares) > 0 })
		r.Record(&e)
	}
	if account := r.Ledger(); account.Recorded != 4000 || account.Lost() != 0 || r.Degraded() == nil {
		t.Fatalf("%+v, degraded: %v", account, r.Degraded())
	}
	if got := metric(t, registry, "aff_clicks_spool_degraded"); got != 1 {
		t.Errorf("aff_clicks_spool_degraded is %v", got)
	}
	if got := readAll(t, r.Log(), 0); len(got) != 4000 {
		t.Fatalf("%d clicks", len(got))
	}
	return 4000
}

func TestADiskThatIsFullCostsNoClickAndHeals(t *testing.T) {
	dir := tmpfs(t, "1500k") // five segments
	registry := prometheus.NewRegistry()
	r := open(t, func(c *Config) { c.Dir, c.MaxBytes, c.Registerer = dir, 32<<20, registry })
	fails(t, r, registry)
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the recorder heals", func() bool { return r.Degraded() == nil })
	waitFor(t, "clicks are in files", func() bool { return !r.current.Load().plain() })
}

func TestAFolderThatTakesNoFileCostsNoClickAndHeals(t *testing.T) {
	dir := t.TempDir()
	registry := prometheus.NewRegistry()
	r := open(t, func(c *Config) { c.Dir, c.MaxBytes, c.Registerer = dir, 32<<20, registry })
	for len(r.spares) < spareCount {
		time.Sleep(time.Millisecond)
	}
	folder, err := os.Open(r.log.boot.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	flags, err := unix.IoctlGetInt(int(folder.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(folder.Fd()), unix.FS_IOC_SETFLAGS, flags|immutable)
	}
	if err != nil {
		t.Skip("this file system or user cannot make a folder immutable: ", err)
	}
	thaw := func() error { return unix.IoctlSetPointerInt(int(folder.Fd()), unix.FS_IOC_SETFLAGS, flags) }
	defer thaw()
	n := fails(t, r, registry)
	r.Log().Acknowledge(n) // what cannot be removed must not stand in the way
	if err := thaw(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the recorder heals", func() bool { return r.Degraded() == nil })
	waitFor(t, "clicks are in files", func() bool { return !r.current.Load().plain() })
	r.Record(&Event{Status: 302})
	if got := readAll(t, r.Log(), n); len(got) != 1 {
		t.Fatalf("%d clicks", len(got))
	}
}
