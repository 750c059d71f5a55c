package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/affleet/affleet/proto/link"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// start runs a log until the test's bubble ends.
func start(t *testing.T, src Source, cfg Config) *Log {
	t.Helper()
	cfg.Logger = quiet
	l := New(src, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	return l
}

// next is Next for a node, applied.
func next(t *testing.T, l *Log, n *replicaNode) *Frame {
	t.Helper()
	f, err := l.Next(t.Context(), n.cursor)
	if err != nil {
		t.Fatalf("next from %v: %v", n.held, err)
	}
	if f != nil {
		n.apply(t, f)
	}
	return f
}

func TestEveryCursorLeadsToTheStateOfTheSource(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runModel(t, seed) })
		})
	}
}

// runModel writes, breaks, compacts and resumes at random, and compares every
// state that a node reaches with the source's at that revision.
func runModel(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	src := newScript()
	cfg := Config{
		LogBytes: int64(1) << (9 + r.IntN(10)), ChunkBytes: 200, MaxDelta: int64(1) << (9 + r.IntN(8)),
		Guard: Guard{Floor: int64(5 + r.IntN(30)), Window: time.Duration(1+r.IntN(100)) * time.Second},
	}
	l := start(t, src, cfg)
	nodes := make([]*replicaNode, 6)
	for i := range nodes {
		nodes[i] = &replicaNode{entries: map[string]string{}}
	}
	for range 600 {
		switch n := nodes[r.IntN(len(nodes))]; r.IntN(13) {
		case 12:
			if h := l.View().Hold(); h != nil && r.IntN(2) == 0 {
				src.free(h.Revision)
			}
		case 0:
			src.set(func() { src.broken = true })
		case 1:
			src.set(func() { src.broken = false })
		case 2:
			src.set(func() { src.compacted = src.revision - int64(r.IntN(5)) })
		case 3:
			*n = replicaNode{entries: map[string]string{}}
		case 4:
			resume(t, l, n, r)
		case 5, 6, 7:
			next(t, l, n)
		case 8:
			time.Sleep(10 * time.Second) // whatever is broken is tried again
		default:
			changes := map[string]string{}
			for range 1 + r.IntN(4) {
				key := fmt.Sprintf("links/a/%d", r.IntN(40))
				changes[key] = ""
				if r.IntN(3) > 0 {
					changes[key] = fmt.Sprintf("value %d %0*d", r.IntN(3), r.IntN(300), 0)
				}
			}
			src.write(changes)
		}
		synctest.Wait()
		for _, n := range nodes {
			compare(t, src, n)
		}
	}
	src.set(func() { src.broken = false })
	time.Sleep(time.Minute)
	src.free(src.revision)
	synctest.Wait()
	for _, n := range nodes {
		for next(t, l, n) != nil {
			compare(t, src, n)
		}
		if !maps.Equal(n.entries, src.state) {
			t.Fatalf("a node ends with %v, the source with %v", n.entries, src.state)
		}
		if !l.View().Serves(n.held, src.revision) {
			t.Fatalf("a node at %v is said not to serve %d", n.held, src.revision)
		}
	}
}

// compare compares a node with the source at its revision.
func compare(t *testing.T, src *script, n *replicaNode) {
	t.Helper()
	if n.held.Epoch == 0 {
		return
	}
	if want := src.states[n.held.Revision]; !maps.Equal(n.entries, want) {
		t.Fatalf("at revision %d a node holds %v, the source held %v", n.held.Revision, n.entries, want)
	}
}

// resume is a reconnect, sometimes with a hash that is wrong.
func resume(t *testing.T, l *Log, n *replicaNode, r *rand.Rand) {
	t.Helper()
	hash := n.hash()
	wrong := n.held.Epoch != 0 && r.IntN(4) == 0
	if wrong {
		hash = hash.Add(link.SetHash{Lo: 1})
	}
	c, err := l.Resume(n.held, hash)
	if err != nil {
		t.Fatalf("resume at %v: %v", n.held, err)
	}
	n.cursor = c
	if f := next(t, l, n); wrong && (f == nil || f.Kind != Snapshot) {
		t.Fatalf("a node with a wrong hash was sent %+v", f)
	}
}

