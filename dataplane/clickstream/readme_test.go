package clickstream

import (
	"bufio"
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/snappy"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/internal/natstest"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

const clickREADME = "../../proto/aff/click/v1/README.md"

// The Python of the README uncompresses what nodes send, and long literals and
// far copies as well.
func TestThePythonOfTheREADMEUncompresses(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	text, err := os.ReadFile(clickREADME)
	if err != nil {
		t.Fatal(err)
	}
	function := regexp.MustCompile(`(?s)def uncompress\(block\):.*?return bytes\(out\)\n`).Find(text)
	if function == nil {
		t.Fatal("the README has no such function")
	}
	program := "import sys\n" + string(function) + "sys.stdout.buffer.write(uncompress(sys.stdin.buffer.read()))\n"
	random := make([]byte, 80_000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(random)
	for name, want := range map[string][]byte{
		"a batch":  browserBatch(t, 1, 1, 600),
		"literals": random,
		"far":      append(append(bytes.Clone(random[:40_000]), make([]byte, 300)...), random[:40_000]...),
		"nothing":  {},
	} {
		cmd := exec.Command(python, "-c", program)
		cmd.Stdin = bytes.NewReader(snappy.Encode(nil, want))
		got, err := cmd.Output()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, %d bytes of %d", name, err, len(got), len(want))
		}
	}
}

// The Python of the README, as it stands there, gets each click once, in the order
// of the stream or not, and sees gaps; also when it takes over from a process that
// was killed, whose messages come behind later ones. Of the libraries that it needs,
// testdata has as much as it uses.
func TestThePythonOfTheREADMELosesAndDoublesNothing(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("python3 is not installed")
	}
	s := natstest.Start(t)
	js := s.JetStream()
	publish := stream(t, js)
	const example = "example"
	cons, err := js.CreateConsumer(t.Context(), StreamName, jetstream.ConsumerConfig{
		Durable: example, AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	clicks := func(first uint64, n int) []byte {
		return message(t, "n", 0xfedcba9876543210, first, n, func(b *clickv1.Batch) {
			b.BaseTimeUs, b.Strings = int64(first), append(b.Strings, []byte("go.example.com/a"), []byte("aff_01"), []byte("bad \xff"))
			for _, c := range b.Clicks {
				c.Link, c.Affiliate, c.UserAgent = 1, 2, 3
			}
		})
	}
	subject := Subject("eu", "n")
	publish(subject, clicks(1001, 16))
	held, err := cons.Next() // by a process that is killed now
	if err != nil {
		t.Fatal(err)
	}
	publish(subject, packed(t, clicks(1017, 4)))

	p := startREADME(t, s.URL())
	p.want(1017, 1018, 1019, 1020)
	if err := held.Nak(); err != nil { // the server does not wait for it any more
		t.Fatal(err)
	}
	p.want(span(1001, 1016)...)
	publish(subject, clicks(1010, 15))    // up to 1020 once more
	publish(subject, clicks(1030, 2))     // what is between comes late, and not in order
	publish(subject, clicks(1027, 5))     // 1030 and 1031 once more
	publish(subject, clicks(1025, 0))     // nothing
	publish(subject, clicks(1020, 7))     // up to 1024 once more
	publish(subject, clicks(1001, 1_000)) // all of it once more, and new ones
	p.want(append(span(1021, 1024), 1030, 1031, 1027, 1028, 1029, 1025, 1026)...)
	p.want(span(1032, 2000)...)
	if want := []string{"gap: n fedcba9876543210 1025 to 1029"}; !slices.Equal(p.gaps, want) {
		t.Errorf("gaps: %q, want %q", p.gaps, want)
	}
	acknowledged(t, cons)
	p.kill()

	publish(subject, clicks(2001, 2))
	p = startREADME(t, s.URL())
	p.want(2001, 2002)
	acknowledged(t, cons)
}

func span(from, to int) (all []int) {
	for n := from; n <= to; n++ {
		all = append(all, n)
	}
	return all
}

// acknowledged waits until nothing is pending.
func acknowledged(t *testing.T, cons jetstream.Consumer) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		info, err := cons.Info(t.Context())
		switch {
		case err != nil:
			t.Fatal(err)
		case info.NumAckPending == 0 && info.NumPending == 0:
			return
		case time.Now().After(deadline):
			t.Fatalf("%+v", info)
		}
	}
}

// readmeProcess is the Python of the README.
type readmeProcess struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	gaps  []string
}

func startREADME(t *testing.T, url string) *readmeProcess {
	t.Helper()
	text, err := os.ReadFile(clickREADME)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```python\n(.*?)```").FindSubmatch(text)
	if block == nil || !bytes.Contains(block[1], []byte("nats://127.0.0.1:4222")) {
		t.Fatal("the README has no such program")
	}
	proto, err := filepath.Abs("../../proto/aff/click/v1/click.proto")
	if err != nil {
		t.Fatal(err)
	}
	libraries, err := filepath.Abs("testdata/python")
	if err != nil {
		t.Fatal(err)
	}
	p := &readmeProcess{t: t, lines: make(chan string, 10_000)}
	p.cmd = exec.Command("python3", "-u", "-c", strings.ReplaceAll(string(block[1]), "nats://127.0.0.1:4222", url))
	p.cmd.Env = append(os.Environ(), "PYTHONPATH="+libraries, "PYTHONDONTWRITEBYTECODE=1", "CLICK_PROTO="+proto)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	go func() {
		defer close(p.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.lines <- lines.Text()
		}
	}()
	return p
}

func (p *readmeProcess) kill() {
	_ = p.cmd.Process.Kill() // it may have been killed before
	for range p.lines {      // all is read before Wait closes it
	}
	_ = p.cmd.Wait()
}

// want waits for the clicks that come next, which have their sequence as time.
func (p *readmeProcess) want(sequences ...int) {
	p.t.Helper()
	timeout := time.After(30 * time.Second)
	for at := 0; at < len(sequences); {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatal("the program has ended")
			}
			if strings.HasPrefix(line, "gap: ") {
				p.gaps = append(p.gaps, line)
				continue
			}
			if want := strconv.Itoa(sequences[at]) + " go.example.com/a aff_01 302 bad \ufffd"; line != want {
				p.t.Fatalf("%q, want %q", line, want)
			}
			at++
		case <-timeout:
			p.t.Fatalf("click %d does not come", sequences[at])
		}
	}
}
