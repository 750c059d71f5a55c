package publish

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// What is asked before a yield waits is the truth: input that nobody has read yet.
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
	for range 100 {
		began, got := make(chan struct{}), make(chan struct{})
		go func() {
			close(began)
			_, _ = r.Read(make([]byte, 1))
			close(got)
		}()
		<-began
		for range 100 { // until what other tests have left is quiet
			yield()
		}
		if waits() {
			t.Fatal("someone is said to wait, and nobody does")
		}
		if _, err := w.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if !waits() {
			t.Fatal("nobody is said to wait, and someone does")
		}
		<-got
	}
}
