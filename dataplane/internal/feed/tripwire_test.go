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

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/dataplane/internal/table"
)

var bad = table.Version{Epoch: 1, Revision: 11}

// crashed leaves the note of a process that ended n times in a row over bad.
func crashed(t *testing.T, path string, n int) {
	t.Helper()
	for range n {
		w := openTripwire(path, time.Now())
		w.crashes = min(w.crashes, n-1)
		if err := w.arm(bad); err != nil && w.crashes < maxCrashes {
			t.Fatal(err)
		}
	}
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
		if again := openTripwire(path, time.Now()); again.crashes != 3 {
			t.Errorf("%d crashes in a row, want 3", again.crashes)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if again := openTripwire(path, time.Now()); again.crashes != 0 {
			t.Errorf("the state has held, and there are %d crashes in a row", again.crashes)
		}
		// While states come all the time, the note stays, of the first crash only.
		for range 100 {
			if err := w.arm(bad); err != nil {
				t.Fatal(err)
			}
			w.done()
			time.Sleep(time.Second)
		}
		if again := openTripwire(path, time.Now()); again.crashes != 1 {
			t.Errorf("%d crashes in a row, want 1", again.crashes)
		}
		w.close()
		if again := openTripwire(path, time.Now()); again.crashes != 0 {
			t.Errorf("the process has ended in order, and there are %d crashes in a row", again.crashes)
		}
	})
}

func TestStateFromBeforeTheCrashesSaysNothingAboutThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), noteName)
		crashed(t, path, maxCrashes)
		w := openTripwire(path, time.Now())
		hold := func(revision int64) {
			t.Helper()
			if err := w.arm(table.Version{Epoch: bad.Epoch, Revision: revision}); err != nil {
				t.Fatal(err)
			}
			w.done()
			time.Sleep(settleAfter + time.Second)
			synctest.Wait()
		}
		hold(bad.Revision - 1) // of the file
		hold(bad.Revision - 1)
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
		hold(bad.Revision + 1)
		if again := openTripwire(path, time.Now()); again.crashes != 0 {
			t.Errorf("a later one holds, and there are %d crashes in a row", again.crashes)
		}
		w.close()
	})
}

func TestNoteThatIsDamagedIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), noteName)
	crashed(t, path, maxCrashes)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		b := append([]byte{}, whole...)
		b[i] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if w := openTripwire(path, time.Now()); w.crashes != 0 {
			t.Errorf("byte %d is damaged, and there are %d crashes", i, w.crashes)
		}
	}
	for _, b := range [][]byte{nil, whole[:10], append(whole, 0)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if w := openTripwire(path, time.Now()); w.crashes != 0 {
			t.Errorf("%d bytes are taken for a note", len(b))
		}
	}
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
// variable names, as if a request for it had done that, if the variable is set.
func TestMain(m *testing.M) {
	dir, at, ok := strings.Cut(os.Getenv("AFF_TEST_NODE"), "@")
	if !ok {
		os.Exit(m.Run())
	}
	address, revision, _ := strings.Cut(at, "@")
	live := &table.Live{}
	c, err := New(Config{
		Targets: []string{address}, Node: "n1", Region: "r1", Dir: dir, Live: live, SaveInterval: time.Hour,
		Dial: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
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
	dir := t.TempDir()
	s := state{"/a": "https://x.test/a"}
	if err := writeStateFile(filepath.Join(dir, currentName), "", heldTable(t, s), time.Time{}); err != nil {
		t.Fatal(err)
	}
	c := startControl(t)
	go func() { // a control plane that gives revision 11 to whoever comes
		next := state{"/a": "https://x.test/a"}
		d := next.delta(10, 11, map[string]string{"/b": "https://x.test/b"})
		for {
			select {
			case p := <-c.peers:
				_ = p.stream.Send(d)
			case <-t.Context().Done():
				return
			}
		}
	}()
	for i := range maxCrashes + 1 {
		cmd := exec.Command(os.Args[0])
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
		if over := i == maxCrashes; strings.Contains(log, "serving 11") == over || over && !strings.Contains(log, "serving 10") || strings.Contains(log, "quarantined") != over {
			t.Fatalf("start %d: %s", i+1, log)
		}
	}
}
