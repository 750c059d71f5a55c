package feed

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// killedWithDowns gives the folder of a node that was killed at revision 10, when /a and
// then /b had been taken down, and its state.
func killedWithDowns(t *testing.T) (dir string, s state) {
	t.Helper()
	dir = t.TempDir()
	c := startControl(t)
	n := startNode(t, dir, c.address)
	p := c.accept()
	s = state{"/a": "https://x.test/a", "/b": "https://x.test/b", "/c": "https://x.test/c"}
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	wantSaved(n)
	p.send(takeDown(12, deleted("/a")))
	p.wantTakenDown(12)
	p.send(takeDown(14, deleted("/b")))
	p.wantTakenDown(14)
	return copyFolder(t, dir), s
}

func TestNodeThatIsKilledGoesOnRefusingWhatWasTakenDown(t *testing.T) {
	dir, s := killedWithDowns(t)
	n := startNode(t, dir, nobody)
	<-n.Ready()
	wantAnswer(t, n.live, "/a", "", link.ToNotFound)
	wantAnswer(t, n.live, "/b", "", link.ToNotFound)
	wantAnswer(t, n.live, "/c", "https://x.test/c", link.ToDestination)
	if got := n.metrics.takenDown.Load(); got != 2 {
		t.Errorf("%d are said to be taken down", got)
	}
	n.stop()

	c := startControl(t) // it has started anew, and knows of no take-down
	n = startNode(t, dir, c.address)
	p := c.accept()
	p.send(s.delta(10, 13, map[string]string{"/a": "https://x.test/a2"}))
	p.wantApplied(13)
	wantAnswer(t, n.live, "/a", "https://x.test/a2", link.ToDestination)
	wantAnswer(t, n.live, "/b", "", link.ToNotFound)
	p.send(s.delta(13, 15, map[string]string{"/b": ""}))
	p.wantApplied(15)
	n.stop()
	c = startControl(t)
	n = startNode(t, dir, c.address)
	p = c.accept()
	wantHolds(t, n.live, 15, s)
	if got := n.metrics.takenDown.Load(); got != 0 {
		t.Errorf("%d are said to be taken down that are in the version", got)
	}
	for revision := int64(15); revision < 17; revision++ { // two files have what was taken down
		saves := n.metrics.saves.Load()
		p.send(s.delta(revision, revision+1, map[string]string{fmt.Sprint("/", revision): "https://x.test/"}))
		p.wantApplied(revision + 1)
		for n.metrics.saves.Load() == saves {
			time.Sleep(time.Millisecond)
		}
	}
	n.stop()
	if _, err := os.Stat(filepath.Join(dir, downsName)); !os.IsNotExist(err) {
		t.Errorf("what all files have is kept: %v", err)
	}
}

func TestTakeDownsThatAreTornCountUpToThere(t *testing.T) {
	dir, _ := killedWithDowns(t)
	path := filepath.Join(dir, downsName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first := recordHead + proto.Size(takeDown(12, deleted("/a")))
	read := func(b []byte) int {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		a := newApplier(&table.Live{}, Guard{})
		a.kept = &downLog{path: path, log: slog.New(slog.DiscardHandler)}
		a.kept.read(&a)
		return len(a.down.refusals)
	}
	for cut := range len(whole) + 1 {
		want := 0
		if cut >= first {
			want = 1
		}
		if cut == len(whole) {
			want = 2
		}
		if got := read(whole[:cut]); got != want {
			t.Fatalf("of %d bytes of %d, %d are known, want %d", cut, len(whole), got, want)
		}
	}
	for i := range whole {
		b := append([]byte(nil), whole...)
		b[i] ^= 0x55
		if got := read(b); got > 1 || i >= first && got != 1 {
			t.Fatalf("with byte %d damaged, %d are known", i, got)
		}
	}
}

// What is cut off must not come back behind what is written next.
func TestTakeDownsGoOnBehindWhatWasRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), downsName)
	a := newApplier(&table.Live{}, Guard{})
	a.kept = &downLog{path: path, log: slog.New(slog.DiscardHandler)}
	add := func(a *applier, m *feedv1.SubscribeResponse) {
		t.Helper()
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if o := a.take(b); o.takenDown == nil {
			t.Fatalf("it was answered %+v", o)
		}
	}
	add(&a, takeDown(12, deleted("/a")))
	add(&a, takeDown(12, deleted("/a"))) // nothing new
	b, err := os.ReadFile(path)
	if err != nil || len(b) != recordHead+proto.Size(takeDown(12, deleted("/a"))) {
		t.Fatalf("%d bytes are kept: %v", len(b), err)
	}
	if err := os.WriteFile(path, append(b, 1, 2, 3), 0o600); err != nil {
		t.Fatal(err)
	}
	again := newApplier(&table.Live{}, Guard{})
	again.kept = &downLog{path: path, log: slog.New(slog.DiscardHandler)}
	again.kept.read(&again)
	add(&again, takeDown(14, deleted("/b")))
	last := newApplier(&table.Live{}, Guard{})
	last.kept = &downLog{path: path, log: slog.New(slog.DiscardHandler)}
	last.kept.read(&last)
	if len(last.down.refusals) != 2 {
		t.Errorf("%d are known", len(last.down.refusals))
	}
}

