package feed

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// stuck is a node that serves revision 10, and whose keeper is held up, once it has
// written a file and before it does anything behind that.
type stuck struct {
	*node
	t      *testing.T
	c      *control
	p      *peer
	s      state
	dir    string
	mend   func() // the disk, which takes no file until then
	letGo  func() // of the keeper
	before func() // holds the keeper up before the next frame, with a file of revision 10
}

// six is a state of which a guard lets one link go.
func six() state {
	s := state{}
	for _, path := range []string{"/a", "/b", "/c", "/d", "/e", "/f"} {
		s[path] = "https://x.test" + path
	}
	return s
}

func startStuck(t *testing.T) *stuck {
	t.Helper()
	c, cfg := startControlNear(t, asItIs)
	n := &stuck{t: t, c: c, dir: t.TempDir(), s: six()}
	blocked := filepath.Join(n.dir, currentName+".tmp")
	if err := os.Mkdir(blocked, 0o700); err != nil {
		t.Fatal(err)
	}
	free := make(chan struct{})
	n.letGo = sync.OnceFunc(func() { close(free) })
	cfg.Dir, cfg.Guard = n.dir, Guard{Floor: 2}
	cfg.Log = slog.New(watching{slog.NewTextHandler(io.Discard, nil), func(message string) {
		if message == "last known good state is written again" {
			<-free
		}
	}})
	n.node = startNodeWith(t, cfg)
	t.Cleanup(n.letGo) // the node ends behind it
	n.p = c.accept()
	n.p.send(heartbeat(10, maxInterval))
	n.p.send(n.s.snapshot(10)...)
	n.p.wantApplied(10)
	synctest.Wait()
	if n.metrics.saveFailures.Load() == 0 {
		t.Fatal("the disk works")
	}
	n.mend = func() {
		if err := os.Remove(blocked); err != nil {
			t.Fatal(err)
		}
	}
	n.before = func() {
		n.mend()
		time.Sleep(touchInterval + time.Second)
		n.want("with a disk that works again", 10, 10)
	}
	return n
}

// want compares the revisions that are live and in the file.
func (n *stuck) want(when string, live, file int64) {
	n.t.Helper()
	synctest.Wait()
	if l, f := heldVersion(n.live).Revision, stateVersion(filepath.Join(n.dir, currentName)).Revision; l != live || f != file {
		n.t.Fatalf("%s, revision %d is live and %d in the file, want %d and %d", when, l, f, live, file)
	}
}

// again starts a node with what the folder has at this moment, as after SIGKILL.
func (n *stuck) again() *node {
	n.t.Helper()
	synctest.Wait() // a file that is under way would be gone before it is copied
	again := startNodeWith(n.t, Config{Dir: copyFolder(n.t, n.dir), Targets: []string{"passthrough:///nobody"}})
	<-again.Ready()
	return again
}

// of gives a snapshot another version, or has it released.
func of(v *linkv1.Version, released bool, frames []*feedv1.SubscribeResponse) []*feedv1.SubscribeResponse {
	for _, f := range frames {
		if b := f.GetSnapshotBegin(); b != nil {
			b.Version, b.Released = v, released
		}
		if e := f.GetSnapshotEnd(); e != nil {
			e.Version = v
		}
	}
	return frames
}

func TestSnapshotInPlaceOfAStateIsLiveOnceTheFileHasIt(t *testing.T) {
	other := &linkv1.Version{Epoch: epoch + 1, Revision: 3}
	for name, frames := range map[string][]*feedv1.SubscribeResponse{
		"of the same epoch":       six().snapshot(12),
		"released by an operator": of(version(12), true, state{"/a": "https://x.test/a"}.snapshot(12)),
		"of a new epoch":          of(other, false, six().snapshot(1)),
	} {
		next := frames[0].GetSnapshotBegin().GetVersion()
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := startStuck(t)
				n.before()
				n.p.send(frames...)
				n.want("with a snapshot that is in no file", 10, 10)
				start := time.Now()
				n.p.send(takeDown(13, deleted("/a")), heartbeat(13, maxInterval))
				n.p.wantTakenDown(13)
				wantAnswer(t, n.live, "/a", "", link.ToNotFound)
				if took := time.Since(start); took != 0 {
					t.Errorf("the take-down waits for %s", took)
				}
				again := n.again()
				wantAnswer(t, again.live, "/a", "", link.ToNotFound)
				again.stop()
				n.letGo()
				n.p.wantApplied(next.GetRevision())
				if v := stateVersion(filepath.Join(n.dir, currentName)); v != versionOf(next) || heldVersion(n.live) != v {
					t.Errorf("%v is acknowledged, %v is live, and the file is of %v", next, heldVersion(n.live), v)
				}
				again = n.again()
				if v := heldVersion(again.live); v != versionOf(next) {
					t.Errorf("it starts with %v", v)
				}
				if next.GetEpoch() == epoch { // else it is of an epoch that is over
					wantAnswer(t, n.live, "/a", "", link.ToNotFound)
					wantAnswer(t, again.live, "/a", "", link.ToNotFound)
				}
			})
		})
	}
}

