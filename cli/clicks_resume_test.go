package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/parquet-go/parquet-go"

	"github.com/affleet/affleet/cli"
	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/clickstream/clickparquet"
	"github.com/affleet/affleet/deploy/local"
)

// An export that is stopped with SIGINT, goes on, is killed, and goes on again has
// the rows of one that nobody disturbs, and these are what the nodes have answered.
func TestAnExportThatIsInterruptedAndKilledIsExactInTheEnd(t *testing.T) {
	const visits = 4000 // of each of two nodes
	fleet := startClicks(t, 2)
	js := streamOf(t, fleet)
	visitAll(t, fleet, visits)
	awaitClicks(t, js, 2*visits)
	bytes := int64(stateOf(t, js).Bytes)
	publishAgain(t, js)
	for _, format := range []string{"ndjson", "csv", "parquet"} {
		t.Run(format, func(t *testing.T) {
			whole := filepath.Join(t.TempDir(), "whole")
			says := export(t, fleet.NATS, whole, format).end(t, 0)
			closes := fmt.Sprintf("exported 8,000 clicks to %s; the ledgers of the nodes close\n", whole)
			if says != closes {
				t.Fatalf("undisturbed, it says %q, want %q", says, closes)
			}

			path, gate := filepath.Join(t.TempDir(), "resumed"), openGate(t, fleet.NATS)
			unsaved := func() bool { // something is written that a kill takes back
				if format == "parquet" {
					_, err := os.Stat(fmt.Sprintf("%s.partial.%d", path, savedOf(t, path).Parts))
					return err == nil
				}
				info, err := os.Stat(path + ".partial")
				return err == nil && info.Size() > savedOf(t, path).Size
			}

			gate.let(bytes / 4)
			first := export(t, gate.url, path, format)
			soon(t, "the first export writes", func() bool {
				return format != "parquet" && savedOf(t, path).Rows > 0 || format == "parquet" && unsaved()
			})
			first.signal(t, os.Interrupt)
			if says := first.end(t, 1); !strings.Contains(says, "interrupted after ") || !strings.Contains(says, "hint: the same command goes on from there") {
				t.Errorf("interrupted, it says %q", says)
			}
			one := savedOf(t, path).Rows
			if one == 0 || one >= 2*visits {
				t.Fatalf("%d clicks are saved: it was not interrupted in the middle", one)
			}

			gate.let(bytes / 4)
			second := export(t, gate.url, path, format)
			if format != "parquet" { // which saves each minute
				soon(t, "the second export goes on", func() bool { return savedOf(t, path).Rows > one })
				gate.let(bytes / 4)
			}
			soon(t, "the second export writes more than it saves", unsaved)
			second.signal(t, os.Kill)
			second.end(t, -1)
			two := savedOf(t, path).Rows
			if two < one || two >= 2*visits {
				t.Fatalf("%d clicks are saved, and %d were before: it was not killed in the middle", two, one)
			}
			if _, err := os.Stat(path); err == nil {
				t.Error("the file is there before it is complete")
			}

			gate.let(1 << 40)
			says = export(t, gate.url, path, format).end(t, 0)
			if !strings.HasPrefix(says, "going on after ") || !strings.HasSuffix(says, strings.ReplaceAll(closes, whole, path)) {
				t.Errorf("resumed, it says %q", says)
			}
			if left, _ := filepath.Glob(path + ".*"); len(left) > 0 {
				t.Errorf("it leaves %v", left)
			}
			want, got := rowsOf(t, whole, format), rowsOf(t, path, format)
			ids := map[string]bool{}
			for i := range got {
				ids[got[i].id] = true
				if i < len(want) && got[i] != want[i] {
					t.Fatalf("row %d is %s %s, want %s %s", i, got[i].id, got[i].text, want[i].id, want[i].text)
				}
			}
			if len(want) != 2*visits || len(got) != 2*visits || len(ids) != 2*visits {
				t.Errorf("%d rows of %d clicks, and %d undisturbed, want %d", len(got), len(ids), len(want), 2*visits)
			}
		})
	}
}

// What cannot be read was reported before the interruption, and is in the exit code
// behind it.
func TestAnExportThatGoesOnStillFailsForWhatItCouldNotRead(t *testing.T) {
	fleet := startClicks(t, 1)
	js := streamOf(t, fleet)
	if _, err := js.Publish(t.Context(), clickstream.Subject("eu", "stranger"), []byte("nonsense")); err != nil {
		t.Fatal(err)
	}
	visitAll(t, fleet, 2000)
	awaitClicks(t, js, 2000)
	path, gate := filepath.Join(t.TempDir(), "clicks"), openGate(t, fleet.NATS)
	gate.let(int64(stateOf(t, js).Bytes) / 2)
	first := export(t, gate.url, path, "ndjson")
	soon(t, "the export writes", func() bool { return savedOf(t, path).Rows > 0 })
	first.signal(t, os.Interrupt)
	if says := first.end(t, 1); !strings.Contains(says, "stranger: malformed batch") {
		t.Errorf("interrupted, it says %q", says)
	}
	gate.let(1 << 40)
	want := fmt.Sprintf("exported 2,000 clicks to %s\nwarning: messages that cannot be read: 1\n", path)
	if says := export(t, gate.url, path, "ndjson").end(t, 1); !strings.HasSuffix(says, want) {
		t.Errorf("resumed, it says %q", says)
	}
}

