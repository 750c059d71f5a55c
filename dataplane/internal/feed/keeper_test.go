package feed

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/dataplane/internal/table"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// keeping runs a keeper of one link until stop gives what it logged.
func keeping(t *testing.T, dir string) (k *keeper, stop func() string) {
	t.Helper()
	value, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
		Domain: "go.example.com", Path: "/a", Destination: "https://store.example/",
	}}})
	if err != nil {
		t.Fatal(err)
	}
	b := table.NewBuilder(1)
	if err := b.Put([]byte("links/go.example.com/a"), value); err != nil {
		t.Fatal(err)
	}
	live := new(table.Live)
	live.Store(b.Build(table.Version{Epoch: 1, Revision: 2}))
	log := new(bytes.Buffer)
	k = newKeeper(dir, time.Second, live, newMetrics(live, nil), slog.New(slog.NewTextHandler(log, nil)))
	k.metrics.confirm()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); k.run(ctx) }()
	return k, func() string { cancel(); <-done; return log.String() }
}

// A snapshot is in no journal, and acknowledged already.
func TestSnapshotIsWrittenAlsoWhereWritingHasToPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, stop := keeping(t, t.TempDir())
		defer stop()
		k.changed(inTime)
		synctest.Wait()
		k.rest = time.Now().Add(2 * touchInterval) // it took long
		a := newApplier(k.live, Guard{})
		wantWritten := func(revision int64) {
			t.Helper()
			synctest.Wait()
			if v := stateVersion(k.current()); v.Revision != revision {
				t.Errorf("the file is of %v, want revision %d", v, revision)
			}
		}
		s := state{"/a": "https://x.test/a"}
		var o outcome
		for _, f := range s.snapshot(10) {
			o = a.take(wire(t, f))
		}
		k.changed(o.write)
		wantWritten(10)

		k.rest = time.Now().Add(2 * touchInterval)
		a.tail = &journal{path: k.journal(), log: k.log, records: make([]record, maxRecords)}
		o = a.take(wire(t, s.delta(10, 11, map[string]string{"/b": "https://x.test/b"})))
		k.changed(o.write) // the journal has no room: that can wait
		time.Sleep(2*touchInterval - time.Second)
		wantWritten(10)
		time.Sleep(2 * time.Second)
		wantWritten(11)
	})
}

// ending is a stream whose node is told to end while its last frame comes.
type ending struct {
	grpc.ClientStream
	ctx    context.Context
	frames [][]byte
	end    func()
}

func (e *ending) SendMsg(any) error { return nil }

func (e *ending) RecvMsg(m any) error {
	switch len(e.frames) {
	case 0:
		<-e.ctx.Done()
		return e.ctx.Err()
	case 1:
		e.end()
	}
	*m.(*rawFrame) = append((*m.(*rawFrame))[:0], e.frames[0]...)
	e.frames = e.frames[1:]
	return nil
}

func TestStateThatComesAsTheNodeEndsIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := state{"/a": "https://x.test/a"}
		e := &ending{}
		for _, f := range append(s.snapshot(10), s.snapshot(12)...) {
			e.frames = append(e.frames, wire(t, f))
		}
		ctx, cancel := context.WithCancel(t.Context())
		e.end = func() {
			cancel()
			synctest.Wait() // what else ends has ended
		}
		client, err := New(Config{
			Targets: []string{"passthrough:///x"}, Node: "n", Region: "r", Boot: 1, Dir: dir, Live: &table.Live{}, Log: slog.New(slog.DiscardHandler),
			Credentials: insecure.NewCredentials(),
			Dial: []grpc.DialOption{grpc.WithStreamInterceptor(
				func(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, _ grpc.Streamer, _ ...grpc.CallOption) (grpc.ClientStream, error) {
					e.ctx = ctx
					return e, nil
				})},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := client.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if v := stateVersion(filepath.Join(dir, currentName)); v.Revision != 12 {
			t.Errorf("the file is of %v, and revision 12 was acknowledged", v)
		}
	})
}

func TestStateFileIsWrittenAgainWhenSomebodyRemovesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, stop := keeping(t, t.TempDir())
		defer stop()
		k.changed(inTime)
		synctest.Wait()
		if err := os.Remove(k.current()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(touchInterval + time.Second)
		synctest.Wait()
		if _, err := readFile(k.current()); err != nil {
			t.Errorf("nothing has changed since, and: %v", err)
		}
	})
}

