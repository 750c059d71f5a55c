package feed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	"github.com/affleet/affleet/proto/link"
)

// schedules is how many run: AFF_SCHEDULES, or a number that takes some seconds.
func schedules(t *testing.T, usual int) (from, to uint64) {
	text := os.Getenv("AFF_SCHEDULES")
	if text == "" {
		return 1, uint64(usual) + 1
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("AFF_SCHEDULES: %q is not a number", text)
	}
	return 1, n + 1
}

// exchange sends a frame and takes the node's answer, before which it may say something
// else. It gives what the node then holds, and whether the stream goes on.
func (w *world) exchange(p *pipe, f *sent, held int64, say func() bool) (int64, bool) {
	for _, b := range f.messages {
		if !p.send(b) {
			return held, false
		}
	}
	if f.poison != "" && len(f.codes) == 0 { // there can be no answer
		w.pause()
		p.close(errCut)
		return held, false
	}
	if f.snapshot && !say() {
		return held, false
	}
	m := p.early
	if m == nil {
		m = p.answer()
	}
	p.early = nil
	if m == nil {
		return held, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case m.GetApplied() != nil:
		w.applied++
		a := m.GetApplied()
		if f.poison != "" || a.GetVersion().GetRevision() != f.to {
			w.fail("the node took %s: %v", f.poison, m)
		}
		if !f.released && holdsBack(w.states[held], w.states[f.to]) {
			w.fail("the guard let revision %d pass for a node at %d", f.to, held)
		}
		w.check("applied", a.GetVersion(), a.GetSetHash())
		if f.snapshot && held != 0 {
			w.kept = w.now() // the node waits for the next frame
		}
		return f.to, true
	case m.GetRejected().GetCode() == feedv1.RejectCode_REJECT_CODE_GUARDED:
		w.guarded++
		if f.poison != "" || f.released || !holdsBack(w.states[held], w.states[f.to]) {
			w.fail("the guard held back revision %d for a node at %d, released %v, %q: %v", f.to, held, f.released, f.poison, m)
		}
		if w.rng.IntN(3) == 0 {
			w.released = f.to
		}
	case w.crashes > 0 && strings.Contains(m.GetRejected().GetReason(), "not tried again"):
		// A state that the process has ended on too often.
		w.mu.Unlock()
		time.Sleep(time.Second)
		w.mu.Lock()
	case m.GetRejected() != nil:
		w.rejected++
		if !slices.Contains(f.codes, m.GetRejected().GetCode()) {
			w.fail("revision %d, %q, for a node at %d is answered with %v", f.to, f.poison, held, m)
		}
	default:
		w.fail("revision %d is answered with %v", f.to, m)
	}
	return held, true
}

// actor is the node of a schedule, and what is done to it.
type actor struct {
	t    *testing.T
	w    *world
	dir  string
	live *table.Live
	stop func()
}