func TestOneMissingRevisionIsTheSameBytesForEveryStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		l := start(t, src, Config{})
		a, b := &replicaNode{entries: map[string]string{}}, &replicaNode{entries: map[string]string{}}
		next(t, l, a)
		next(t, l, b)
		src.write(map[string]string{"links/a/x": "1"})
		synctest.Wait()
		fa, fb := next(t, l, a), next(t, l, b)
		if fa.Kind != Delta || &fa.Messages[0][0] != &fb.Messages[0][0] {
			t.Fatal("two streams were sent different bytes")
		}
		if allocs := testing.AllocsPerRun(100, func() { _, _ = l.Next(t.Context(), Cursor{held: Version{7, 1}, at: 1}) }); allocs > 0 {
			t.Errorf("Next of a shared frame allocates %v times", allocs)
		}
	})
}

func TestResumeSendsOnlyWhatWasMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		for i := range 1000 {
			src.write(map[string]string{fmt.Sprintf("links/a/%d", i): fmt.Sprintf("%0100d", i)})
		}
		l := start(t, src, Config{})
		n := &replicaNode{entries: map[string]string{}}
		next(t, l, n)
		for i := range 10 {
			src.write(map[string]string{"links/a/5": fmt.Sprint(i), "links/a/new": fmt.Sprint(i)})
		}
		src.write(map[string]string{"links/a/new": ""})
		synctest.Wait()
		c, err := l.Resume(n.held, n.hash())
		if err != nil {
			t.Fatal(err)
		}
		n.cursor = c
		f := next(t, l, n)
		if f.Kind != Delta || f.Bytes > 200 {
			t.Fatalf("11 changes of 2 keys were sent as a %v of %d bytes", f.Kind, f.Bytes)
		}
		if next(t, l, n) != nil {
			t.Fatal("there was more to send")
		}
	})
}

// A take-down waits for the message that is being sent, over whatever line.
func TestWhatANodeHasMissedComesInDeltasOfAFewMegabytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		const mega = 1 << 20
		r := rand.NewChaCha8([32]byte{})
		noise := func() string { // so that a snapshot is no smaller
			b := make([]byte, mega)
			_, _ = r.Read(b) // never fails
			return string(b)
		}
		for i := range 10 {
			src.write(map[string]string{fmt.Sprintf("links/a/%d", i): noise()})
		}
		l := start(t, src, Config{})
		n := &replicaNode{entries: map[string]string{}}
		next(t, l, n)
		for i := range 10 {
			src.write(map[string]string{fmt.Sprintf("links/b/%d", i): noise()})
		}
		large := map[string]string{}
		for i := range 8 {
			large[fmt.Sprintf("links/c/%d", i)] = noise()
		}
		src.write(large) // is not split
		src.write(map[string]string{"links/d": "d"})
		synctest.Wait()
		var sizes []int64
		for f := next(t, l, n); f != nil; f = next(t, l, n) {
			if f.Kind != Delta {
				t.Fatalf("a %v", f.Kind)
			}
			sizes = append(sizes, f.Bytes/mega)
		}
		if want := []int64{3, 3, 3, 1, 8, 0}; !slices.Equal(sizes, want) {
			t.Errorf("deltas have %v megabytes, want %v", sizes, want)
		}
		if !maps.Equal(n.entries, src.state) {
			t.Error("they do not lead to the state of the source")
		}
	})
}

func TestCompactionGivesADifferenceWithDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(map[string]string{"links/a/kept": "1", "links/a/gone": "1"})
		l := start(t, src, Config{})
		n := &replicaNode{entries: map[string]string{}}
		next(t, l, n)
		src.set(func() { src.broken = true })
		synctest.Wait()
		src.write(map[string]string{"links/a/gone": ""})
		src.write(map[string]string{"links/a/new": "1"})
		src.set(func() { src.broken, src.compacted = false, src.revision })
		time.Sleep(time.Minute)
		f := next(t, l, n)
		if f == nil || f.Kind != Delta {
			t.Fatalf("after a compaction a node was sent %+v", f)
		}
		if want := map[string]string{"links/a/kept": "1", "links/a/new": "1"}; !maps.Equal(n.entries, want) {
			t.Fatalf("the node holds %v", n.entries)
		}
		if src.loads != 2 {
			t.Errorf("everything was read %d times", src.loads)
		}
		if n := l.metrics.failures.Load(); n == 0 || !l.metrics.following.Load() {
			t.Errorf("%d failures, and followed: %v", n, l.metrics.following.Load())
		}
	})
}

func TestRestoredSourceWithALowerRevisionIsNotServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(map[string]string{"links/a/x": "1"})
		src.write(map[string]string{"links/a/x": "2"})
		l := start(t, src, Config{})
		head := l.Head()
		src.set(func() {
			src.revision, src.history = 2, nil
			src.state = map[string]string{"links/a/x": "1"}
			src.compacted = 100
		})
		time.Sleep(time.Minute)
		if l.Head() != head {
			t.Fatalf("the head went from %v to %v", head, l.Head())
		}
		if l.metrics.failures.Load() == 0 {
			t.Error("nothing was counted")
		}
	})
}

func TestWatchThatStaysAtALowerRevisionIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(map[string]string{"links/a/x": "1"})
		src.write(map[string]string{"links/a/x": "2"})
		l := start(t, src, Config{})
		src.set(func() { src.progress = src.revision })
		synctest.Wait()
		if n := l.metrics.failures.Load(); n != 0 {
			t.Fatalf("%d failures at the newest revision", n)
		}
		for range 2 { // a member that is behind for a moment
			src.set(func() { src.progress = src.revision - 1 })
			synctest.Wait()
		}
		if n := l.metrics.failures.Load(); n != 0 {
			t.Fatalf("%d failures because of a moment", n)
		}
		time.Sleep(time.Minute)
		src.set(func() { src.progress = src.revision - 1 })
		synctest.Wait()
		if l.metrics.failures.Load() != 1 || l.metrics.following.Load() {
			t.Error("a store that went back is followed as if nothing were wrong")
		}
		src.write(map[string]string{"links/a/x": "3"})
		time.Sleep(time.Minute)
		if l.Head().Revision != src.revision {
			t.Error("a store that has caught up is not followed")
		}
	})
}

// onRecord is a slog.Handler that calls itself with each message.
type onRecord func(message string)

func (f onRecord) Enabled(context.Context, slog.Level) bool      { return true }
func (f onRecord) Handle(_ context.Context, r slog.Record) error { f(r.Message); return nil }
func (f onRecord) WithAttrs([]slog.Attr) slog.Handler            { return f }
func (f onRecord) WithGroup(string) slog.Handler                 { return f }

func TestLogThatIsReadyIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(map[string]string{"links/a/x": "1"})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var l *Log
		var followed []bool // at the first moment at which it is ready
		l = New(src, Config{Logger: slog.New(onRecord(func(message string) {
			if message == "state is read" {
				<-l.Ready()
				followed = append(followed, l.Following())
			}
		}))})
		go func() { _ = l.Run(ctx) }()
		synctest.Wait()
		if len(followed) != 1 || !followed[0] {
			t.Fatalf("a log that is ready was followed: %v", followed)
		}
	})
}

func TestLongOutageIsLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(map[string]string{"links/a/x": "1"})
		var lines bytes.Buffer
		l := New(src, Config{Logger: slog.New(slog.NewTextHandler(&lines, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		synctest.Wait()
		src.set(func() { src.broken = true })
		time.Sleep(10*time.Minute + time.Second)
		src.set(func() { src.broken = false })
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(lines.String(), "is not followed"); n < 9 || n > 12 {
			t.Errorf("ten minutes are %d lines:\n%s", n, &lines)
		}
		if n := strings.Count(lines.String(), "is followed"); n != 2 {
			t.Errorf("it is followed %d times:\n%s", n, &lines)
		}
	})
}

func TestAnotherEpochBeginsAnewAndSendsOldNodesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(map[string]string{"links/a/x": "1"})
		l := start(t, src, Config{})
		n := &replicaNode{entries: map[string]string{}}
		next(t, l, n)
		src.set(func() { src.epoch, src.broken = 8, true })
		synctest.Wait()
		src.set(func() { src.broken = false })
		time.Sleep(time.Minute)
		if got := l.Head(); got.Epoch != 8 {
			t.Fatalf("the head is %v", got)
		}
		if _, err := l.Next(t.Context(), n.cursor); err == nil {
			t.Error("a node of the old epoch was served")
		}
		if _, err := l.Resume(n.held, n.hash()); err == nil {
			t.Error("a node of the old epoch was resumed")
		}
	})
}

func TestNodeAheadOfTheReplicaIsSentAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, newScript(), Config{})
		if _, err := l.Resume(Version{7, 2}, link.SetHash{}); err == nil {
			t.Error("a newer node was taken")
		}
	})
}

func TestReplicaWithoutStateSendsNodesAway(t *testing.T) {
	l := New(newScript(), Config{Logger: quiet})
	if _, err := l.Resume(Version{}, link.SetHash{}); err == nil {
		t.Error("a node was taken")
	}
}

func TestRestartedReplicaRecognizesAnUnchangedState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(map[string]string{"links/a/x": "1"})
		first := start(t, src, Config{})
		n := &replicaNode{entries: map[string]string{}}
		next(t, first, n)
		src.write(nil) // another key of etcd
		second := start(t, src, Config{})
		c, err := second.Resume(n.held, n.hash())
		if err != nil {
			t.Fatal(err)
		}
		n.cursor = c
		if f := next(t, second, n); f.Kind != Delta || f.Bytes > 100 {
			t.Fatalf("the node was sent a %v of %d bytes", f.Kind, f.Bytes)
		}
		if next(t, second, n) != nil {
			t.Error("there was more to send")
		}
	})
}

func TestRevisionsWithoutChangesAreServedByNodesAtTheHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		l := start(t, src, Config{})
		held := Version{7, src.write(map[string]string{"links/a/x": "1"})}
		same := src.write(map[string]string{"links/a/x": "1"})
		other := src.write(nil)
		synctest.Wait()
		v := l.View()
		for _, revision := range []int64{same, other} {
			if !v.Serves(held, revision) {
				t.Errorf("revision %d is said to be missing", revision)
			}
		}
		if v.Serves(held, other+1) {
			t.Error("a revision that has not been seen is said to be served")
		}
		if n, _ := v.Lag(held); n != 0 {
			t.Errorf("lag is %d", n)
		}
	})
}

func TestStreamsThatStartTogetherShareOneSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		for i := range 100 {
			src.write(map[string]string{fmt.Sprintf("links/a/%d", i): "x"})
		}
		l := start(t, src, Config{})
		frames := make(chan *Frame)
		for range 50 {
			go func() {
				f, _ := l.Next(t.Context(), Cursor{})
				frames <- f
			}()
		}
		first := <-frames
		for range 49 {
			if f := <-frames; f != first {
				t.Fatal("streams got different snapshots")
			}
		}
		if n := l.metrics.builds.Load(); n != 1 {
			t.Errorf("%d snapshots were built", n)
		}
		src.write(map[string]string{"links/a/late": "x"})
		synctest.Wait()
		n := &replicaNode{entries: map[string]string{}}
		if next(t, l, n) != first || next(t, l, n).Kind != Delta || next(t, l, n) != nil {
			t.Error("a later stream did not get the same snapshot and a delta")
		}
	})
}

func TestLogIsBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		l := start(t, src, Config{LogBytes: 100 << 10})
		for i := range 2000 {
			src.write(map[string]string{fmt.Sprintf("links/a/%d", i%10): fmt.Sprintf("%0200d", i)})
		}
		synctest.Wait()
		if n := l.View().logBytes(); n > 100<<10 || n < 50<<10 {
			t.Errorf("the log takes %d bytes", n)
		}
	})
}
