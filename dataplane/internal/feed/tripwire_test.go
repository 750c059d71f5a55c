package feed

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

var bad = table.Version{Epoch: 1, Revision: 11}

var good = table.Version{Epoch: 1, Revision: 10} // of the file

// crashed leaves the note of a process that ended n times in a row over bad.
func crashed(t *testing.T, path string, n int) {
	t.Helper()
	for range n {
		w := openTripwire(path, time.Now())
		if err := w.armFile(good); err != nil {
			t.Fatal(err)
		}
		w.done()
		if err := w.arm(bad); err != nil {
			t.Fatal(err)
		}
		kill(w)
	}
}

// kill ends the process that a tripwire is of.
func kill(w *tripwire) {
	if w.settled != nil {
		w.settled.Stop()
	}
}

// crashes gives how many times in a row a note says that the process has ended over
// a state.
func crashes(path string, over table.Version) int {
	for _, m := range openTripwire(path, time.Now()).marks {
		if m.version == over {
			return m.crashes
		}
	}
	return 0
}

func TestStateThatEndsTheProcessAgainAndAgainIsNotTriedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), noteName)
	for i := range maxCrashes {
		w := openTripwire(path, time.Now())
		if wait, _ := w.quarantine(); wait != 0 {
			t.Fatalf("after %d crashes the node follows no control plane", i)
		}
		if err := w.arm(bad); err != nil {
			t.Fatalf("after %d crashes: %v", i, err)
		}
	}
	w := openTripwire(path, time.Now())
	if err := w.arm(bad); err == nil || !strings.Contains(err.Error(), "revision 11") {
		t.Errorf("it is tried again: %v", err)
	}
	if wait, over := w.quarantine(); wait != minQuarantine || over != bad {
		t.Errorf("the node sits out %v over %v", wait, over)
	}
	if err := w.arm(table.Version{Epoch: 1, Revision: 12}); err != nil {
		t.Errorf("another one is not tried: %v", err)
	}
	if wait, _ := openTripwire(path, time.Now()).quarantine(); wait != 2*minQuarantine {
		t.Errorf("after one more crash the node sits out %v", wait)
	}
	if wait, _ := openTripwire(path, time.Now().Add(2*crashMemory)).quarantine(); wait != 0 {
		t.Error("the note is never forgotten")
	}
}

func TestRowOfCrashesEndsWithAStateThatHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), noteName)
		crashed(t, path, 2)
		w := openTripwire(path, time.Now())
		if err := w.arm(bad); err != nil {
			t.Fatal(err)
		}
		w.done()
		time.Sleep(settleAfter - time.Second)
		if n := crashes(path, bad); n != 3 {
			t.Errorf("%d crashes in a row, want 3", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if marks := openTripwire(path, time.Now()).marks; len(marks) != 0 {
			t.Errorf("the state has held, and there are %d crashes in a row", marks[0].crashes)
		}
		// While states come all the time, the note stays, of the first crash only.
		for range 100 {
			if err := w.arm(bad); err != nil {
				t.Fatal(err)
			}
			w.done()
			time.Sleep(time.Second)
		}
		if n := crashes(path, bad); n != 1 {
			t.Errorf("%d crashes in a row, want 1", n)
		}
		w.close()
		if marks := openTripwire(path, time.Now()).marks; len(marks) != 0 {
			t.Errorf("the process has ended in order, and there are %d crashes in a row", marks[0].crashes)
		}
	})
}

func TestStateFromBeforeTheCrashesSaysNothingAboutThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), noteName)
		crashed(t, path, maxCrashes)
		w := openTripwire(path, time.Now())
		hold := func(arm func(table.Version) error, v table.Version) {
			t.Helper()
			if err := arm(v); err != nil {
				t.Fatal(err)
			}
			w.done()
			time.Sleep(2*settleAfter + time.Second)
			synctest.Wait()
		}
		hold(w.armFile, good)
		hold(w.arm, good) // another replica is not as far
		if err := w.arm(bad); err == nil {
			t.Error("it is tried again in the same process")
		}
		if again := openTripwire(path, time.Now()); again.arm(bad) == nil {
			t.Error("it is tried again in the next process")
		}
		time.Sleep(crashMemory)
		if err := w.arm(bad); err != nil {
			t.Errorf("it is never tried again: %v", err)
		}
		w.done()
		hold(w.arm, table.Version{Epoch: bad.Epoch, Revision: bad.Revision + 1})
		if marks := openTripwire(path, time.Now()).marks; len(marks) != 0 {
			t.Errorf("a later one holds, and there are %d crashes in a row", marks[0].crashes)
		}
		w.close()
	})
}

