// Package sinktest proves sinks: it runs the sink as a process, publishes
// clicks, some of them twice, and kills the sink again and again. It is for
// tests only.
package sinktest

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/deploy/sinks"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// Stream is a NATS server with an empty stream of clicks.
type Stream struct {
	URL string
	js  jetstream.JetStream
}

// Start runs a server until the test ends.
func Start(t *testing.T) *Stream {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("NATS server is not ready after 20 s")
	}
	conn, err := nats.Connect(s.ClientURL(), nats.Timeout(20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn, jetstream.WithDefaultTimeout(20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}, Discard: jetstream.DiscardNew,
	}); err != nil {
		t.Fatal(err)
	}
	return &Stream{URL: s.ClientURL(), js: js}
}

// Begin is the time of the first click; they come one a second.
var Begin = time.Date(2025, 11, 21, 22, 30, 0, 0, time.UTC)

// Publish publishes clicks of a node, from a sequence on, as nodes do.
func (s *Stream) Publish(t *testing.T, node string, first uint64, n int) {
	t.Helper()
	b := &clickv1.Batch{
		Node: node, Region: "eu", Boot: 7, FirstSequence: first, BaseTimeUs: Begin.Add(time.Duration(first) * time.Second).UnixMicro(),
		Strings: [][]byte{nil, []byte("go.example.com/a"), []byte("aff_01"), []byte("bad \xff and \x00"), []byte("sub1"), []byte("bot")},
		Ledger:  &clickv1.Ledger{Answered: first + uint64(n) - 1, Recorded: first + uint64(n) - 1},
	}
	for i := range n {
		b.Clicks = append(b.Clicks, &clickv1.Click{
			TimeUs: int64(i) * 1e6, Link: 1, Affiliate: 2, UserAgent: 3, Parameters: []uint32{4, 3}, Labels: []uint32{5, 0},
		})
	}
	data, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.js.Publish(t.Context(), clickstream.Subject("eu", node), data); err != nil {
		t.Fatal(err)
	}
}

// Clicks is how many different clicks Torment publishes, of each of two nodes.
const Clicks = 9000

// Torment publishes clicks while the sink runs, is killed, and runs again, and
// ends it when it has acknowledged all. command makes the sink's process, whose
// name in NATS is "torment".
func (s *Stream) Torment(t *testing.T, command func() *exec.Cmd) {
	t.Helper()
	running := run(t, command())
	kill := time.Now()
	// Something is published behind each kill: what has acknowledged all of it in the end
	// is the process that runs then, and listens to signals.
	for _, node := range []string{"node-1", "node-2"} {
		for first := uint64(1); first <= Clicks; {
			if time.Now().After(kill) {
				_ = running.Process.Kill() // and wait for it
				_ = running.Wait()
				running = run(t, command())
				kill = time.Now().Add(time.Duration(100+rand.IntN(300)) * time.Millisecond)
			}
			n := min(1+rand.IntN(60), int(Clicks-first+1))
			s.Publish(t, node, first, n)
			if back := uint64(rand.IntN(40)); back < first && rand.IntN(8) == 0 { // once more, cut elsewhere
				s.Publish(t, node, first-back, n)
			}
			first += uint64(n)
			time.Sleep(2 * time.Millisecond) // so that it lives through some kills
		}
	}
	s.wait(t, "torment")
	if err := running.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := running.Wait(); err != nil {
		t.Fatal(err)
	}
}

// FromNow runs a sink from now on, behind five clicks, ends it when it has saved
// its place and before another click has come, publishes the clicks 6 to 10, and
// runs it again until it has them.
func (s *Stream) FromNow(t *testing.T, sink sinks.Sink) {
	t.Helper()
	source := sinks.Source{NATS: s.URL, Name: "now", From: "now", Every: 20 * time.Millisecond, Clicks: 700}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s.Publish(t, "node-1", 1, 5)
	if err := source.Run(ctx, slog.New(slog.DiscardHandler), &placed{sink, cancel}); err != nil {
		t.Fatal(err)
	}
	s.Publish(t, "node-1", 6, 5)
	ctx, cancel = context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- source.Run(ctx, slog.New(slog.DiscardHandler), sink) }()
	s.wait(t, source.Name)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// placed is a sink that does something when it has saved.
type placed struct {
	sinks.Sink
	then func()
}

func (p *placed) Save(ctx context.Context, state clickstream.State) error {
	err := p.Sink.Save(ctx, state)
	if err == nil {
		p.then()
	}
	return err
}

func run(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // when the test failed before
	})
	return cmd
}

// wait waits until the sink has acknowledged all that there is.
func (s *Stream) wait(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		cons, err := s.js.Consumer(ctx, clickstream.StreamName, name)
		if err == nil {
			if info := cons.CachedInfo(); info.NumPending == 0 && info.NumAckPending == 0 && info.Delivered.Consumer > 0 {
				return
			}
		}
		if ctx.Err() != nil {
			t.Fatal(fmt.Errorf("the sink does not come to the end: %w", ctx.Err()))
		}
		time.Sleep(20 * time.Millisecond)
	}
}
