package feed

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// killed gives the folder of a node that was killed at revision 10+n, with the
// file at revision 10, and the states by revision.
func killed(t *testing.T, n int) (dir string, states map[int64]state) {
	t.Helper()
	dir = t.TempDir()
	c := startControl(t)
	node := startNodeWith(t, Config{Dir: dir, Targets: []string{c.address}, SaveInterval: time.Hour})
	p := c.accept()
	s := state{"/a": "https://x.test/a"}
	states = map[int64]state{10: maps.Clone(s)}
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	wantSaved(node)
	for i := range int64(n) {
		p.send(s.delta(10+i, 11+i, map[string]string{fmt.Sprint("/", i): "https://x.test/"}))
		p.wantApplied(11 + i)
		states[11+i] = maps.Clone(s)
	}
	return copyFolder(t, dir), states // as it is at this moment
}

// wantSaved waits until a node has written its file. The folder is copied after
// that: a file that is under way would be gone before it is read.
func wantSaved(n *node) {
	for n.metrics.saves.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
}

func copyFolder(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(filepath.Join(to, "d"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(to, "d")
}

// read gives the state that follows from a base with what a journal has of it.
func read(j *journal, base *table.Table) *table.Table {
	t, _ := j.read(base, Guard{})
	return t
}

func TestNodeThatIsKilledComesBackWithTheVersionThatItServed(t *testing.T) {
	dir, states := killed(t, 3)
	if held, err := readFile(filepath.Join(dir, currentName)); err != nil || held.Version().Revision != 10 {
		t.Fatalf("the file is not the one before: %v", err)
	}
	c := startControl(t)
	n := startNodeWith(t, Config{Dir: dir, Targets: []string{c.address}, SaveInterval: time.Hour})
	p := c.accept()
	if p.hello.GetVersion().GetRevision() != 13 {
		t.Fatalf("the node said %v", p.hello)
	}
	wantHolds(t, n.live, 13, states[13])
	s := maps.Clone(states[13])
	p.send(s.delta(13, 14, map[string]string{"/a": ""}))
	p.wantApplied(14)
	wantSaved(n) // what it had from the journal
	dir = copyFolder(t, dir)
	n = startNode(t, dir, nobody)
	<-n.Ready()
	wantHolds(t, n.live, 14, s)
}

func TestJournalThatIsTornCountsUpToThere(t *testing.T) {
	dir, states := killed(t, 3)
	whole, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	for cut := range whole {
		for name, b := range map[string][]byte{
			"torn":    whole[:cut],
			"damaged": append(append(bytes.Clone(whole[:cut]), whole[cut]^0x40), whole[cut+1:]...),
		} {
			path := filepath.Join(t.TempDir(), journalName)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			base, err := readFile(filepath.Join(dir, currentName))
			if err != nil {
				t.Fatal(err)
			}
			j := &journal{path: path, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
			live := &table.Live{}
			live.Store(read(j, base))
			revision := live.Load().Version().Revision
			wantHolds(t, live, revision, states[revision])
			if want := 10 + int64(3*cut/len(whole)); revision < want {
				t.Fatalf("%s at byte %d of %d: revision %d, want %d", name, cut, len(whole), revision, want)
			}
			// It goes on behind the last good record.
			s := maps.Clone(states[revision])
			d, _ := proto.Marshal(s.delta(revision, 99, map[string]string{"/more": "https://x.test/"}).GetDelta())
			j.add(table.Version{Epoch: epoch, Revision: 99}, d)
			j.close()
			j = &journal{path: path, log: j.log}
			if again := read(j, base); again.Version().Revision != 99 {
				t.Fatalf("%s at byte %d of %d: what was added later is lost", name, cut, len(whole))
			}
			j.close()
		}
	}
}

func TestJournalIsCutWhenTheFileIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), journalName)
	j := &journal{path: path, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	defer j.close()
	at := func(revision int) table.Version { return table.Version{Epoch: epoch, Revision: int64(revision)} }
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	full := 0
	for i := range journalRecords {
		if j.add(at(i+1), []byte("12345678")) {
			full = i + 1
		}
	}
	if full != journalRecords || size() != int64(full*(recordHead+8)) {
		t.Errorf("after %d records it is time for a new file; it has %d bytes", full, size())
	}
	j.saved(at(journalRecords - 10))
	if size() != 10*(recordHead+8) || len(j.records) != 10 {
		t.Errorf("%d bytes are left", size())
	}
	j.add(at(journalRecords+1), []byte("12345678"))
	if size() != 11*(recordHead+8) {
		t.Errorf("%d bytes after one more", size())
	}
	j.saved(at(journalRecords + 1))
	if size() != 0 {
		t.Errorf("%d bytes are left", size())
	}
	// What is too large makes a gap, and what follows a gap is of no use.
	if !j.add(at(6000), make([]byte, maxMessage+1)) || j.add(at(6001), []byte("x")) || size() != 0 {
		t.Errorf("%d bytes behind a gap", size())
	}
	j.saved(at(6001))
	if j.add(at(6002), []byte("x")); size() != recordHead+1 {
		t.Errorf("%d bytes after the next file", size())
	}
}

func TestJournalIsThereAgainWithTheFileWhenSomebodyRemovesTheFolder(t *testing.T) {
	at := func(revision int64) table.Version { return table.Version{Epoch: epoch, Revision: revision} }
	for name, served := range map[string]int64{"nothing has come since the file": 10, "the new file has all": 11, "the new file lacks the last": 12} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			j := &journal{path: filepath.Join(dir, journalName), log: slog.New(slog.DiscardHandler)}
			defer j.close()
			j.add(at(10), []byte("10"))
			j.saved(at(10))
			want := []byte{}
			for revision := int64(11); revision <= served; revision++ {
				j.add(at(revision), []byte("more"))
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(dir, 0o700); err != nil { // with a new file
				t.Fatal(err)
			}
			if j.saved(at(11)) {
				t.Error("another file is asked for")
			}
			if served == 12 {
				want = append(want, sealed([]byte("more"))...)
			}
			j.add(at(15), []byte("15"))
			if b, err := os.ReadFile(j.path); err != nil || !bytes.Equal(b, append(want, sealed([]byte("15"))...)) {
				t.Errorf("it has %q: %v", b, err)
			}
		})
	}
}

func TestJournalThatCannotBeWrittenStopsNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	j := &journal{path: filepath.Join(file, journalName), log: slog.New(slog.NewTextHandler(&log, nil))}
	for range 100 {
		j.add(table.Version{Epoch: 1, Revision: 1}, []byte("x"))
		j.saved(table.Version{Epoch: 1, Revision: 1})
	}
	if strings.Count(log.String(), "is not written") != 1 {
		t.Errorf("the log is told:\n%s", log.String())
	}
}

// FuzzJournal reads any bytes as a journal, without the checksums that keep a
// fuzzer out: the state never goes back, and is always one that verifies.
func FuzzJournal(f *testing.F) {
	base := heldTable(f, state{"/a": "https://x.test/a"})
	s := state{"/a": "https://x.test/a"}
	d, _ := proto.Marshal(s.delta(10, 11, map[string]string{"/b": "https://x.test/b"}).GetDelta())
	f.Add(d, d)
	f.Add([]byte{}, d)
	f.Fuzz(func(t *testing.T, first, second []byte) {
		path := filepath.Join(t.TempDir(), journalName)
		w := &journal{path: path, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
		w.add(table.Version{Epoch: epoch, Revision: 11}, first)
		w.add(table.Version{Epoch: epoch, Revision: 12}, second)
		w.close()
		j := &journal{path: path, log: w.log}
		got := read(j, base)
		if got.Version().Epoch != epoch || got.Version().Revision < 10 || got == base && got.Hash() != base.Hash() {
			t.Fatalf("the state is %v", got.Version())
		}
	})
}

// aJournal gives a journal of n deltas behind a base at revision 10, and the states
// by revision. Keys come again, and go.
func aJournal(t testing.TB, base state, n int) (path string, states map[int64]state) {
	t.Helper()
	path = filepath.Join(t.TempDir(), journalName)
	w := &journal{path: path, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	s := maps.Clone(base)
	states = map[int64]state{10: base}
	for i := range int64(n) {
		change := map[string]string{}
		for k := range int64(200) {
			change[fmt.Sprint("/", (i*70+k)%1000)] = fmt.Sprint("https://x.test/", i)
		}
		for k := range i % 3 * 10 {
			if path := fmt.Sprint("/", (i*70+k+500)%1000); s[path] != "" {
				change[path] = ""
			}
		}
		d, err := proto.Marshal(s.delta(10+i, 11+i, change).GetDelta())
		if err != nil {
			t.Fatal(err)
		}
		w.add(table.Version{Epoch: epoch, Revision: 11 + i}, d)
		states[11+i] = maps.Clone(s)
	}
	w.close()
	return path, states
}

func TestJournalIsAppliedAtOnceAsItIsOneByOne(t *testing.T) {
	base := state{"/a": "https://x.test/a"}
	path, states := aJournal(t, base, 40)
	held := heldTable(t, base)
	for _, from := range []int64{10, 33, 50} { // of the file: it may be newer than some of the journal
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		piece, end := readPiece(f)
		_ = f.Close()
		if len(piece) != 40 || end != io.EOF {
			t.Fatalf("%d records, %v", len(piece), end)
		}
		start, err := new(journal).oneByOne(held, piece[:from-10], Guard{})
		if err != nil || start.Version().Revision != from {
			t.Fatalf("revision %d, %v", start.Version().Revision, err)
		}
		if _, ok := atOnce(start, piece, new(Guard)); ok && from < 50 {
			t.Fatal("a guard that allows nothing was not asked")
		}
		guard := Guard{}
		guard.setDefaults()
		got, ok := atOnce(start, piece, &guard)
		if !ok {
			t.Fatalf("from revision %d, it is not applied at once", from)
		}
		live := &table.Live{}
		live.Store(got)
		wantHolds(t, live, 50, states[50])
		// One that does not follow, and one that leads to another state, are noticed.
		if from < 50 {
			if _, ok := atOnce(start, append(piece[:from-10:from-10], piece[from-9:]...), &guard); ok {
				t.Errorf("from revision %d, a journal without the delta behind it is applied", from)
			}
			wrong := append([]logged(nil), piece...)
			wrong[39].hash.Lo++
			if _, ok := atOnce(start, wrong, &guard); ok {
				t.Errorf("from revision %d, a journal with another set hash is applied", from)
			}
		}
	}
}

func TestJournalWithAWrongDeltaCountsUpToThere(t *testing.T) {
	base := state{"/a": "https://x.test/a"}
	path, states := aJournal(t, base, 20)
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	w := &journal{path: path, log: quiet}
	if got := read(w, heldTable(t, base)); got.Version().Revision != 30 || len(w.records) != 20 {
		t.Fatalf("revision %d, %d records", got.Version().Revision, len(w.records))
	}
	s := maps.Clone(states[30])
	d := s.delta(30, 31, map[string]string{"/more": "https://x.test/"}).GetDelta()
	d.SetHash.Lo++
	b, _ := proto.Marshal(d)
	w.add(table.Version{Epoch: epoch, Revision: 31}, b)
	w.close()
	j := &journal{path: path, log: quiet}
	live := &table.Live{}
	live.Store(read(j, heldTable(t, base)))
	wantHolds(t, live, 30, states[30])
	if len(j.records) != 20 {
		t.Errorf("%d records are kept, not 20", len(j.records))
	}
}