// start is a process that begins with the good state of its file and is killed
// before that has held.
func start(t *testing.T, path string, wantGood bool) {
	t.Helper()
	w := openTripwire(path, time.Now())
	if err := w.armFile(good); (err == nil) != wantGood {
		t.Fatalf("the state of the file: %v", err)
	}
	w.done()
	if err := w.arm(bad); err == nil {
		t.Fatal("the state that has ended the process is tried again")
	}
	kill(w)
}

func TestNodeThatIsKilledJustAfterItsStartDoesNotTakeItsFileForWhatEndsIt(t *testing.T) {
	for _, before := range []int{maxCrashes, maxCrashes - 1} {
		path := filepath.Join(t.TempDir(), noteName)
		crashed(t, path, before)
		w := openTripwire(path, time.Now())
		if err := w.armFile(good); err != nil {
			t.Fatal(err)
		}
		w.done()
		kill(w)
		if n, of := crashes(path, bad), crashes(path, good); n != before || of != 1 {
			t.Fatalf("after %d crashes and a kill, the note says %d and, of the state of the file, %d", before, n, of)
		}
		crashed(t, path, maxCrashes-before)
		for range maxCrashes - 1 {
			start(t, path, true)
		}
		start(t, path, false) // nor is it tried for ever
		if wait, over := openTripwire(path, time.Now()).quarantine(); wait != minQuarantine || over != bad {
			t.Errorf("the node sits out %v over %v", wait, over)
		}
	}
}

// A replica that is not as far gives the node what is good.
func TestNodeThatIsKilledOverAnEarlierStateKeepsTheOneThatEndsIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), noteName)
	crashed(t, path, maxCrashes)
	w := openTripwire(path, time.Now())
	if err := w.arm(good); err != nil {
		t.Fatal(err)
	}
	w.done()
	kill(w)
	start(t, path, true)
	if n, of := crashes(path, bad), crashes(path, good); n != maxCrashes || of != 2 {
		t.Errorf("the note says %d, and of the state before, %d", n, of)
	}
	w = openTripwire(path, time.Now())
	next := table.Version{Epoch: bad.Epoch, Revision: bad.Revision + 1}
	if err := w.arm(next); err != nil {
		t.Fatal(err)
	}
	if marks := openTripwire(path, time.Now()).marks; len(marks) != 1 || marks[0].version != next || marks[0].crashes != maxCrashes+1 {
		t.Errorf("behind both, the note says %v", marks)
	}
}

func TestFilesThatEndTheProcessAreLeftOneAfterTheOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), noteName)
	files := []table.Version{bad, good, {Epoch: 1, Revision: 9}}
	for i := range files {
		for n := range maxCrashes {
			w := openTripwire(path, time.Now())
			for _, refused := range files[:i] {
				if w.armFile(refused) == nil {
					t.Fatalf("%v is tried again", refused)
				}
			}
			if err := w.armFile(files[i]); err != nil {
				t.Fatalf("start %d with %v: %v", n+1, files[i], err)
			}
			w.done()
			kill(w)
		}
	}
}

func TestStateThatWasSentGoesOnToCountWhenItIsReadFromTheJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), noteName)
	crashed(t, path, 1)
	for n := 2; n <= maxCrashes; n++ {
		w := openTripwire(path, time.Now())
		for _, v := range []table.Version{good, bad} { // the file, and what the journal leads to
			if err := w.armFile(v); err != nil {
				t.Fatal(err)
			}
		}
		w.done()
		kill(w)
		if got := crashes(path, bad); got != n {
			t.Fatalf("%d crashes in a row, want %d", got, n)
		}
	}
	if w := openTripwire(path, time.Now()); w.armFile(bad) == nil || w.arm(bad) == nil {
		t.Error("it is tried again")
	}
}

func TestStateOfTheFileSaysNothingAboutANewEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), noteName)
		crashed(t, path, maxCrashes)
		w := openTripwire(path, time.Now())
		if err := w.armFile(table.Version{Epoch: 2, Revision: 500}); err != nil {
			t.Fatal(err)
		}
		w.done()
		time.Sleep(2 * settleAfter)
		synctest.Wait()
		if w.arm(bad) == nil {
			t.Error("it is tried again because a state of another epoch has held")
		}
		if err := w.arm(table.Version{Epoch: 3, Revision: 1}); err != nil { // an operator has begun it
			t.Fatal(err)
		}
		w.done()
		time.Sleep(2 * settleAfter)
		synctest.Wait()
		if marks := openTripwire(path, time.Now()).marks; len(marks) != 0 {
			t.Errorf("a state of a new epoch holds, and the note says %v", marks)
		}
	})
}

func TestStateHasItsOwnTimeToHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), noteName)
		crashed(t, path, 2)
		w := openTripwire(path, time.Now())
		if err := w.armFile(good); err != nil {
			t.Fatal(err)
		}
		w.done()
		time.Sleep(settleAfter - time.Second) // the control plane took long to answer
		if err := w.arm(bad); err != nil {
			t.Fatal(err)
		}
		w.done()
		time.Sleep(2 * time.Second) // the file's state has held, and it has not yet
		synctest.Wait()
		if n := crashes(path, bad); n != 3 {
			t.Errorf("%d crashes in a row, want 3", n)
		}
		time.Sleep(settleAfter)
		synctest.Wait()
		if n := crashes(path, bad); n != 0 {
			t.Errorf("it has held, and there are %d crashes in a row", n)
		}
		w.close()
	})
}

func TestNoteThatCannotBeWrittenStopsNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := openTripwire(filepath.Join(file, noteName), time.Now())
	if err := w.arm(bad); err != nil {
		t.Error(err)
	}
	w.done()
	w.close()
}

// TestMain runs a node that ends as soon as it serves the version that the
// variable names, as if a request for it had done that, if the variable is set. It
// may begin with the state of another place.
func TestMain(m *testing.M) {
	dir, at, ok := strings.Cut(os.Getenv("AFF_TEST_NODE"), "@")
	if !ok {
		os.Exit(m.Run())
	}
	address, revision, _ := strings.Cut(at, "@")
	live := &table.Live{}
	c, err := New(Config{
		Targets: []string{address}, Node: "n1", Region: "r1", Dir: dir, Live: live, SaveInterval: time.Hour,
		Bootstrap:   os.Getenv("AFF_TEST_BOOTSTRAP"),
		Credentials: insecure.NewCredentials(),
	})
	if err != nil {
		panic(err)
	}
	go func() {
		for last := int64(-1); ; time.Sleep(time.Millisecond) {
			quarantined := c.metrics.quarantined.Load()
			v := heldVersion(live).Revision // of that moment, or later
			if v != last {
				last = v
				fmt.Println("serving", v)
			}
			if fmt.Sprint(v) == revision {
				p, _ := os.FindProcess(os.Getpid())
				_ = p.Kill()
			}
			if quarantined {
				fmt.Println("quarantined")
				select {} // until the test ends it
			}
		}
	}()
	_ = c.Run(context.Background())
}

func TestCrashLoopEndsWithThePreviousState(t *testing.T) {
	next := state{"/a": "https://x.test/a"}
	delta := next.delta(10, 11, map[string]string{"/b": "https://x.test/b"})
	t.Run("behind a delta", func(t *testing.T) { wantCrashLoopEnds(t, delta) })
	t.Run("behind a snapshot", func(t *testing.T) { wantCrashLoopEnds(t, next.snapshot(11)...) })
}

// wantCrashLoopEnds has a control plane give revision 11 to whoever comes, over which
// each process ends.
func wantCrashLoopEnds(t *testing.T, frames ...*feedv1.SubscribeResponse) {
	t.Helper()
	dir := t.TempDir()
	s := state{"/a": "https://x.test/a"}
	if err := writeStateFile(filepath.Join(dir, currentName), "", heldTable(t, s), time.Time{}); err != nil {
		t.Fatal(err)
	}
	c := startControl(t)
	go func() {
		for {
			select {
			case p := <-c.peers:
				for _, f := range frames {
					_ = p.stream.Send(f)
				}
			case <-t.Context().Done():
				return
			}
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // ends what would never end
	defer cancel()
	for i := range maxCrashes + 3 { // the last ones are killed just after their start
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), "AFF_TEST_NODE="+dir+"@"+c.address+"@11")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var said []string
		for lines := bufio.NewScanner(out); lines.Scan(); {
			said = append(said, lines.Text())
			if lines.Text() == "quarantined" {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		log := strings.Join(said, ", ")
		if over := i >= maxCrashes; strings.Contains(log, "serving 11") == over || over && !strings.Contains(log, "serving 10") || strings.Contains(log, "quarantined") != over {
			t.Fatalf("start %d: %s", i+1, log)
		}
	}
}
