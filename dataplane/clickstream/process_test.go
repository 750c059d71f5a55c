package clickstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The test's program is also what it starts and kills: a NATS server, and a
// consumer.
const roleVariable = "CLICKSTREAM_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "server":
		serve(os.Getenv("PORT"), os.Getenv("DIR"))
	case "consumer":
		appendClicks(os.Getenv("URL"), os.Getenv("FILE"))
	default:
		os.Exit(m.Run())
	}
}

// serve runs a NATS server until it is killed.
func serve(port, dir string) {
	n, _ := strconv.Atoi(port)
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: n, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true})
	if err != nil {
		panic(err)
	}
	s.Start()
	s.WaitForShutdown()
}

// appendClicks writes each click into a line of a file, at once.
func appendClicks(url, file string) {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	conn, err := nats.Connect(url, nats.Timeout(20*time.Second), nats.MaxReconnects(-1))
	if err != nil {
		panic(err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		panic(err)
	}
	err = Consume(context.Background(), js, Options{
		Durable: "sink", SaveEvery: 20 * time.Millisecond, Gap: func(g Gap) { fmt.Fprintln(f, "gap", g.From, g.To) },
	}, func(_ context.Context, b *Batch) error {
		var lines strings.Builder
		for _, c := range b.Clicks {
			fmt.Fprintln(&lines, c.Sequence)
		}
		_, err := f.WriteString(lines.String())
		return err
	})
	panic(err)
}

// child is a process that is killed at the latest with the test.
type child struct{ cmd *exec.Cmd }

func start(t *testing.T, role string, env ...string) *child {
	t.Helper()
	c := &child{exec.Command(os.Args[0])}
	c.cmd.Env = append(append(os.Environ(), roleVariable+"="+role), env...)
	c.cmd.Stderr = os.Stderr
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	return c
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have been killed before
	_ = c.cmd.Wait()
}

// serverProcess starts NATS on a port, and gives a client that never gives up.
func serverProcess(t *testing.T) (restart func(), js jetstream.JetStream, url string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	ln.Close()
	dir := t.TempDir()
	running := start(t, "server", "PORT="+port, "DIR="+dir)
	url = "nats://127.0.0.1:" + port
	conn, err := nats.Connect(url, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err = jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		running.kill()
		running = start(t, "server", "PORT="+port, "DIR="+dir)
	}, js, url
}

// insist publishes until the stream has it.
func insist(ctx context.Context, t *testing.T, js jetstream.JetStream, first uint64, n int) {
	t.Helper()
	id := fmt.Sprint("n-1-", first)
	for {
		once, cancel := context.WithTimeout(ctx, time.Second)
		_, err := js.Publish(once, Subject("eu", "n"), message(t, "n", 1, first, n), jetstream.WithMsgID(id))
		cancel()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Error(err)
			return
		}
	}
}

func TestNoClickIsLostOrDoubledWhileTheServerIsKilledAgainAndAgain(t *testing.T) {
	restart, js, _ := serverProcess(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: StreamName, Subjects: []string{Subjects}}); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	const batches, size = 600, 7
	seen := make([]int, 1+batches*size)
	done := errors.New("done")
	ended := make(chan error, 1)
	go func() {
		total := 0
		ended <- Consume(ctx, js, Options{Durable: "sink", SaveEvery: 10 * time.Millisecond, Log: quiet()}, func(_ context.Context, b *Batch) error {
			for _, c := range b.Clicks {
				seen[c.Sequence]++
				total++
			}
			if total >= batches*size {
				return done
			}
			return nil
		})
	}()
	for i := range batches {
		if i%150 == 100 {
			restart()
		}
		insist(ctx, t, js, uint64(1+i*size), size)
	}
	if err := <-ended; !errors.Is(err, done) {
		t.Fatal(err)
	}
	for sequence, n := range seen {
		if sequence > 0 && n != 1 {
			t.Errorf("click %d came %d times", sequence, n)
		}
	}
}

func TestAConsumerThatIsKilledAgainAndAgainLosesNothing(t *testing.T) {
	_, js, url := serverProcess(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: StreamName, Subjects: []string{Subjects}}); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "clicks")
	consumer := start(t, "consumer", "URL="+url, "FILE="+file)
	const batches, size = 600, 7
	for i := range batches {
		if i%100 == 60 {
			time.Sleep(rand.N(50 * time.Millisecond)) // anywhere between two saves
			consumer.kill()
			consumer = start(t, "consumer", "URL="+url, "FILE="+file)
		}
		insist(ctx, t, js, uint64(1+i*size), size)
	}
	for {
		seen, lines := linesOf(t, file)
		if len(seen) == batches*size {
			if lines > 7*batches*size { // each of seven processes hands over a click once
				t.Fatalf("%d clicks came %d times", len(seen), lines)
			}
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%d of %d clicks have come", len(seen), batches*size)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// linesOf reads the numbers of a file, and fails at any other line.
func linesOf(t *testing.T, path string) (seen map[uint64]bool, lines int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		return nil, 0
	}
	defer f.Close()
	seen = map[uint64]bool{}
	for s := bufio.NewScanner(f); s.Scan(); lines++ {
		n, err := strconv.ParseUint(s.Text(), 10, 64)
		if err != nil {
			t.Fatal(s.Text())
		}
		seen[n] = true
	}
	return seen, lines
}
