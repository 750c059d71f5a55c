package feed

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	"github.com/affleet/affleet/proto/link"
)

// begun is a process that begins with what a folder has, as Run does, until the
// test lets it end.
func begun(dir string) (k *keeper, a *applier, log *bytes.Buffer) {
	log = new(bytes.Buffer)
	live := &table.Live{}
	k = newKeeper(dir, time.Hour, live, newMetrics(live, nil), slog.New(slog.NewTextHandler(log, nil)))
	own := newApplier(live, Guard{})
	a = &own
	a.wire = openTripwire(k.note(), time.Now())
	k.boot(a)
	return k, a, log
}

// started is begun, where the keeper has nothing to do.
func started(dir string) (*applier, *bytes.Buffer) {
	_, a, log := begun(dir)
	return a, log
}

func TestTakeDownThatEndsTheProcessAgainAndAgainIsNotTriedAgain(t *testing.T) {
	dir := t.TempDir()
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
	if err := writeStateFile(filepath.Join(dir, currentName), "", heldTable(t, s), time.Time{}); err != nil {
		t.Fatal(err)
	}
	a, _ := started(dir)
	a.take(wire(t, takeDown(12, deleted("/a"))))
	kill(a.wire) // over it
	for n := 1; n < maxCrashes; n++ {
		a, _ = started(dir)
		if len(a.down.refusals) != 1 || a.live.Load().Version().Revision != 10 {
			t.Fatalf("start %d: revision %v, %d refused", n, a.live.Load().Version(), len(a.down.refusals))
		}
		kill(a.wire) // over it, as soon as somebody asks
	}
	kept, err := os.ReadFile(filepath.Join(dir, downsName))
	if err != nil {
		t.Fatal(err)
	}
	a, log := started(dir)
	if len(a.down.refusals) != 0 || strings.Count(log.String(), "what was taken down is not used") != 1 {
		t.Fatalf("%d are refused: %s", len(a.down.refusals), log)
	}
	if err := holds(a.live, 10, s); err != nil {
		t.Fatalf("the state of the file is taken for what ends the process: %v", err)
	}
	if wait, _ := a.wire.quarantine(); wait != 0 {
		t.Errorf("no control plane is followed for %v: what was taken down would be served that long", wait)
	}
	if _, err := os.Stat(filepath.Join(dir, downsName)); !os.IsNotExist(err) {
		t.Errorf("it is kept: %v", err)
	}
	aside := filepath.Join(dir, downsName+".bad")
	if now, err := os.ReadFile(aside); err != nil || !bytes.Equal(now, kept) || !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), aside) {
		t.Errorf("nobody can see what it was: %v: %s", err, log)
	}
	// Nor is it when a control plane tells it once more. Others are, and what comes
	// behind it is not acknowledged until its version is served.
	if o := a.take(wire(t, takeDown(12, deleted("/a")))); o.guarded == nil || o.takenDown.GetRevision() != 10 {
		t.Errorf("it is answered %+v", o)
	}
	if o := a.take(wire(t, takeDown(14, deleted("/b")))); o.guarded != nil || o.takenDown.GetRevision() != 10 || len(a.down.refusals) != 1 {
		t.Errorf("another one is answered %+v", o)
	}
	if o := a.take(wire(t, s.delta(10, 12, map[string]string{"/a": ""}))); o.applied == nil {
		t.Errorf("its version is answered %+v", o)
	}
	if o := a.take(wire(t, takeDown(15, deleted("/b")))); o.takenDown.GetRevision() != 15 {
		t.Errorf("behind its version, another one is answered %+v", o)
	}
	kill(a.wire)
}

// The file is tried as often as without the take-down, and what is served instead
// goes on refusing.
func TestCrashLoopOverTheFileLeavesWhatWasTakenDownBeforeIt(t *testing.T) {
	dir := t.TempDir()
	current, previous := filepath.Join(dir, currentName), filepath.Join(dir, previousName)
	before, s := state{"/a": "https://x.test/a"}, state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
	for _, next := range []*table.Table{heldTableAt(t, before, 10), heldTableAt(t, s, 11)} {
		if err := writeStateFile(current, previous, next, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	a, _ := started(dir)
	a.take(wire(t, takeDown(12, deleted("/a"))))
	a.wire.close() // in order: the take-down has held
	for n := range maxCrashes + 2 {
		a, log := started(dir)
		want := int64(11)
		if n >= maxCrashes {
			want = 10
		}
		if v := heldVersion(a.live); v.Revision != want || len(a.down.refusals) != 1 || strings.Contains(log.String(), "what was taken down") {
			t.Fatalf("start %d: revision %d, want %d; %d refused: %s", n+1, v.Revision, want, len(a.down.refusals), log)
		}
		wantAnswer(t, a.live, "/a", "", link.ToNotFound)
		kill(a.wire) // over the file, or by somebody else
	}
}

// A control plane tells on each new stream what the node does not serve yet.
func TestTakeDownThatIsInForceAlreadyIsNotWhatTheProcessIsAt(t *testing.T) {
	dir := t.TempDir()
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
	if err := writeStateFile(filepath.Join(dir, currentName), "", heldTable(t, s), time.Time{}); err != nil {
		t.Fatal(err)
	}
	a, _ := started(dir)
	unknown := &feedv1.Entry{Key: "unknown/1"} // of a later release
	down := wire(t, takeDown(12, deleted("/a"), unknown))
	a.take(down)
	a.take(wire(t, takeDown(14, deleted("/a"))))
	a.wire.close() // in order: it has held
	a, _ = started(dir)
	defer kill(a.wire)
	shown := a.live.Load()
	at := func() []mark { return openTripwire(filepath.Join(dir, noteName), time.Now()).marks }
	if o := a.take(down); o.takenDown.GetRevision() != 12 || o.guarded != nil || o.err != nil {
		t.Errorf("told once more, it is answered %+v", o)
	}
	if marks := at(); len(marks) != 1 || marks[0].origin != originFile || a.live.Load() != shown {
		t.Errorf("the note says %v, and another table is served: %t", marks, a.live.Load() != shown)
	}
	a.take(wire(t, takeDown(12, deleted("/a"), deleted("/b"), unknown)))
	if marks := at(); len(marks) != 1 || marks[0].origin != originTakeDown {
		t.Errorf("with a link that was not taken down before, the note says %v", marks)
	}
	wantAnswer(t, a.live, "/b", "", link.ToNotFound)
}

func TestSnapshotThatATakeDownOvertakesIsStillWhatTheProcessIsAt(t *testing.T) {
	dir := t.TempDir()
	a, _ := started(dir)
	frames := state{"/a": "https://x.test/a"}.snapshot(bad.Revision)
	a.take(wire(t, frames[0]))
	if o := a.take(wire(t, takeDown(12, deleted("/a")))); o.takenDown == nil {
		t.Fatalf("it is answered %+v", o)
	}
	kill(a.wire)
	again := openTripwire(filepath.Join(dir, noteName), time.Now())
	if len(again.marks) != 1 || again.marks[0].origin != originSent || again.marks[0].version.Revision != bad.Revision {
		t.Errorf("the note says %v", again.marks)
	}
}
