package publish

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// What is asked before a yield waits is the truth: input that nobody has read yet.
// The runtime's monitor may have been sooner, and other tests may have left
// something, but not as a rule.
func TestAYieldKnowsWhetherSomeoneWaits(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	timer := os.NewFile(uintptr(fd), "timer")
	defer timer.Close()
	waits := someoneWaits(fd)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	yield, end := newYield()
	defer end()
	const rounds = 200
	quiet, told := 0, 0
	for range rounds {
		began, got := make(chan struct{}), make(chan struct{})
		go func() {
			close(began)
			_, _ = r.Read(make([]byte, 1))
			close(got)
		}()
		<-began
		yield() // it waits
		if !waits() {
			quiet++
		}
		if _, err := w.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if waits() {
			told++
		}
		<-got
	}
	if quiet < rounds*3/4 || told < rounds/2 {
		t.Fatalf("of %d times, nobody was said to wait %d times when nobody did, and someone %d times when someone did", rounds, quiet, told)
	}
}
