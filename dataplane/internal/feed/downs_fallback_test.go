package feed

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// A version that holds a take-down is live, and the next start may begin with one
// that does not.
func TestWhatWasTakenDownIsRefusedByAnOlderStateThatAStartFallsBackTo(t *testing.T) {
	for name, fallsBack := range map[string]func(t *testing.T, dir string, k *keeper){
		"the newer one is in no file": func(*testing.T, string, *keeper) {},
		"its file is torn":            tornState,
		"its file has ended the process": func(t *testing.T, dir string, k *keeper) {
			k.save()
			for revision, n := int64(12), 0; revision != 10; n++ {
				_, a, _ := begun(dir)
				kill(a.wire)
				if revision = heldVersion(a.live).Revision; n > maxCrashes {
					t.Fatalf("it still begins with revision %d", revision)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
			if err := writeStateFile(filepath.Join(dir, currentName), "", heldTable(t, s), time.Time{}); err != nil {
				t.Fatal(err)
			}
			k, a, _ := begun(dir)
			a.take(wire(t, takeDown(12, deleted("/a"))))
			for _, f := range (state{"/b": "https://x.test/b"}).snapshot(12) {
				a.take(wire(t, f))
			}
			a.goLive() // the time for its file is over
			if v := heldVersion(a.live); v.Revision != 12 || len(a.down.refusals) != 0 {
				t.Fatalf("revision %d is served, and %d are refused ahead of it", v.Revision, len(a.down.refusals))
			}
			fallsBack(t, dir, k)
			kill(a.wire)
			_, a, log := begun(dir)
			defer kill(a.wire)
			if v := heldVersion(a.live); v.Revision != 10 {
				t.Fatalf("it begins with revision %d: %s", v.Revision, log)
			}
			wantAnswer(t, a.live, "/a", "", link.ToNotFound)
			wantAnswer(t, a.live, "/b", "https://x.test/b", link.ToDestination)
		})
	}
}

// tornState has the newest state written, and then torn.
func tornState(t *testing.T, dir string, k *keeper) {
	t.Helper()
	k.save()
	current := filepath.Join(dir, currentName)
	b, err := os.ReadFile(current)
	if err == nil {
		err = os.WriteFile(current, b[:len(b)-5], 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A start that finds no file begins with the snapshot of any replica, perhaps of one that
// is behind.
func TestWhatWasTakenDownIsRefusedWhereTheOnlyFileIsTorn(t *testing.T) {
	dir := t.TempDir()
	k, a, _ := begun(dir)
	a.take(wire(t, takeDown(12, deleted("/a"))))
	for _, f := range (state{"/b": "https://x.test/b"}).snapshot(12) {
		a.take(wire(t, f))
	}
	tornState(t, dir, k)
	kill(a.wire)
	_, a, log := begun(dir)
	defer kill(a.wire)
	if v := heldVersion(a.live); v.Revision != 0 {
		t.Fatalf("it begins with revision %d: %s", v.Revision, log)
	}
	for _, f := range (state{"/a": "https://x.test/a", "/b": "https://x.test/b"}).snapshot(10) {
		a.take(wire(t, f))
	}
	wantAnswer(t, a.live, "/a", "", link.ToNotFound)
	wantAnswer(t, a.live, "/b", "https://x.test/b", link.ToDestination)
}

// The state before is of an epoch that is over: it says nothing about take-downs of the
// next one.
func TestWhatWasTakenDownIsRefusedWhereTheOnlyFileOfItsEpochIsTorn(t *testing.T) {
	dir := t.TempDir()
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
	if err := writeStateFile(filepath.Join(dir, currentName), "", heldTable(t, s), time.Time{}); err != nil {
		t.Fatal(err)
	}
	next := func(revision int64) *linkv1.Version { return &linkv1.Version{Epoch: epoch + 1, Revision: revision} }
	k, a, _ := begun(dir)
	down := takeDown(0, deleted("/a"))
	down.GetTakeDown().Version = next(5)
	a.take(wire(t, down)) // ahead of a snapshot that does not come to its end
	for _, f := range of(next(5), false, state{"/b": "https://x.test/b"}.snapshot(0)) {
		a.take(wire(t, f))
	}
	tornState(t, dir, k)
	kill(a.wire)
	k, a, log := begun(dir)
	defer kill(a.wire)
	if v := heldVersion(a.live); v.Epoch != epoch {
		t.Fatalf("it begins with %v: %s", v, log)
	}
	for _, f := range of(next(3), false, s.snapshot(0)) { // of a replica that is behind
		a.take(wire(t, f))
	}
	k.save()
	a.goLive()
	wantAnswer(t, a.live, "/a", "", link.ToNotFound)
	wantAnswer(t, a.live, "/b", "https://x.test/b", link.ToDestination)
}

// watching calls saw with each line of a log.
type watching struct {
	slog.Handler
	saw func(message string)
}

func (w watching) Handle(_ context.Context, r slog.Record) error {
	w.saw(r.Message)
	return nil
}

// Requests are answered as soon as a table is live.
func TestStateOfTheFileIsNotServedBeforeWhatWasTakenDownIsKnown(t *testing.T) {
	dir := t.TempDir()
	s := state{"/a": "https://x.test/a"}
	if err := writeStateFile(filepath.Join(dir, currentName), "", heldTable(t, s), time.Time{}); err != nil {
		t.Fatal(err)
	}
	a, _ := started(dir)
	a.take(wire(t, takeDown(12, deleted("/a"))))
	kill(a.wire)

	live, lines := &table.Live{}, 0
	next := newApplier(live, Guard{})
	k := newKeeper(dir, time.Hour, live, newMetrics(live, nil), slog.New(watching{slog.NewTextHandler(io.Discard, nil), func(string) {
		lines++
		if live.Load() != nil {
			wantAnswer(t, live, "/a", "", link.ToNotFound)
		}
	}}))
	k.boot(&next)
	if lines == 0 {
		t.Error("nothing was logged, and nothing looked at")
	}
	wantAnswer(t, live, "/a", "", link.ToNotFound)
}