// startClicks starts a fleet with a link /a.
func startClicks(t *testing.T, nodes int) *local.Fleet {
	t.Helper()
	fleet, err := local.Start(t.Context(), local.Options{Nodes: nodes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fleet.Close(); err != nil {
			t.Error(err)
		}
	})
	var out bytes.Buffer
	args := []string{"link", "create", "go.example.com/a", "https://store.com/a", "--wait"}
	if code := cli.Main(t.Context(), args, strings.NewReader(""), &out, &out, environment(t, fleet)); code != 0 {
		t.Fatalf("exit code %d\n%s", code, out.String())
	}
	return fleet
}

func streamOf(t *testing.T, fleet *local.Fleet) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(fleet.NATS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// visitAll has each node answer so many redirects, whose referrers are long and
// all different.
func visitAll(t *testing.T, fleet *local.Fleet, visits int) {
	t.Helper()
	var all sync.WaitGroup
	for n, addr := range fleet.HTTP {
		all.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			rnd := rand.NewChaCha8([32]byte{byte(n)})
			r := bufio.NewReader(conn)
			for i := range visits {
				var random [200]byte
				_, _ = rnd.Read(random[:]) // never fails
				if _, err := fmt.Fprintf(conn, "GET /a?sub1=%d HTTP/1.1\r\nHost: go.example.com\r\nReferer: https://x.example/%s\r\n\r\n", i, hex.EncodeToString(random[:])); err != nil {
					t.Error(err)
					return
				}
				resp, err := http.ReadResponse(r, nil)
				if err != nil || resp.StatusCode != http.StatusFound {
					t.Errorf("visit %d: %v, %v", i, resp, err)
					return
				}
			}
		})
	}
	all.Wait()
}

// awaitClicks waits until the stream has so many clicks.
func awaitClicks(t *testing.T, js jetstream.JetStream, clicks int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_ = clickstream.Consume(ctx, js, clickstream.Options{}, func(_ context.Context, b *clickstream.Batch) error { // ends with its context
		if clicks -= len(b.Clicks); clicks <= 0 {
			cancel()
		}
		return nil
	})
	if clicks != 0 {
		t.Fatalf("%d clicks are missing in the stream", clicks)
	}
}

func stateOf(t *testing.T, js jetstream.JetStream) jetstream.StreamState {
	t.Helper()
	s, err := js.Stream(t.Context(), clickstream.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State
}

// publishAgain publishes what the stream holds once more behind it: whoever went on
// without knowing what it has would have each click twice.
func publishAgain(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	s, err := js.Stream(t.Context(), clickstream.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	state := s.CachedInfo().State
	for n := state.FirstSeq; n <= state.LastSeq; n++ {
		m, err := s.GetMsg(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.Publish(t.Context(), m.Subject, m.Data); err != nil {
			t.Fatal(err)
		}
	}
}

// patience ends what would never end; it is not what is awaited.
const patience = 60 * time.Second

func soon(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come true that %s", what)
		}
	}
}

// exporting is affctl as a process of its own.
type exporting struct {
	cmd  *exec.Cmd
	says bytes.Buffer
}

func export(t *testing.T, nats, path, format string) *exporting {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	e := &exporting{cmd: exec.CommandContext(ctx, "affctl", "--nats", nats, "clicks", "export", path, "--format", format)}
	e.cmd.Env = append(os.Environ(), "AFFCTL_CONFIG="+filepath.Join(t.TempDir(), "none"))
	e.cmd.Stderr = &e.says
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *exporting) signal(t *testing.T, signal os.Signal) {
	t.Helper()
	if err := e.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// end waits for the end, checks the exit code, and gives what was said.
func (e *exporting) end(t *testing.T, want int) string {
	t.Helper()
	_ = e.cmd.Wait() // the exit code says it
	if code := e.cmd.ProcessState.ExitCode(); code != want {
		t.Fatalf("exit code %d, want %d: %s", code, want, e.says.String())
	}
	return e.says.String()
}

// savedOf is what an interrupted export has saved; nothing yet is zero.
func savedOf(t *testing.T, path string) (saved struct {
	Rows  int
	Size  int64
	Parts int
},
) {
	t.Helper()
	text, err := os.ReadFile(path + ".resume")
	if os.IsNotExist(err) {
		return saved
	}
	if err == nil {
		err = json.Unmarshal(text, &saved)
	}
	if err != nil {
		t.Fatal(err)
	}
	return saved
}

// row is one click of a file.
type row struct{ id, text string }

func rowsOf(t *testing.T, path, format string) (rows []row) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	switch format {
	case "ndjson":
		for line := range strings.Lines(string(text)) {
			var c struct {
				Node, Boot string
				Sequence   uint64
			}
			if err := json.Unmarshal([]byte(line), &c); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			rows = append(rows, row{fmt.Sprint(c.Node, c.Boot, c.Sequence), line})
		}
	case "csv":
		all, err := csv.NewReader(bytes.NewReader(text)).ReadAll()
		if err != nil || len(all) == 0 || all[0][0] != "node" {
			t.Fatalf("%d lines, the first of which must be the columns' names: %v", len(all), err)
		}
		for _, cells := range all[1:] {
			rows = append(rows, row{fmt.Sprint(cells[:3]), strings.Join(cells, " | ")})
		}
	case "parquet":
		all, err := parquet.Read[clickparquet.Row](bytes.NewReader(text), int64(len(text)))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			rows = append(rows, row{fmt.Sprint(r.Node, r.Boot, r.Sequence), fmt.Sprintf("%+v", r)})
		}
	}
	return rows
}
