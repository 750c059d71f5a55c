package click

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// tooLarge is a click that is dropped.
func tooLarge(r *Recorder) { r.Record(&Event{Destination: make([]byte, 1<<20)}) }

func TestABootStaysUntilItsAccountIsTold(t *testing.T) {
	for name, boot := range map[string]struct {
		clicks, dropped int
		told            func(l *Log) // before it ends
		stays           bool
	}{
		"nothing was answered":        {0, 0, func(*Log) {}, false},
		"all is told":                 {3, 2, func(l *Log) { l.Tell(2, true) }, false},
		"the end is not told":         {3, 0, func(l *Log) { l.Tell(0, false) }, true},
		"only drops":                  {0, 2, func(*Log) {}, true},
		"one drop is not told":        {3, 2, func(l *Log) { l.Tell(1, true) }, true},
		"an account that is too late": {3, 2, func(l *Log) { l.Tell(2, true); l.Tell(1, false) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			first := open(t, func(c *Config) { c.Dir, c.Boot = dir, 5 })
			recordTimes(first, 1, 1+boot.clicks)
			for range boot.dropped {
				tooLarge(first)
			}
			readAll(t, first.Log(), 0)
			first.Log().Acknowledge(uint64(boot.clicks))
			boot.told(first.Log())
			killed := copied(t, first)
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			folder := filepath.Join(dir, filepath.Base(first.log.boot.dir))
			if _, err := os.Stat(folder); errors.Is(err, os.ErrNotExist) == boot.stays {
				t.Fatalf("stopped: %v", err)
			}
			if boot.stays {
				checkUntold(t, dir, uint64(boot.clicks), uint64(boot.dropped), true)
			}
			if boot.dropped > 0 && boot.stays {
				checkUntold(t, killed, uint64(boot.clicks), uint64(boot.dropped), false)
			}
		})
	}
}

// checkUntold checks what the next start finds of a boot of which all is acknowledged:
// an account, until that is told.
func checkUntold(t *testing.T, dir string, recorded, lost uint64, ended bool) {
	t.Helper()
	r := open(t, func(c *Config) { c.Dir, c.Boot = dir, 6 })
	l := r.Earlier()[0]
	r.trim()
	if len(r.Earlier()) != 1 || l.Told() || l.Ended() != ended {
		t.Fatalf("%d logs, told: %t, ended: %t", len(r.Earlier()), l.Told(), l.Ended())
	}
	cursor := l.Cursor(l.Acknowledged())
	defer cursor.Close()
	if got := readOn(t, cursor); len(got) != 0 {
		t.Errorf("%d clicks", len(got))
	}
	if account := cursor.Ledger(); account.Recorded != recorded || account.Dropped[TooLarge] != lost || account.Answered != recorded+lost {
		t.Errorf("%+v", account)
	}
	if files, err := filepath.Glob(filepath.Join(l.boot.dir, "*.seg")); err != nil || ended && len(files) != 0 {
		t.Errorf("files: %v, %v", files, err)
	}
	l.Tell(lost, ended)
	waitFor(t, "its folder goes", func() bool {
		_, err := os.Stat(l.boot.dir)
		return len(r.Earlier()) == 0 && errors.Is(err, os.ErrNotExist)
	})
}

func TestAStopBehindARemovedFolderIsClean(t *testing.T) {
	r := open(t, func(c *Config) { c.Dir = filepath.Join(t.TempDir(), "spool") })
	recordTimes(r, 1, 11)
	waitFor(t, "the folder is removed", func() bool { return os.RemoveAll(r.config.Dir) == nil })
	waitFor(t, "clicks are in files", func() bool { return r.log.boot.present() && !r.current.Load().plain() })
	close(r.stop) // which would remove what is acknowledged
	r.stopped.Wait()
	r.stop = make(chan struct{}) // Close's
	r.Log().Acknowledge(10)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestAnAccountIsKeptWhileTheBootsFileIsThere(t *testing.T) {
	r := open(t, func(c *Config) { c.Dir = filepath.Join(t.TempDir(), "spool") })
	if !r.KeepsAccount() {
		t.Error("it is not")
	}
	close(r.stop) // which would make the folder anew
	r.stopped.Wait()
	r.stop = make(chan struct{}) // Close's
	for _, fails := range []func() error{r.log.boot.detach, func() error { return os.RemoveAll(r.config.Dir) }} {
		if err := fails(); err != nil {
			t.Fatal(err)
		}
		if r.KeepsAccount() {
			t.Error("it is where there is none")
		}
		if err := r.log.boot.restore(); err != nil {
			t.Fatal(err)
		}
		if !r.KeepsAccount() {
			t.Error("it is not in the file that was made anew")
		}
	}
	if r := open(t, func(c *Config) { c.Level = Memory }); r.KeepsAccount() {
		t.Error("it is at level memory")
	}
}
