package click

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestMain lets the test binary be the process that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("CLICK_CRASH_DIR"); dir != "" {
		crashChild(dir)
		return
	}
	if dir := os.Getenv("CLICK_STEP_DIR"); dir != "" {
		if err := stepChild(dir, os.Getenv("CLICK_STEP_AT")); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// crashChild records under load until it is killed. Each writer tells the
// number of a click once Record has returned.
func crashChild(dir string) {
	boot, _ := strconv.ParseUint(os.Getenv("CLICK_CRASH_BOOT"), 10, 64)
	r, err := Open(Config{Dir: dir, Node: "victim", Boot: boot, SegmentBytes: minSegment, MaxBytes: 256 << 20})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var out sync.Mutex
	for w := range 4 {
		go func() {
			rnd := rand.New(rand.NewPCG(boot, uint64(w)))
			for i := int64(1); ; i++ {
				for r.current.Load() == nil || r.Short() {
					time.Sleep(time.Millisecond) // as redirects do; a full spool is another test's
				}
				before := r.log.boot.dropped[SpoolFull].Load()
				agent := randomBytes(rnd, 300)
				r.Record(&Event{Time: int64(w), Revision: i, UserAgent: agent})
				if r.log.boot.dropped[SpoolFull].Load() != before {
					continue // may be this one
				}
				if i%8 == 0 {
					out.Lock()
					fmt.Printf("%d %d\n", w, i)
					out.Unlock()
				}
			}
		}()
	}
	// A reader that acknowledges what it has brought to where it survives, as
	// the publisher does. What is acknowledged is wiped and used again.
	file, err := os.Create(filepath.Join(dir, "consumed"))
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	stream := bufio.NewWriterSize(file, 1<<20)
	cursor := r.Log().Cursor(0)
	var c Click
	for {
		if ok, err := cursor.Next(&c); err == nil && ok {
			fmt.Fprintf(stream, "%d %d %d\n", c.Sequence, c.Time, c.Revision)
		} else if stream.Buffered() == 0 || stream.Flush() != nil {
			time.Sleep(100 * time.Microsecond)
		} else {
			r.Log().Acknowledge(c.Sequence)
		}
		if stream.Buffered() > 1<<19 && stream.Flush() == nil {
			r.Log().Acknowledge(c.Sequence)
		}
	}
}

// consumed is what the reader of a process that was killed had brought away.
func consumed(t *testing.T, dir string) (clicks []Click) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "consumed"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var c Click
		if _, err := fmt.Sscanf(line, "%d %d %d\n", &c.Sequence, &c.Time, &c.Revision); err != nil || !strings.HasSuffix(line, "\n") {
			break // torn
		}
		clicks = append(clicks, c)
	}
	return clicks
}

func TestEveryClickBeforeSIGKILLIsRecoveredInOrder(t *testing.T) {
	rounds := 5
	if testing.Short() {
		rounds = 1
	}
	for round := range rounds {
		dir := t.TempDir()
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), "CLICK_CRASH_DIR="+dir, fmt.Sprintf("CLICK_CRASH_BOOT=%d", round+1))
		pipe, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		var told [4]int64
		var lines atomic.Int64
		ended := make(chan error, 1)
		go func() {
			in := bufio.NewReader(pipe)
			for {
				line, err := in.ReadString('\n')
				if err == io.EOF {
					ended <- nil
					return
				}
				var w int
				var i int64
				if _, err := fmt.Sscanf(line, "%d %d\n", &w, &i); err != nil {
					ended <- fmt.Errorf("the child says %q", line)
					return
				}
				told[w] = max(told[w], i)
				lines.Add(1)
			}
		}()
		// Killed at a moment of no meaning: after so many lines.
		for deadline := time.Now().Add(30 * time.Second); lines.Load() < int64(500+997*round) && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		err = <-ended
		_ = child.Wait() // killed
		if err != nil {
			t.Fatal(err)
		}

		r := open(t, func(c *Config) { c.Dir, c.MaxBytes, c.Retention = dir, 512<<20, time.Hour })
		if len(r.Warnings()) > 0 || len(r.Earlier()) != 1 {
			t.Fatalf("%d logs, %v", len(r.Earlier()), r.Warnings())
		}
		l := r.Earlier()[0]
		next := uint64(1)
		var high [4]int64
		clicks := consumed(t, dir)
		if uint64(len(clicks)) < l.Acknowledged() {
			t.Fatalf("%d clicks are acknowledged, %d were consumed", l.Acknowledged(), len(clicks))
		}
		for _, c := range append(clicks[:l.Acknowledged()], readAll(t, l, l.Acknowledged())...) {
			if c.Sequence != next {
				t.Fatalf("sequence %d, want %d", c.Sequence, next)
			}
			next = c.Sequence + 1
			if c.Revision <= high[c.Time] {
				t.Fatalf("writer %d: click %d after %d", c.Time, c.Revision, high[c.Time])
			}
			if c.Revision != high[c.Time]+1 && l.boot.dropped[SpoolFull].Load() == 0 {
				t.Fatalf("writer %d: click %d after %d", c.Time, c.Revision, high[c.Time])
			}
			high[c.Time] = c.Revision
		}
		for w := range told {
			if high[w] < told[w] {
				t.Fatalf("writer %d had recorded %d, and %d is the last that was recovered", w, told[w], high[w])
			}
		}
		cursor := l.Cursor(l.Acknowledged())
		for c := new(Click); ; {
			if ok, _ := cursor.Next(c); !ok {
				break
			}
		}
		if account := cursor.Ledger(); account.Dropped[Corrupt] != 0 || account.Recorded != next-1 {
			t.Fatalf("%+v, and the last sequence is %d", account, next-1)
		}
	}
}