func TestTakeDownsStayUntilNoStateLacksThem(t *testing.T) {
	at := func(epoch uint64, revision int64) table.Version {
		return table.Version{Epoch: epoch, Revision: revision}
	}
	for name, step := range map[string]struct {
		states []table.Version
		want   string
	}{
		"the first file":                   {[]table.Version{{}, at(1, 7)}, "1:7 1:12 2:3 2:5"},
		"the older one lacks it":           {[]table.Version{at(1, 7), at(1, 12)}, "1:12 2:3 2:5"},
		"both have it":                     {[]table.Version{at(1, 12), at(1, 13)}, "2:3 2:5"},
		"the newer one is of the next":     {[]table.Version{at(1, 10), at(2, 3)}, "1:12 2:3 2:5"},
		"both are of the next":             {[]table.Version{at(2, 3), at(2, 4)}, "2:5"},
		"both have all":                    {[]table.Version{at(2, 5), at(2, 6)}, ""},
		"the one that can be read has all": {[]table.Version{{}, at(2, 5)}, "1:7 1:12 2:3 2:5"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &downLog{path: filepath.Join(t.TempDir(), downsName), log: slog.New(slog.DiscardHandler)}
			for _, v := range []table.Version{at(1, 7), at(1, 12), at(2, 3), at(2, 5)} {
				m := takeDown(0, deleted("/a"))
				m.GetTakeDown().Version = versionProto(v)
				d.add(v, wire(t, m))
			}
			d.saved(step.states...)
			if info, err := os.Stat(d.path); (step.want == "") != os.IsNotExist(err) || err == nil && info.Size() != d.size {
				t.Errorf("of %d bytes: %v, %v", d.size, info, err)
			}
			a := newApplier(&table.Live{}, Guard{})
			again := &downLog{path: d.path, log: d.log}
			if _, err := again.load(&a); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range again.records {
				got = append(got, fmt.Sprint(r.to.Epoch, ":", r.to.Revision))
			}
			if strings.Join(got, " ") != step.want || !slices.Equal(again.records, d.records) || again.size != d.size {
				t.Errorf("%v are kept, want %s", got, step.want)
			}
		})
	}
}

func TestTakeDownsOfNoMoreUseAreNotTakenIn(t *testing.T) {
	d := &downLog{path: filepath.Join(t.TempDir(), downsName), log: slog.New(slog.DiscardHandler)}
	for _, v := range []table.Version{
		{Epoch: epoch - 1, Revision: 99}, // of an epoch that was left
		{Epoch: epoch, Revision: 10},     // the state has it
		{Epoch: epoch, Revision: 12},
		{Epoch: epoch + 1, Revision: 3}, // a new epoch has begun
	} {
		m := takeDown(0, deleted(fmt.Sprint("/", v.Epoch, "-", v.Revision)))
		m.GetTakeDown().Version = versionProto(v)
		d.add(v, wire(t, m))
	}
	live := &table.Live{}
	live.Store(heldTable(t, state{"/a": "https://x.test/a"}))
	a := newApplier(live, Guard{})
	a.past.add(epoch - 1)
	a.kept = &downLog{path: d.path, log: d.log}
	a.kept.read(&a)
	got := slices.Sorted(maps.Keys(a.down.refusals))
	if want := []string{"links/go.test/7-12", "links/go.test/8-3"}; !slices.Equal(got, want) {
		t.Errorf("%v are refused, want %v", got, want)
	}
	if len(a.kept.records) != 4 {
		t.Errorf("%d of 4 are kept: the state before may lack them", len(a.kept.records))
	}
}