// The process is killed with a file that is ahead of what it has served.
func TestStartTakesAStateThatIsInTheFileAndWasNeverLive(t *testing.T) {
	other := &linkv1.Version{Epoch: epoch + 1, Revision: 3}
	for name, next := range map[string]*linkv1.Version{"of the same epoch": version(12), "of a new epoch": other} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := startStuck(t)
				n.p.send(n.s.delta(10, 11, map[string]string{"/g": "https://x.test/g"}))
				n.p.wantApplied(11)
				n.mend()
				n.p.send(of(next, false, n.s.snapshot(1))...)
				n.want("with a snapshot whose file is written", 11, next.GetRevision())
				again, a, _ := begun(copyFolder(t, n.dir))
				defer kill(a.wire)
				a.past = openEpochs(again.epochs(), again.log)
				if v := heldVersion(a.live); v != versionOf(next) {
					t.Errorf("it starts with %v", v)
				}
				if o := a.take(wire(t, n.s.snapshot(11)[0])); o.rejection == nil || o.rejection.code != feedv1.RejectCode_REJECT_CODE_OLDER {
					t.Errorf("what it held before is answered %+v", o)
				}
			})
		})
	}
}

func TestStateIsLiveWithoutItsFileWhenThatTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := startStuck(t)
		n.before()
		start := time.Now()
		n.p.send(n.s.snapshot(12)...)
		n.p.wantApplied(12)
		if took := time.Since(start); took != keepWithin {
			t.Errorf("it is live after %s", took)
		}
		n.want("without its file", 12, 10)
		n.p.send(n.s.delta(12, 13, map[string]string{"/h": "https://x.test/h"}))
		n.p.wantApplied(13)
		n.letGo()
		time.Sleep(touchInterval)
		n.want("once the disk goes on", 13, 13)
	})
}

func TestStateIsLiveAtOnceWhenItsFileCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := startStuck(t)
		start := time.Now()
		n.p.send(n.s.snapshot(12)...)
		n.p.wantApplied(12)
		if took := time.Since(start); took != 0 {
			t.Errorf("it is live after %s", took)
		}
	})
}

func TestFirstStateIsLiveAtOnce(t *testing.T) {
	live := &table.Live{}
	a := newApplier(live, Guard{})
	a.keeper = newKeeper(t.TempDir(), time.Hour, live, newMetrics(live, nil), slog.New(slog.DiscardHandler)) // nobody runs it
	s := state{"/a": "https://x.test/a"}
	var o outcome
	for _, f := range s.snapshot(10) {
		o = a.take(wire(t, f))
	}
	if o.applied == nil || o.write != directly {
		t.Errorf("it is answered %+v", o)
	}
	wantHolds(t, live, 10, s)
}

// What waits for its file is not lost, and not served either.
func TestNodeThatEndsWithASnapshotThatIsNotLiveWritesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := startStuck(t)
		n.before()
		n.p.send(n.s.snapshot(12)...)
		n.want("with a snapshot that is in no file", 10, 10)
		start := time.Now()
		go n.stop()
		synctest.Wait()
		n.letGo()
		n.stop()
		if took := time.Since(start); took != 0 {
			t.Errorf("the node ends after %s", took)
		}
		n.want("at its end", 10, 12)
		again := n.again()
		wantHolds(t, again.live, 12, n.s)
	})
}