// boot starts the node.
func (a *actor) boot() {
	a.live = &table.Live{}
	client, err := New(Config{
		Targets: []string{"passthrough:///0", "passthrough:///1"}, Node: "n", Region: "r", Boot: 1, Dir: a.dir, Live: a.live,
		Guard:      Guard{Floor: floor},
		MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond, SaveInterval: 20 * time.Millisecond, StatusInterval: time.Second,
		Credentials: insecure.NewCredentials(), Dial: []grpc.DialOption{a.w.dial()},
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	a.stop = func() {
		cancel()
		if err := <-done; err != nil {
			a.t.Errorf("Run: %v", err)
		}
	}
}

// restart ends the node in order, or as a crash does: with the files as they are at this
// moment, or were as it acknowledged its last snapshot. It never goes back behind what
// it had served then, but for the file before, when the newest one is damaged.
func (a *actor) restart(crash, damage bool) {
	var at moment
	if crash {
		synctest.Wait() // nothing is being written
		a.w.mu.Lock()
		if at = a.w.kept; at.files == nil || a.w.rng.IntN(2) == 0 {
			at = a.w.now()
		}
		a.w.mu.Unlock()
	}
	a.stop()
	a.w.serving.Wait() // what it has said is heard
	a.compare("at the end")
	if crash {
		for name := range a.files() {
			if err := os.Remove(filepath.Join(a.dir, name)); err != nil {
				a.t.Fatal(err)
			}
		}
		for name, b := range at.files {
			if err := os.WriteFile(filepath.Join(a.dir, name), b, 0o600); err != nil {
				a.t.Fatal(err)
			}
		}
	}
	current := filepath.Join(a.dir, currentName)
	if b, err := os.ReadFile(current); damage && err == nil {
		if err := os.WriteFile(current, b[:len(b)/2], 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	a.w.mu.Lock()
	a.w.kept = moment{} // of a process that is over
	if crash {
		a.w.crashes++
		a.w.floor, a.w.refuses = at.floor, at.refuses
	}
	if damage {
		a.w.floor = min(a.w.floor, a.saved())
	}
	if wait, _ := openTripwire(filepath.Join(a.dir, noteName), time.Now()).quarantine(); wait > 0 {
		a.w.floor = 0 // so many crashes in a row end with the state before
	}
	a.w.mu.Unlock()
	a.boot()
}

// files are those of the node. One that is being written may be gone before it is read.
func (a *actor) files() map[string][]byte {
	files := map[string][]byte{}
	all, err := os.ReadDir(a.dir)
	if err != nil {
		a.t.Fatal(err)
	}
	for _, f := range all {
		b, err := os.ReadFile(filepath.Join(a.dir, f.Name()))
		if err == nil {
			files[f.Name()] = b
		} else if !errors.Is(err, fs.ErrNotExist) {
			a.t.Fatal(err)
		}
	}
	return files
}

// saved is the newest revision that the files hold.
func (a *actor) saved() int64 {
	for _, name := range []string{currentName, previousName} {
		if t, err := readFile(filepath.Join(a.dir, name)); err == nil {
			return t.Version().Revision
		}
	}
	return 0
}

// compare compares what the node serves with the model.
func (a *actor) compare(when string) {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	live := a.live.Load()
	if live == nil {
		return
	}
	held := live.Verified()
	a.w.check(when, versionProto(held.Version()), hashProto(held.Hash()))
	revision := held.Version().Revision
	state := a.w.states[revision]
	fraud := map[string]string{}
	for key, value := range live.All() {
		if !strings.HasPrefix(string(key), "links/") {
			fraud[string(key)] = string(value)
		}
	}
	for i := range keys {
		key := keyOf(i)
		var m link.Match
		live.Lookup([]byte("go.test"), fmt.Appendf(nil, "/%d", i), &m)
		shown, said := string(m.Value), state[key]
		if i >= firstBlock {
			shown = fraud[key]
		}
		if shown == said {
			continue
		}
		// It may be a take-down of a later version, and nothing else.
		if !slices.ContainsFunc(a.w.downs, func(d takenDown) bool { return d.revision > revision && d.key == key && d.value == shown }) {
			a.t.Fatalf("%s: at revision %d %s is served as %q, and is %q", when, revision, key, shown, said)
		}
	}
	a.compareRefused(when, live)
}

// compareRefused looks whether the node refuses what it has acknowledged to, behind any
// restart. What it leaves to its guard, and what has ended the process, it may serve.
// w.mu is held.
func (a *actor) compareRefused(when string, live *table.Table) {
	revision := live.Version().Revision
	if _, err := os.Stat(filepath.Join(a.dir, downsName+".bad")); err == nil || a.w.leavesToGuard(revision) {
		return
	}
	for _, d := range a.w.downs {
		if d.revision <= revision || !a.w.refuses[d.revision] || !strings.HasPrefix(d.key, "links/") {
			continue
		}
		a.w.overtook++
		var m link.Match
		live.Lookup([]byte("go.test"), []byte(strings.TrimPrefix(d.key, "links/go.test")), &m)
		if shown := string(m.Value); !slices.ContainsFunc(a.w.downs, func(of takenDown) bool {
			return of.revision >= d.revision && of.key == d.key && of.value == shown
		}) {
			a.t.Fatalf("%s: at revision %d, %s of revision %d is served as %q", when, revision, d.key, d.revision, shown)
		}
	}
}

// step does something to the world or to the node.
func (a *actor) step() {
	w := a.w
	w.mu.Lock()
	what, r := w.rng.IntN(20), w.replicas[w.rng.IntN(2)]
	w.mu.Unlock()
	switch what {
	case 0, 1, 2, 3:
		w.write(false)
	case 4, 5:
		w.write(true)
	}
	w.mu.Lock()
	crash, damage := w.rng.IntN(2) == 0, w.rng.IntN(3) == 0
	switch what {
	case 6, 7, 8, 9, 10:
		r.head = w.head()
	case 11:
		r.head = max(r.head, w.at(1, w.head()))
	case 12:
		r.base = r.head // compacted
	case 13:
		r.cutStreams()
	case 14:
		r.down = true
		r.cutStreams()
	case 15:
		// It comes back, and may have to read the store from a member that lags.
		r.down = false
		r.head = w.at(1, w.head())
		r.base = r.head
		r.cutStreams()
	case 16:
		r.busy = !r.busy
	case 17:
		w.released = w.head()
	}
	w.mu.Unlock()
	if what == 18 {
		a.restart(crash, damage)
	}
}

func TestNodeKeepsItsPromisesUnderAnySchedule(t *testing.T) {
	from, to := schedules(t, 200)
	var applied, rejected, guarded, refused, overtook int
	for seed := from; seed < to && !t.Failed(); seed++ {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(seed, func(format string, args ...any) { t.Errorf("seed %d: "+format, append([]any{seed}, args...)...) })
			a := &actor{t: t, w: w, dir: dir}
			w.files = a.files
			a.boot()
			defer func() {
				a.stop()
				w.serving.Wait()
			}()
			for range 60 {
				a.step()
				time.Sleep(time.Duration(w.draw(8)) * time.Millisecond)
				if w.draw(2) == 0 {
					synctest.Wait()
				}
				a.compare("after a step")
			}
			w.heal()
			for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				if l := a.live.Load(); l != nil && l.Version().Revision == w.head() {
					break
				}
				if time.Since(begin) > 2*time.Hour {
					t.Fatalf("seed %d: all is well for two hours, and the node does not get to revision %d", seed, w.head())
				}
			}
			a.compare("healed")
			w.mu.Lock()
			applied, rejected, guarded, refused = applied+w.applied, rejected+w.rejected, guarded+w.guarded, refused+w.refused
			overtook += w.overtook
			w.mu.Unlock()
		})
	}
	t.Logf("%d schedules: %d frames applied, %d rejected, %d held back, %d take-downs, looked at %d times ahead of their versions", to-from, applied, rejected, guarded, refused, overtook)
	if !t.Failed() && min(applied, rejected, guarded, refused, overtook) == 0 {
		t.Error("the schedules leave out what they are to try")
	}
}
