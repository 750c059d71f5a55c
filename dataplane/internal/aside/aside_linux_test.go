package aside

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func oneCore(t *testing.T) {
	t.Helper()
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

func TestAYieldLetsWhoHasInputGoFirst(t *testing.T) {
	oneCore(t)
	yield, end := NewYield()
	defer end()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	n := 0
	for range 20 {
		var answered atomic.Bool
		waiting := make(chan struct{})
		go func() {
			close(waiting)
			var b [1]byte
			_, _ = r.Read(b[:])
			answered.Store(true)
		}()
		<-waiting
		spin(leastTurn)
		yield() // it reads
		if _, err := w.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		for ; !answered.Load(); n++ {
			spin(30 * time.Microsecond)
			yield()
		}
	}
	// Gosched would take hundreds each time: until the runtime's monitor looks,
	// after 10 ms.
	if n > 1000 {
		t.Errorf("it took %d yields", n)
	}
}

// spin computes for a time.
func spin(d time.Duration) {
	for begin := time.Now(); time.Since(begin) < d; {
	}
}

func TestWorkBesideACoreThatIsFullHasItsShare(t *testing.T) {
	oneCore(t)
	yield, end := NewYield()
	defer end()
	var stop atomic.Bool
	var others sync.WaitGroup
	for range 10 {
		others.Go(func() {
			for !stop.Load() {
				spin(50 * time.Microsecond)
				runtime.Gosched()
			}
		})
	}
	begin := time.Now()
	var worked time.Duration
	for time.Since(begin) < 300*time.Millisecond {
		piece := time.Now()
		spin(5 * time.Microsecond)
		worked += time.Since(piece)
		yield()
	}
	took := time.Since(begin)
	stop.Store(true)
	others.Wait()
	// Turns of always the same length would be 4 %.
	if got := float64(worked) / float64(took); got < 0.08 || got > 0.5 {
		t.Errorf("it worked for %v of %v", worked, took)
	}
}

func TestSyncOnOneCoreDoesWhatSyncDoes(t *testing.T) {
	oneCore(t)
	if shared() == nil {
		t.Fatal("the kernel gives no queue")
	}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			f, err := os.Create(filepath.Join(t.TempDir(), string(rune('a'+i))))
			if err != nil {
				t.Error(err)
				return
			}
			for range 5 {
				if _, err := f.WriteString("content"); err != nil {
					t.Error(err)
				}
				if err := Sync(f); err != nil {
					t.Error(err)
				}
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if err := Sync(f); !errors.Is(err, os.ErrClosed) {
				t.Errorf("a closed file gives %v", err)
			}
		})
	}
	all.Wait()
	folder, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	if err := Sync(folder); err != nil {
		t.Errorf("a folder gives %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if got, want := Sync(r), r.Sync(); got == nil || got.Error() != want.Error() {
		t.Errorf("a pipe gives %v, want %v", got, want)
	}
}
