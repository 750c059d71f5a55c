package parquet

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/clickstream/clickparquet"
	"github.com/affleet/affleet/deploy/sinks"
	"github.com/affleet/affleet/deploy/sinks/sinktest"
)

// The test's program is also the sink that it kills.
func TestMain(m *testing.M) {
	if folder := os.Getenv("SINK_TEST_FOLDER"); folder != "" {
		sinkProcess(folder, os.Getenv("SINK_TEST_NATS"))
		return
	}
	os.Exit(m.Run())
}

func sinkProcess(folder, url string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	sink, err := New(folder, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	defer sink.Close()
	source := sinks.Source{NATS: url, Name: "torment", Every: 20 * time.Millisecond, Clicks: 700}
	if err := source.Run(ctx, slog.New(slog.DiscardHandler), sink); err != nil {
		panic(err)
	}
}

func TestEachClickIsInTheFilesOnceHoweverOftenTheSinkIsKilled(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "clicks")
	stream := sinktest.Start(t)
	stream.Torment(t, func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SINK_TEST_FOLDER="+folder, "SINK_TEST_NATS="+stream.URL)
		return cmd
	})
	rows := readAll(t, folder)
	seen := map[string]bool{}
	for _, r := range rows {
		id := r.Node + "-" + r.Boot + "-" + time.Unix(int64(r.Sequence), 0).Format(time.TimeOnly)
		if seen[id] {
			t.Fatalf("%s %d is there twice", r.Node, r.Sequence)
		}
		seen[id] = true
		if r.UserAgent != "bad \uFFFD and \x00" || r.Link != "go.example.com/a" || r.Labels[0].Name != "bot" {
			t.Fatalf("%+v", r)
		}
	}
	if len(rows) != 2*sinktest.Clicks {
		t.Fatalf("%d clicks, want %d", len(rows), 2*sinktest.Clicks)
	}
	left, err := filepath.Glob(filepath.Join(folder, ".parts", "*.parquet"))
	if err != nil || len(left) > 0 {
		t.Fatal(left, err)
	}
}

func TestASinkFromNowOnGoesOnFromThereHoweverSoonItEnds(t *testing.T) {
	folder := t.TempDir()
	sink, err := New(folder, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	sinktest.Start(t).FromNow(t, sink)
	var got []uint64
	for _, r := range readAll(t, folder) {
		got = append(got, r.Sequence)
	}
	if !slices.Equal(got, []uint64{6, 7, 8, 9, 10}) {
		t.Error(got)
	}
}

// readAll reads all files, and checks that each holds its hour.
func readAll(t *testing.T, folder string) (rows []clickparquet.Row) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(folder, "date=*", "hour=*", "clicks-*.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		some, err := parquet.ReadFile[clickparquet.Row](path)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range some {
			if want := time.UnixMicro(r.Time).UTC().Format("date=2006-01-02/hour=15"); !strings.Contains(path, want) {
				t.Fatalf("a click of %s is in %s", want, path)
			}
		}
		rows = append(rows, some...)
	}
	return rows
}

func click(at time.Time, sequence uint64) *clickstream.Batch {
	return &clickstream.Batch{Clicks: []clickstream.Click{{Node: "n", Sequence: sequence, Time: at}}}
}

func TestAnHourBecomesAFileWhenItIsOver(t *testing.T) {
	folder := t.TempDir()
	sink, err := New(folder, 5*time.Minute, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	if _, err := sink.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	five := time.Date(2026, 11, 21, 5, 0, 0, 0, time.UTC)
	save := func(at time.Time, files int) {
		t.Helper()
		if err := sink.Save(t.Context(), clickstream.State{Next: 7, Stored: at}); err != nil {
			t.Fatal(err)
		}
		if paths, _ := filepath.Glob(filepath.Join(folder, "date=2026-11-21", "hour=05", "*")); len(paths) != files {
			t.Fatalf("%s: %q", at, paths)
		}
	}
	collect := func(at time.Time, sequence uint64) {
		t.Helper()
		if err := sink.Collect(t.Context(), click(at, sequence)); err != nil {
			t.Fatal(err)
		}
	}
	collect(five.Add(time.Minute), 1)
	save(five.Add(2*time.Minute), 0)
	collect(five.Add(59*time.Minute), 2)
	save(five.Add(time.Hour), 0)
	collect(five.Add(time.Hour), 3)
	save(five.Add(65*time.Minute), 1)
	collect(five, 4) // late
	save(five.Add(66*time.Minute), 2)
	if rows := readAll(t, folder); len(rows) != 3 {
		t.Fatalf("%+v", rows)
	}
	// What was collected and not saved does not count.
	collect(five.Add(2*time.Hour), 5)
	state, err := sink.Load(t.Context())
	if err != nil || state.Next != 7 {
		t.Fatal(state, err)
	}
	save(five.Add(5*time.Hour), 2)
	if rows := readAll(t, folder); len(rows) != 4 {
		t.Fatalf("%+v", rows)
	}
	other, err := New(folder, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatal(err)
	}
}

// A batch lies in two hours, and the second one's part cannot be made.
func TestABatchThatIsCollectedInPartIsNotSaved(t *testing.T) {
	folder := t.TempDir()
	sink, err := New(folder, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	load := func() clickstream.State {
		t.Helper()
		state, err := sink.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return state
	}
	load()
	six := time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)
	b := &clickstream.Batch{Clicks: []clickstream.Click{
		{Node: "n", Sequence: 1, Time: six.Add(-time.Second)}, {Node: "n", Sequence: 2, Time: six},
	}}
	if err := os.Mkdir(sink.partPath(2), 0o755); err != nil { // stands in its way
		t.Fatal(err)
	}
	if err := sink.Collect(t.Context(), b); err == nil {
		t.Fatal("it is collected")
	}
	if err := sink.Save(t.Context(), clickstream.State{Next: 7}); err == nil { // the batches before it
		t.Error("half a batch is saved")
	}
	if err := os.Remove(sink.partPath(2)); err != nil {
		t.Fatal(err)
	}
	load()
	if err := sink.Collect(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := sink.Save(t.Context(), clickstream.State{Next: 8, Stored: six.Add(2 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if rows := readAll(t, folder); len(rows) != 2 {
		t.Errorf("%d clicks are in the files, want 2", len(rows))
	}
}
