package click

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// keepSome keeps batches of random bytes, numbered on from a first one.
func keepSome(t *testing.T, r *Recorder, rnd *rand.Rand, first, count int) (data [][]byte) {
	t.Helper()
	for i := first; i < first+count; i++ {
		b := randomBytes(rnd, 64<<10)
		data = append(data, b)
		keepOne(t, r, i, b)
	}
	return data
}

func keepOne(t *testing.T, r *Recorder, number int, data []byte) {
	t.Helper()
	err := r.Keep(&Sent{
		Subject: "aff.clicks.v1.eu.node-1", ID: fmt.Sprint("id-", number), First: uint64(number * 10), Last: uint64(number*10 + 9),
		Position: uint64(number), At: time.Now().UnixMicro(),
	}, data, runtime.Gosched)
	if err != nil {
		t.Fatal(err)
	}
	var files int64
	r.sent.mu.Lock()
	defer r.sent.mu.Unlock()
	for _, f := range r.sent.files {
		files += f.capacity
	}
	if r.sent.size != files {
		t.Fatalf("what was sent counts for %d bytes, and its files for %d", r.sent.size, files)
	}
}

// checkKept checks that the newest batches are kept, whole and in order.
func checkKept(t *testing.T, kept []Sent, data [][]byte, least int) {
	t.Helper()
	if len(kept) < least || len(kept) > len(data) {
		t.Fatalf("%d batches are kept, want %d at least", len(kept), least)
	}
	gone := len(data) - len(kept)
	for i := range kept {
		s := &kept[i]
		if s.ID != fmt.Sprint("id-", gone+i) || s.Position != uint64(gone+i) || s.First != uint64((gone+i)*10) || s.Subject != "aff.clicks.v1.eu.node-1" {
			t.Fatalf("batch %d is %+v", gone+i, s)
		}
		got, err := s.Data(nil)
		if err != nil || !bytes.Equal(got, data[gone+i]) {
			t.Fatalf("batch %d: %d bytes, %v", gone+i, len(got), err)
		}
	}
}

// A record ends before, at and behind the end of a page, also one without data.
func TestWhatWasSentIsKeptWhereverItEndsInAPage(t *testing.T) {
	r := open(t, func(c *Config) { c.Retention = time.Hour })
	var data [][]byte
	at := sentFileHead
	keep := func(size int) {
		number := len(data)
		data = append(data, bytes.Repeat([]byte{byte(number + 1)}, size))
		keepOne(t, r, number, data[number])
		at += sentHead + len("aff.clicks.v1.eu.node-1") + len(fmt.Sprint("id-", number)) + size
	}
	for _, end := range []int{0, 1, pageSize - 1, 0, 0, sentHead, pageSize - sentHead, pageSize - 1, 1, 17} {
		for _, pages := range []int{0, 1, 9} {
			head := sentHead + len("aff.clicks.v1.eu.node-1") + len(fmt.Sprint("id-", len(data)))
			keep(pages*pageSize + (end-at-head)&(pageSize-1))
			if at%pageSize != end {
				t.Fatalf("a record ends at %d, want %d", at%pageSize, end)
			}
			keep(0)
		}
	}
	checkKept(t, r.Sent(), data, len(data))
}

func TestWhatWasSentIsKeptWithinTheSpoolsLimit(t *testing.T) {
	const limit = 16 << 20
	r := open(t, func(c *Config) { c.MaxBytes, c.Retention = limit, time.Hour })
	rnd := rand.New(rand.NewPCG(21, 22))
	data := keepSome(t, r, rnd, 0, 1500) // some 48 MB
	if r.Bytes() > limit {
		t.Fatalf("the spool has %d bytes", r.Bytes())
	}
	checkKept(t, r.Sent(), data, 300)
	files, err := filepath.Glob(filepath.Join(r.log.boot.dir, sentPattern))
	if err != nil || len(files) > 16 {
		t.Fatalf("%d files, %v", len(files), err)
	}
}

func TestWhatWasSentGivesWayToClicks(t *testing.T) {
	const limit = 8 << 20
	r := open(t, func(c *Config) { c.MaxBytes, c.Retention = limit, time.Hour })
	rnd := rand.New(rand.NewPCG(23, 24))
	keepSome(t, r, rnd, 0, 500)
	before := len(r.Sent())
	e := Event{UserAgent: make([]byte, 1000)}
	for r.Ledger().Recorded < 6000 { // 6 MB
		if r.current.Load() != nil {
			r.Record(&e)
		}
		if len(r.spares) == 0 {
			time.Sleep(100 * time.Microsecond)
		}
		if r.Bytes() > limit {
			t.Fatalf("the spool has %d bytes", r.Bytes())
		}
	}
	if after := len(r.Sent()); before < 50 || after >= before {
		t.Fatalf("%d batches were kept, and then %d", before, after)
	}
	if got := readAll(t, r.Log(), 0); uint64(len(got)) != r.Ledger().Recorded {
		t.Fatalf("%d clicks", len(got))
	}
}

