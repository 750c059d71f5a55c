package aside

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
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
	// Of Gosched it takes some ten thousand: until the runtime's monitor looks.
	const most = 1000
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
		yield() // it reads
		if _, err := w.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		n := 0
		for ; !answered.Load(); n++ {
			yield()
		}
		if n > most {
			t.Errorf("it took %d yields", n)
		}
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