// image is the folder of a boot that was left without a clean end.
func image(t *testing.T, clicks int) (dir string, segment []byte, ends []int) {
	t.Helper()
	dir = t.TempDir()
	r, err := Open(Config{Dir: dir, Node: "n", Boot: 5, SegmentBytes: minSegment, MaxBytes: 8 << 20, Retention: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for i := range clicks {
		r.Record(&Event{Time: int64(i + 1), UserAgent: randomBytes(rnd, 40)})
		_, offset, _ := r.current.Load().begun()
		ends = append(ends, int(offset))
	}
	segment = bytes.Clone(r.current.Load().bytes())
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := openBoot(filepath.Join(dir, "0000000000000005"))
	if err != nil {
		t.Fatal(err)
	}
	b.ended.Store(0)
	if err := b.close(false); err != nil {
		t.Fatal(err)
	}
	return dir, segment, ends
}

// recovered writes a segment into the image and gives what is recovered.
func recovered(t *testing.T, dir string, segment []byte) ([]Click, Ledger) {
	t.Helper()
	path := filepath.Join(dir, "0000000000000005", "000000000001.seg")
	if err := os.WriteFile(path, segment, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := openBoot(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer b.close(false)
	l := &Log{boot: b, wake: func() {}, recovered: true}
	for _, w := range l.recover() {
		t.Fatal(w)
	}
	all := readAll(t, l, 0)
	cursor := l.Cursor(0)
	defer cursor.Close()
	for c := new(Click); ; {
		if ok, _ := cursor.Next(c); !ok {
			return all, cursor.Ledger()
		}
	}
}

func TestATornTailIsCutAtEveryOffset(t *testing.T) {
	const clicks = 8
	dir, segment, ends := image(t, clicks)
	for cut := ends[clicks-4]; cut <= ends[clicks-1]; cut++ {
		whole := 0
		for whole < clicks && ends[whole] <= cut {
			whole++
		}
		torn := bytes.Clone(segment)
		clear(torn[cut:])
		for name, b := range map[string][]byte{"zeros": torn, "short": segment[:cut]} {
			got, account := recovered(t, dir, b)
			// A record may end in zeros of its own.
			lucky := name == "zeros" && len(got) == whole+1 && bytes.Equal(torn[:ends[whole]], segment[:ends[whole]])
			if len(got) != whole && !lucky {
				t.Fatalf("%s from %d: %d clicks, want %d", name, cut, len(got), whole)
			}
			for i, c := range got {
				if c.Sequence != uint64(i+1) || c.Time != int64(i+1) {
					t.Fatalf("%s from %d: click %d is %d of %d", name, cut, i, c.Sequence, c.Time)
				}
			}
			if account.Recorded != uint64(len(got)) || account.Answered != account.Recorded+account.Dropped[Corrupt] {
				t.Fatalf("%s from %d: %+v", name, cut, account)
			}
			if start := append([]int{segmentHead}, ends...)[len(got)]; cut >= start+8 && name == "zeros" && len(got) < clicks && account.Dropped[Corrupt] != 1 {
				t.Fatalf("%s from %d: the torn click is not counted: %+v", name, cut, account)
			}
		}
	}
}

func TestADamagedClickIsAGapAndAPlaceNeverFilledIsNone(t *testing.T) {
	const clicks = 10
	dir, segment, ends := image(t, clicks)
	damaged := bytes.Clone(segment)
	damaged[ends[3]+20] ^= 1 // click 5
	got, account := recovered(t, dir, damaged)
	if len(got) != 9 || got[4].Sequence != 6 || got[4].Time != 6 {
		t.Fatalf("damaged: %d clicks, the fifth is %+v", len(got), got[4])
	}
	if account.Answered != 10 || account.Recorded != 9 || account.Dropped[Corrupt] != 1 {
		t.Fatalf("damaged: %+v", account)
	}
	unfilled := bytes.Clone(segment)
	clear(unfilled[ends[3] : ends[3]+8]) // click 5 has no head: it was being written
	got, account = recovered(t, dir, unfilled)
	if len(got) != 9 || got[4].Sequence != 5 || got[4].Time != 6 || got[8].Sequence != 9 {
		t.Fatalf("unfilled: %d clicks, the fifth is %+v", len(got), got[4])
	}
	if account.Answered != 9 || account.Recorded != 9 || account.Lost() != 0 {
		t.Fatalf("unfilled: %+v", account)
	}
}

func TestNumbersStayTheSameWhenRecoveryIsInterrupted(t *testing.T) {
	dir, segment, ends := image(t, 10)
	clear(segment[ends[3] : ends[3]+8]) // click 5 was being written
	b, err := openBoot(filepath.Join(dir, "0000000000000005"))
	if err != nil {
		t.Fatal(err)
	}
	b.acknowledged.Store(7) // by the process that recovered it first
	if err := b.close(false); err != nil {
		t.Fatal(err)
	}
	got, _ := recovered(t, dir, segment)
	if len(got) != 9 || got[7].Sequence != 8 || got[7].Time != 9 {
		t.Fatalf("%d clicks, the eighth is %+v", len(got), got[7])
	}
}

func TestASequenceThatWasReadIsNeverGivenToAnotherClick(t *testing.T) {
	dir, segment, ends := image(t, 10)
	path := filepath.Join(dir, "0000000000000005")
	b, err := openBoot(path)
	if err != nil {
		t.Fatal(err)
	}
	b.raiseCut(7)
	if err := b.close(false); err != nil {
		t.Fatal(err)
	}
	lost := bytes.Clone(segment)
	clear(lost[ends[3]:ends[4]]) // as if a page had not reached the disk
	got, account := recovered(t, dir, lost)
	if len(got) != 9 || got[4].Sequence != 6 || account.Dropped[Corrupt] != 1 || account.Recorded != 9 {
		t.Fatalf("%d clicks, %+v", len(got), account)
	}
	clear(lost[ends[3]:]) // everything from click 5 on
	got, account = recovered(t, dir, lost)
	if len(got) != 4 || account.Recorded != 4 || account.Dropped[Corrupt] != 3 {
		t.Fatalf("%d clicks, %+v", len(got), account)
	}
}

func FuzzRecoverReadsAnything(f *testing.F) {
	f.Add([]byte{}, uint16(0))
	f.Add(bytes.Repeat([]byte{0x48, 0, 0, 0}, 40), uint16(64))
	f.Fuzz(func(t *testing.T, damage []byte, at uint16) {
		dir, segment, ends := image(t, 20)
		segment = segment[:ends[19]+64]
		copy(segment[segmentHead+int(at)%(len(segment)-segmentHead):], damage)
		got, account := recovered(t, dir, segment)
		last := uint64(0)
		for _, c := range got {
			if c.Sequence <= last {
				t.Fatalf("sequence %d after %d", c.Sequence, last)
			}
			last = c.Sequence
		}
		if account.Recorded != uint64(len(got)) {
			t.Fatalf("%+v, and %d clicks", account, len(got))
		}
	})
}

func FuzzReadRecord(f *testing.F) {
	f.Add([]byte(strings.Repeat("\x01", 100)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Click
		if _, ok := c.read(b); ok && len(c.Link)+len(c.Path)+len(c.UserAgent)+fixedBytes > len(b) {
			t.Fatal("more bytes than there are")
		}
	})
}