func TestNextStreamBeginsWithTheSnapshotOfTheOneBefore(t *testing.T) {
	for name, ends := range map[string]func(n *stuck){
		"its stream is lost": func(n *stuck) { n.p.end <- io.ErrUnexpectedEOF },
		"a delta comes before its answer": func(n *stuck) {
			n.p.send(n.s.delta(10, 13, map[string]string{"/g": "https://x.test/g"}))
			delete(n.s, "/g")
		},
		"another one comes before its answer": func(n *stuck) { n.p.send(n.s.snapshot(14)[0]) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := startStuck(t)
				n.before()
				n.p.send(n.s.snapshot(12)...)
				synctest.Wait()
				ends(n)
				n.want("without a stream", 10, 10)
				select {
				case <-n.c.peers:
					t.Fatal("another stream begins with a state that is not the node's next one")
				default:
				}
				n.letGo()
				n.p = n.c.accept()
				if v := n.p.hello.GetVersion(); v.GetRevision() != 12 {
					t.Errorf("the next one begins with %v", v)
				}
				wantHolds(t, n.live, 12, n.s)
				n.p.send(n.s.delta(12, 13, map[string]string{"/h": "https://x.test/h"}))
				n.p.wantApplied(13)
				again := n.again()
				wantHolds(t, again.live, 13, n.s)
			})
		})
	}
}

// notedOf gives what the note of a folder says that the process is at, and how often it
// has ended over that.
func notedOf(t *testing.T, dir string) mark {
	t.Helper()
	marks := openTripwire(filepath.Join(dir, noteName), time.Now()).marks
	if len(marks) != 1 {
		t.Fatalf("the note says %v", marks)
	}
	return marks[0]
}

func TestStateThatWaitsForItsFileIsWhatTheProcessIsAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := state{"/a": "https://x.test/a"}
		if err := writeStateFile(filepath.Join(dir, currentName), "", heldTable(t, s), time.Time{}); err != nil {
			t.Fatal(err)
		}
		k, a, _ := begun(dir)
		time.Sleep(2 * settleAfter) // the file has held
		synctest.Wait()
		for _, f := range s.snapshot(12) {
			a.take(wire(t, f))
		}
		time.Sleep(2 * settleAfter) // what is not live does not hold
		synctest.Wait()
		if m := notedOf(t, dir); m.origin != originSent || m.version.Revision != 12 || m.crashes != 1 {
			t.Errorf("before it is live, the note says %d times %v", m.crashes, m)
		}
		a.take(wire(t, takeDown(13, deleted("/a"))))
		if m := notedOf(t, dir); m.origin != originTakeDown { // it is live, and may end the process
			t.Errorf("behind a take-down, the note says %v", m)
		}
		k.save()
		a.goLive()
		if m := notedOf(t, dir); m.origin != originSent || m.version.Revision != 12 || m.crashes != 1 {
			t.Errorf("as soon as it is live, the note says %d times %v", m.crashes, m)
		}
		time.Sleep(settleAfter - time.Second)
		kill(a.wire)
		_, a, _ = begun(dir)
		if m := notedOf(t, dir); heldVersion(a.live).Revision != 12 || m.origin != originSent || m.crashes != 2 {
			t.Errorf("the next start has revision %d, and the note says %d times %v", heldVersion(a.live).Revision, m.crashes, m)
		}
		time.Sleep(settleAfter + time.Second)
		synctest.Wait()
		if marks := openTripwire(filepath.Join(dir, noteName), time.Now()).marks; len(marks) != 0 {
			t.Errorf("it holds, and the note says %v", marks)
		}
	})
}

func TestStateThatIsLiveOnceTheFileHasItHoldsAndIsToldAsAnyOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := state{"/a": "https://x.test/a"}
		if err := writeStateFile(filepath.Join(dir, currentName), "", heldTable(t, s), time.Time{}); err != nil {
			t.Fatal(err)
		}
		k, a, _ := begun(dir)
		a.guard.MaxEntryBytes = 100
		s["/large"] = "https://x.test/" + strings.Repeat("x", 100)
		for _, f := range s.snapshot(12) {
			a.take(wire(t, f))
		}
		k.save()
		if o := a.goLive(); o.unserved.n != 1 {
			t.Errorf("%d entries are said not to be served", o.unserved.n)
		}
		time.Sleep(2*settleAfter + time.Second)
		synctest.Wait()
		if marks := openTripwire(filepath.Join(dir, noteName), time.Now()).marks; len(marks) != 0 {
			t.Errorf("it holds, and the note says %v", marks)
		}
	})
}