func TestTheNextBootHasWhatWasSentUntilItsTime(t *testing.T) {
	dir := t.TempDir()
	first, err := Open(Config{Dir: dir, Node: "n", Boot: 5, SegmentBytes: minSegment, MaxBytes: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(25, 26))
	data := keepSome(t, first, rnd, 0, 100)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := open(t, func(c *Config) { c.Dir, c.Boot, c.MaxBytes, c.Retention = dir, 6, 32<<20, time.Hour })
	data = append(data, keepSome(t, second, rnd, 100, 20)...)
	checkKept(t, second.Sent(), data, 120)
	file := filepath.Join(dir, "0000000000000005")
	files, err := filepath.Glob(filepath.Join(file, sentPattern))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	second.sent.mu.Lock()
	for _, f := range second.sent.files[:len(second.sent.files)-1] {
		f.newest = time.Now().Add(-2 * time.Hour)
	}
	second.sent.mu.Unlock()
	waitFor(t, "the earlier boot's folder goes", func() bool {
		second.wakeUp()
		_, err := os.Stat(file)
		return os.IsNotExist(err)
	})
	if got := second.Sent(); len(got) != 20 || got[0].ID != "id-100" {
		t.Fatalf("%d batches are kept", len(got))
	}
}

func TestWhatWasSentGoesAlthoughTheClockWasAhead(t *testing.T) {
	r := filled(t, Process, func(c *Config) { c.Retention = time.Hour })
	ahead := time.Now().Add(24 * time.Hour)
	for i := range 150 {
		if err := r.Keep(&Sent{ID: fmt.Sprint(i), At: ahead.UnixMicro()}, make([]byte, 64<<10), runtime.Gosched); err != nil {
			t.Fatal(err)
		}
	}
	later := time.Now().Add(2 * time.Hour)
	if !r.sent.trim(later, false) {
		t.Errorf("none of %d files goes", len(r.sent.files))
	}
	for _, path := range filesLike(t, r, sentPattern) {
		if err := os.Chtimes(path, ahead, ahead); err != nil {
			t.Fatal(err)
		}
	}
	next := newSentLog(t.TempDir(), 64<<20, time.Hour)
	if err := next.recover(r.log.boot.dir); err != nil {
		t.Fatal(err)
	}
	if !next.trim(later, false) {
		t.Errorf("of an earlier boot, none of %d files goes", len(next.files))
	}
}

// filesLike lists the files of a boot's folder.
func filesLike(t *testing.T, r *Recorder, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.log.boot.dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestWhatWasSentTakesOverTheFilesOfADrainedBacklog(t *testing.T) {
	for level, taken := range map[Level]int{Process: 3, Fsync: 0} {
		r := backlog(t, level, func(c *Config) {
			c.SegmentBytes, c.MaxBytes, c.Retention = 1<<20, 64<<20, time.Hour
		})
		if _, err := r.log.trim(keepCount, 0, false, func() {}); err != nil { // they leave, and none goes yet
			t.Fatal(err)
		}
		segments, held := filesLike(t, r, "*.seg"), r.Bytes()
		data := keepSome(t, r, rand.New(rand.NewPCG(29, 30)), 0, 70) // some 2.3 MB
		checkKept(t, r.Sent(), data, 70)
		if left := len(filesLike(t, r, "*.seg")); len(segments)-left != taken {
			t.Errorf("level %v: of %d segments %d are left, want %d fewer", level, len(segments), left, taken)
		}
		if taken > 0 && r.Bytes() != held {
			t.Errorf("level %v: the spool had %d bytes, and then %d", level, held, r.Bytes())
		}
		if _, err := r.log.trim(keepCount, 1000, false, func() {}); err != nil {
			t.Fatal(err)
		}
		checkKept(t, r.Sent(), data, 70)
	}
}

// The segments leave while what was sent takes them over.
func TestFilesAreTakenOverWhileABacklogIsRemoved(t *testing.T) {
	dir := t.TempDir()
	r, err := Open(Config{Dir: dir, Node: "n", Boot: 5, SegmentBytes: minSegment, MaxBytes: 256 << 20, Retention: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(31, 32))
	e := Event{UserAgent: make([]byte, 1000)}
	var data [][]byte
	for range 30 {
		for recorded := r.Ledger().Recorded; r.Ledger().Recorded < recorded+500; { // two segments
			r.Record(&e)
		}
		r.log.Acknowledge(r.Last())
		data = append(data, keepSome(t, r, rnd, len(data), 10)...)
	}
	checkKept(t, r.Sent(), data, len(data))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	next := open(t, func(c *Config) { c.Dir, c.Boot, c.MaxBytes, c.Retention = dir, 6, 256<<20, time.Hour })
	if w := next.Warnings(); len(w) > 0 {
		t.Errorf("the next boot says %v", w)
	}
	checkKept(t, next.Sent(), data, len(data))
}

func TestASegmentThatHadOnlyJustBeenHandedOverIsForgotten(t *testing.T) {
	r := backlog(t, Process, func(c *Config) { c.Retention = time.Hour })
	if _, err := r.log.trim(keepCount, 0, false, func() {}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.log.boot.dir, "000000000077.sent")
	if r.handOver(path, minSegment) != minSegment || r.handOver(path, minSegment+1) != 0 {
		t.Fatal("no segment was handed over, or one that is too small")
	}
	if err := newSentLog(r.log.boot.dir, 64<<20, time.Hour).recover(r.log.boot.dir); err != nil {
		t.Errorf("recovery says %v", err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

// As of a boot whose folder could not be made yet.
func TestASegmentThatCannotBeHandedOverStaysInTheSpoolUntilItIsRemoved(t *testing.T) {
	r := backlog(t, Process, func(c *Config) { c.Retention = time.Hour })
	if _, err := r.log.trim(keepCount, 0, false, func() {}); err != nil {
		t.Fatal(err)
	}
	held := r.Bytes()
	for range 3 {
		if r.handOver(filepath.Join(r.config.Dir, "0000000000000007", "000000000077.sent"), minSegment) != 0 {
			t.Fatal("a segment was handed over to a folder that is not there")
		}
	}
	if got := r.Bytes(); got != held {
		t.Errorf("the spool had %d bytes, and then %d", held, got)
	}
	if _, err := r.log.trim(keepCount, 1000, false, func() {}); err != nil {
		t.Fatal(err)
	}
	if files := filesLike(t, r, "*.seg"); int64(len(files))*minSegment != r.Bytes() {
		t.Errorf("the spool counts as %d bytes, and has %d files of %d", r.Bytes(), len(files), minSegment)
	}
}

func TestASmallFileOfWhatWasSentGivesWayToALargerOne(t *testing.T) {
	const limit = 16 << 20
	r := open(t, func(c *Config) { c.MaxBytes, c.Retention = limit, time.Hour })
	rnd := rand.New(rand.NewPCG(33, 34))
	data := keepSome(t, r, rnd, 0, 200)
	r.sent.mu.Lock()
	for _, f := range r.sent.files {
		small := min(f.capacity, 100<<10) // one that was a segment
		r.sent.size -= f.capacity - small
		f.capacity = small
	}
	r.sent.mu.Unlock()
	big := make([]byte, 200<<10)
	for range 150 { // 30 MB
		keepOne(t, r, len(data), big)
		data = append(data, big)
	}
	checkKept(t, r.Sent(), data, 20)
}

func TestATornFileOfWhatWasSentEndsBeforeTheTear(t *testing.T) {
	r := open(t, func(c *Config) { c.MaxBytes, c.Retention = 32<<20, time.Hour })
	rnd := rand.New(rand.NewPCG(27, 28))
	keepSome(t, r, rnd, 0, 10)
	kept := r.Sent()
	path := kept[0].file.path
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[kept[6].offset-20] ^= 1                            // in the head of the seventh
	b[kept[3].offset+min(5, kept[3].size-1)] ^= 1        // in the data of the fourth
	if err := os.WriteFile(path, b, 0o600); err != nil { // in place
		t.Fatal(err)
	}
	torn := r.Sent()
	if len(torn) != 6 {
		t.Fatalf("%d batches", len(torn))
	}
	for i := range torn {
		if _, err := torn[i].Data(nil); (err != nil) != (i == 3) {
			t.Fatalf("batch %d: %v", i, err)
		}
	}
}

func FuzzSentFileReadsAnything(f *testing.F) {
	f.Add([]byte(sentMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "1.sent")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if file, err := openSentFile(path); err == nil {
			for _, s := range file.list(file, nil) {
				_, _ = s.Data(nil) // must not panic
			}
		}
		whole := sentFile{path: path, used: int64(len(b)), salt: 1}
		whole.list(&whole, nil)
	})
}
