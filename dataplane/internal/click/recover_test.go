package click

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// accountOf makes the folder of a boot of which only an account is left.
func accountOf(t *testing.T, spool string, boot, lost uint64) (dir string) {
	t.Helper()
	dir = folderOfBoot(spool, boot)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	page := bootPage(Identity{Node: "n", Boot: boot})
	at := marksAt + unsafe.Offsetof(marks{}.dropped) + uintptr(SpoolFull)*8
	binary.NativeEndian.PutUint64(page[at:], lost)
	if err := os.WriteFile(filepath.Join(dir, bootFile), page, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func age(t *testing.T, dir string, by time.Duration) {
	t.Helper()
	at := time.Now().Add(-by)
	if err := os.Chtimes(dir, at, at); err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}

// A process may have so many files open, and mapped, only.
func TestAStartTakesNoMoreAccountsThanItCan(t *testing.T) {
	spool := t.TempDir()
	const more = 3
	for i := range uint64(mostAccounts + more) {
		age(t, accountOf(t, spool, 10000-i, 1), time.Duration(mostAccounts+more-i)*time.Second)
	}
	clicks := leaveClicks(t, spool)
	r := open(t, func(c *Config) { c.Dir = spool })
	logs := r.Earlier()
	if len(logs) != mostAccounts+1 || logs[0].Identity().Boot != 10000 || logs[mostAccounts].Identity().Boot != clicks {
		t.Fatalf("%d logs, of boots %d to %d", len(logs), logs[0].Identity().Boot, logs[len(logs)-1].Identity().Boot)
	}
	if w := r.Warnings(); len(w) != 1 || !strings.Contains(w[0].Error(), "the accounts of 3 boots wait") {
		t.Errorf("%v", w)
	}
	for _, l := range logs {
		l.Tell(1, false)
	}
	waitFor(t, "what is told goes", func() bool { return len(r.Earlier()) == 1 })
	next := open(t, func(c *Config) { c.Dir = spool })
	if len(next.Earlier()) != more {
		t.Errorf("%d logs", len(next.Earlier()))
	}
}

// leaveClicks leaves a boot with clicks in a spool, the newest there.
func leaveClicks(t *testing.T, spool string) (boot uint64) {
	t.Helper()
	dir, _, _ := image(t, 3)
	if err := os.CopyFS(spool, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return 5
}

func TestBootsComeInTheOrderOfTheirAgeAlsoWhereTheyLeaveSpareSegments(t *testing.T) {
	spool := t.TempDir()
	for i, boot := range []uint64{9, 3, 6} {
		dir := accountOf(t, spool, boot, 1)
		if err := os.WriteFile(filepath.Join(dir, "000000000002.seg"), make([]byte, minSegment), 0o600); err != nil {
			t.Fatal(err)
		}
		age(t, dir, time.Duration(10-i)*time.Minute)
	}
	r := open(t, func(c *Config) { c.Dir = spool })
	for i, l := range r.Earlier() {
		if got := l.Identity().Boot; got != []uint64{9, 3, 6}[i] {
			t.Errorf("place %d: boot %d", i, got)
		}
	}
}

func TestWhatIsLeftOfABootThatWasNeverMadeIsRemoved(t *testing.T) {
	spool := t.TempDir()
	put := func(name string, boot []byte, old bool, clicks bool) (dir string) {
		dir = filepath.Join(spool, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if boot != nil {
			if err := os.WriteFile(filepath.Join(dir, bootFile), boot, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if clicks {
			if err := os.WriteFile(filepath.Join(dir, "000000000001.seg"), zeros[:], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if old {
			age(t, dir, time.Hour)
		}
		return dir
	}
	whole := bootPage(Identity{Node: "n", Boot: 1})
	other := append([]byte("AFFBOO\x00\x02"), whole[8:]...)
	stays := map[string]bool{}
	stays[put(".0000000000000001", whole, true, false)] = false
	stays[put(".0000000000000002", whole, false, false)] = true // somebody may be making it
	stays[put(".other", nil, true, false)] = true
	stays[put("0000000000000003", []byte{}, true, false)] = false
	stays[put("0000000000000004", zeros[:pageSize], true, false)] = false
	stays[put("0000000000000005", nil, true, false)] = false
	stays[put("0000000000000006", nil, false, false)] = true
	stays[put("0000000000000007", zeros[:pageSize], true, true)] = true // clicks, of nobody knows whom
	stays[put("0000000000000008", other, true, false)] = true           // a later release's
	r := open(t, func(c *Config) { c.Dir = spool })
	for dir, want := range stays {
		if got := exists(dir); got != want {
			t.Errorf("%s stays: %t", filepath.Base(dir), got)
		}
	}
	if len(r.Earlier()) != 0 || len(r.Warnings()) != 6 {
		t.Errorf("%d logs, %v", len(r.Earlier()), r.Warnings())
	}
	told := 0
	for _, w := range r.Warnings() {
		if strings.Contains(w.Error(), "until somebody removes "+filepath.Join(spool, "0000000000000007")) {
			told++
		}
	}
	if told != 1 {
		t.Errorf("the folder with clicks is told of %d times: %v", told, r.Warnings())
	}
}

// A process that gives its boot a new file lets go of the lock of the one before.
func TestABootThatGetsANewFileWhileItIsFoundIsLeftAlone(t *testing.T) {
	r := still(t)
	step = func(name string) {
		if name == "open boot: not locked" {
			if err := r.log.boot.restore(); err != nil {
				t.Error(err)
			}
		}
	}
	defer func() { step = nil }()
	if _, err := openBoot(r.log.boot.dir); !errors.Is(err, errBusy) {
		t.Errorf("the boot of a living process is not in use: %v", err)
	}
}

// Where the next segment says that it begins, thousands of years of clicks ahead, ends none.
func TestASegmentEndsWhereItCanWhateverTheNextOneSays(t *testing.T) {
	r := still(t)
	recorded := 0
	for range 2 {
		for current := r.current.Load(); r.current.Load() == current; recorded++ {
			r.Record(&Event{Time: int64(recorded), UserAgent: make([]byte, 1000)})
		}
		r.refill()
	}
	dir := killed(t, r.config.Dir)
	id := r.Log().Identity()
	paths, err := filepath.Glob(filepath.Join(dir, "*", segmentPattern))
	if err != nil || len(paths) < 2 {
		t.Fatalf("%v, %v", paths, err)
	}
	slices.Sort(paths)
	f, err := os.OpenFile(paths[1], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0x40}, 32+7); err != nil { // the highest bits of what it begins with
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	next := still(t, func(c *Config) { c.Dir, c.Boot = dir, id.Boot+1 })
	logs := next.Earlier()
	l := logs[slices.IndexFunc(logs, func(l *Log) bool { return l.Identity().Boot == id.Boot })]
	cursor := l.Cursor(0)
	defer cursor.Close()
	var c Click
	for i := range 100 {
		if ok, err := cursor.Next(&c); !ok || err != nil || c.Sequence != uint64(i+1) {
			t.Fatalf("click %d: %v, %v, sequence %d", i+1, ok, err, c.Sequence)
		}
	}
}
