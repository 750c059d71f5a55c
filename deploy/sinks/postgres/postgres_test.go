package postgres

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/deploy/sinks"
	"github.com/affleet/affleet/deploy/sinks/sinktest"
)

// The test's program is also the sink that it kills.
func TestMain(m *testing.M) {
	if database := os.Getenv("SINK_TEST_DATABASE"); database != "" {
		sinkProcess(database, os.Getenv("SINK_TEST_NATS"))
		return
	}
	os.Exit(m.Run())
}

func sinkProcess(database, url string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	sink, err := New(database, "torment")
	if err != nil {
		panic(err)
	}
	source := sinks.Source{NATS: url, Name: "torment", Every: 20 * time.Millisecond, Clicks: 700}
	if err := source.Run(ctx, slog.New(slog.DiscardHandler), sink); err != nil {
		panic(err)
	}
}

// database runs PostgreSQL until the test ends, and gives its URL.
func database(t *testing.T) string {
	t.Helper()
	bin := programs()
	if bin == "" {
		t.Skip("PostgreSQL is not installed: apt-get install postgresql")
	}
	dir, err := os.MkdirTemp("", "affpg") //nolint:usetesting // a path that is short enough for the socket, and that another user may enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	run := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT, Credential: notRoot(t, dir)}
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := run("initdb", "-D", data, "-U", "aff", "-E", "UTF8", "--no-sync", "--auth", "trust").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	server := run("postgres", "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "fsync=off")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGINT) // a fast stop
		_ = server.Wait()
	})
	url := "host=" + dir + " user=aff dbname=postgres"
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := pgx.Connect(t.Context(), url)
		if err == nil {
			conn.Close(t.Context())
			return url
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// programs is where initdb is, as Debian installs it or on the path.
func programs() string {
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path)
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return ""
	}
	return filepath.Dir(found[len(found)-1])
}

// notRoot is a user that PostgreSQL runs under: it refuses root.
func notRoot(t *testing.T, dir string) *syscall.Credential {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Skip("PostgreSQL does not run as root, and there is no user postgres")
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func query(t *testing.T, url, sql string) (n int64) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestEachClickIsInTheTableOnceHoweverOftenTheSinkIsKilled(t *testing.T) {
	url := database(t)
	stream := sinktest.Start(t)
	stream.Torment(t, func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SINK_TEST_DATABASE="+url, "SINK_TEST_NATS="+stream.URL)
		return cmd
	})
	for sql, want := range map[string]int64{
		`SELECT count(*) FROM aff_clicks`:                                                  2 * sinktest.Clicks,
		`SELECT count(*) FROM (SELECT DISTINCT node, boot, sequence FROM aff_clicks) AS d`: 2 * sinktest.Clicks,
		`SELECT max(sequence) FROM aff_clicks`:                                             sinktest.Clicks,
		`SELECT count(*) FROM aff_clicks WHERE link = 'go.example.com/a' AND affiliate = 'aff_01' AND boot = '0000000000000007'
			AND user_agent = E'bad \uFFFD and \uFFFD' AND parameters->0->>'name' = 'sub1' AND labels->0->>'name' = 'bot'`: 2 * sinktest.Clicks,
		`SELECT count(*) FROM aff_clicks_20251121`:                                           2 * 5399, // until midnight
		`SELECT count(*) FROM pg_class WHERE relname LIKE 'aff_clicks_2%' AND relkind = 'r'`: 2,
	} {
		if got := query(t, url, sql); got != want {
			t.Errorf("%s: %d, want %d", sql, got, want)
		}
	}
}

func TestASinkFromNowOnGoesOnFromThereHoweverSoonItEnds(t *testing.T) {
	url := database(t)
	sink, err := New(url, "now")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sink.Close(context.Background()) })
	sinktest.Start(t).FromNow(t, sink)
	if n := query(t, url, `SELECT count(*) FROM aff_clicks WHERE sequence BETWEEN 6 AND 10`); n != 5 {
		t.Error(n)
	}
	if n := query(t, url, `SELECT count(*) FROM aff_clicks`); n != 5 {
		t.Error(n)
	}
}

func TestASinkThatWasTakenOverWritesNothing(t *testing.T) {
	url := database(t)
	load := func() *Sink {
		t.Helper()
		s, err := New(url, "one")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close(context.Background()) })
		return s
	}
	first := load()
	b := &clickstream.Batch{Clicks: []clickstream.Click{{Node: "n", Sequence: 1, Time: time.Now()}}}
	if err := errors.Join(first.Collect(t.Context(), b), first.Save(t.Context(), clickstream.State{Next: 2})); err != nil {
		t.Fatal(err)
	}
	second := load()
	if err := errors.Join(first.Collect(t.Context(), b), first.Save(t.Context(), clickstream.State{Next: 3})); !errors.Is(err, clickstream.ErrTakenOver) {
		t.Fatal(err)
	}
	if n := query(t, url, `SELECT count(*) FROM aff_clicks`); n != 1 {
		t.Fatal(n)
	}
	if state, err := second.Load(t.Context()); err != nil || state.Next != 2 {
		t.Fatal(state, err)
	}
}