func TestTakeDownsThatCannotBeReadAreMovedAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), downsName)
	if err := os.Symlink(path, path); err != nil {
		t.Fatal(err)
	}
	log := new(bytes.Buffer)
	a := newApplier(&table.Live{}, Guard{})
	a.kept = &downLog{path: path, log: slog.New(slog.NewTextHandler(log, nil))}
	a.kept.read(&a)
	a.take(wire(t, takeDown(12, deleted("/a"))))
	if _, err := os.Lstat(path + ".bad"); err != nil || !strings.Contains(log.String(), "moved_to") {
		t.Errorf("what was there is gone: %v: %s", err, log)
	}
	again := &downLog{path: path, log: a.kept.log}
	if _, err := again.load(&a); err != nil || len(again.records) != 1 {
		t.Errorf("what came since: %d, %v", len(again.records), err)
	}
}

func TestTakeDownsAreNotKeptWithoutEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), downsName)
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(maxDowns), f.Close()) // which takes no room
	}
	if err != nil {
		t.Fatal(err)
	}
	log := new(bytes.Buffer)
	d := &downLog{path: path, log: slog.New(slog.NewTextHandler(log, nil)), size: maxDowns}
	d.add(table.Version{Epoch: epoch, Revision: 12}, wire(t, takeDown(12, deleted("/a"))))
	if info, err := os.Stat(path); err != nil || info.Size() != maxDowns || d.size != maxDowns || !strings.Contains(log.String(), "is not written") {
		t.Errorf("%v, %v, of %d bytes: %s", info, err, d.size, log)
	}
}

// Zeros in place of what was removed would spoil all that comes behind them.
func TestTakeDownsGoOnWhereSomebodyHasRemovedThem(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	a := newApplier(&table.Live{}, Guard{})
	a.kept = &downLog{path: filepath.Join(dir, downsName), log: slog.New(slog.DiscardHandler)}
	a.take(wire(t, takeDown(12, deleted("/a"))))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	a.take(wire(t, takeDown(13, deleted("/b"))))
	again := &downLog{path: a.kept.path, log: a.kept.log}
	if _, err := again.load(&a); err != nil || len(again.records) != 1 || again.records[0].to.Revision != 13 {
		t.Errorf("%v are known, %v", again.records, err)
	}
}

func TestGuardLeavesDeletionsToTheirVersionWhereTheyAreTooMany(t *testing.T) {
	c := startControl(t)
	n := startNodeWith(t, Config{Targets: []string{c.address}, Guard: Guard{Floor: 10}})
	p := c.accept()
	s := many(20)
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	var paths []string
	for path := range s {
		paths = append(paths, path)
	}
	served := func() (count int) {
		for _, path := range paths {
			if _, o := decide(n.live, "go.test", path); o == link.ToDestination {
				count++
			}
		}
		return count
	}
	p.send(takeDown(12, deleted(paths[0]), deleted(paths[1]), deleted(paths[2])))
	p.wantTakenDown(12)
	off := linkEntry(t, &linkv1.Link{Domain: "go.test", Path: paths[5], Destination: "https://x.test/", Disabled: true})
	p.send(takeDown(13, deleted(paths[3]), deleted(paths[4]), off)) // 5 of 20 are more than a fifth
	p.wantTakenDown(12)
	p.send(takeDown(14, deleted(paths[6]))) // 4 of 20 are not
	p.wantTakenDown(12)
	p.send(s.delta(10, 11, map[string]string{"/new": "https://x.test/"}))
	p.wantApplied(11)
	if got := served(); got != 20-3-1-1 {
		t.Errorf("%d links are served", got)
	}
	if n.metrics.frames[kindTakeDown][resultRejected].Load() != 1 {
		t.Error("nothing was counted")
	}
	d := s.delta(11, 13, map[string]string{paths[0]: "", paths[1]: "", paths[2]: "", paths[3]: "", paths[4]: ""})
	d.GetDelta().Released = true
	p.send(d)
	p.wantApplied(13)
	p.send(takeDown(15, deleted(paths[7])))
	p.wantTakenDown(15)
}