func TestStateFileIsWrittenAsSoonAsTheDiskTakesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "state")
		if err := os.WriteFile(dir, nil, 0o600); err != nil { // in the way
			t.Fatal(err)
		}
		k, stop := keeping(t, dir)
		k.changed(inTime)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(touchInterval + time.Second)
		synctest.Wait()
		if _, err := readFile(k.current()); errors.Is(err, fs.ErrNotExist) {
			t.Error("it is tried once, and never again while nothing changes")
		} else if err != nil {
			t.Error(err)
		}
		log := stop()
		if n := strings.Count(log, "is not written"); n == 0 || n > 11 {
			t.Errorf("ten minutes are %d lines:\n%s", n, log)
		}
		if !strings.Contains(log, "is written again") {
			t.Errorf("the log does not say that it is mended:\n%s", log)
		}
	})
}

// refusals gives the lines of errors in a log.
func refusals(log string) (lines []string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "level=ERROR") {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestFileThatCannotBeUsedIsRefusedWithOneLineAlsoBesideItsJournal(t *testing.T) {
	old := state{"/old": "https://x.test/old"}
	for name, spoil := range map[string]func([]byte) []byte{
		"torn":           func(b []byte) []byte { return b[:len(b)-5] },
		"in the header":  func(b []byte) []byte { return b[:20] },
		"empty":          func([]byte) []byte { return nil },
		"damaged":        func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"a newer format": func(b []byte) []byte { b[8]++; return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := killed(t, 3)
			current := filepath.Join(dir, currentName)
			b, err := os.ReadFile(current)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(current, spoil(b), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := writeStateFile(filepath.Join(dir, previousName), "", heldTableAt(t, old, 7), time.Time{}); err != nil {
				t.Fatal(err)
			}
			n := startNode(t, dir, nobody)
			<-n.Ready()
			wantHolds(t, n.live, 7, old)
			n.stop()
			if lines := refusals(n.logs.String()); len(lines) != 1 || !strings.Contains(lines[0], "last known good state is not used") {
				t.Errorf("the log says\n%s", strings.Join(lines, ""))
			}
			n = startNode(t, dir, nobody) // it has written a file of its own meanwhile
			<-n.Ready()
			wantHolds(t, n.live, 7, old)
			if lines := refusals(n.logs.String()); len(lines) != 0 {
				t.Errorf("the next start says\n%s", strings.Join(lines, ""))
			}
		})
	}
}

// A node that ends between its new file and the cut of its journal leaves one that
// follows the previous file.
func TestJournalIsUsedWhereItFollowsThePreviousFile(t *testing.T) {
	dir, states := killed(t, 3)
	if err := os.Rename(filepath.Join(dir, currentName), filepath.Join(dir, previousName)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, currentName), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, dir, nobody)
	<-n.Ready()
	wantHolds(t, n.live, 13, states[13])
	n.stop()
	if lines := refusals(n.logs.String()); len(lines) != 1 {
		t.Errorf("the log says\n%s", strings.Join(lines, ""))
	}
}

// What came while the file was written is in no journal, and until the next file a start
// would go back to this one.
func TestAnotherFileComesSoonBehindAJournalThatLacksSomething(t *testing.T) {
	live := new(table.Live)
	k := newKeeper(t.TempDir(), time.Hour, live, newMetrics(live, nil), slog.New(slog.DiscardHandler))
	k.tail = &journal{path: k.journal(), log: k.log}
	for revision, lacks := range []bool{true, false} {
		live.Store(heldTableAt(t, state{"/a": "https://x.test/a"}, int64(revision+10)))
		k.tail.broken = lacks
		k.save()
		if soon := len(k.soon) > 0; soon != lacks || k.tail.broken {
			t.Errorf("where the journal lacks something (%t), another file comes soon: %t", lacks, soon)
		}
		select {
		case <-k.soon:
		default:
		}
	}
}

// What comes while a snapshot is written is in the journal, and the pause is for it, too.
func TestWhatComesWhileASnapshotIsWrittenWaitsForThePause(t *testing.T) {
	for range 20 { // a select takes any of what is ready
		synctest.Test(t, func(t *testing.T) {
			live, k := new(table.Live), (*keeper)(nil)
			k = newKeeper(t.TempDir(), time.Minute, live, newMetrics(live, nil), slog.New(watching{slog.NewTextHandler(io.Discard, nil), func(string) {
				live.Store(heldTableAt(t, state{"/b": "https://x.test/b"}, 12))
				k.changed(inTime)
			}}))
			k.failed = time.Now() // so that the log is told as the file is written
			live.Store(heldTableAt(t, state{"/a": "https://x.test/a"}, 11))
			k.changed(directly)
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { k.run(ctx) })
			synctest.Wait()
			if v := stateVersion(k.current()); v.Revision != 11 || live.Load().Version().Revision != 12 {
				t.Errorf("the file is of revision %d, and %d is live", v.Revision, live.Load().Version().Revision)
			}
			time.Sleep(time.Minute + time.Second)
			synctest.Wait()
			if v := stateVersion(k.current()); v.Revision != 12 {
				t.Errorf("behind the pause, the file is of revision %d", v.Revision)
			}
			cancel()
			running.Wait()
		})
	}
}
