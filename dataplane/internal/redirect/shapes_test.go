package redirect

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shape is one entry of testdata/requests.txt.
type shape struct {
	name    string
	request string
	want    []int
	open    bool
}

func readShapes(t testing.TB) []shape {
	t.Helper()
	f, err := os.Open("testdata/requests.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var shapes []shape
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		mark, rest, ok := strings.Cut(line, " ")
		if !ok || mark != ":" && len(shapes) == 0 {
			t.Fatalf("line %d: %q", n, line)
		}
		switch mark {
		case ":":
			shapes = append(shapes, shape{name: rest})
		case ">":
			times := 1
			if count, s, ok := strings.Cut(rest, `*"`); ok && !strings.HasPrefix(rest, `"`) {
				if times, err = strconv.Atoi(count); err != nil {
					t.Fatalf("line %d: %v", n, err)
				}
				rest = `"` + s
			}
			s, err := strconv.Unquote(rest)
			if err != nil {
				t.Fatalf("line %d: %v", n, err)
			}
			shapes[len(shapes)-1].request += strings.Repeat(s, times)
		case "<":
			fields := strings.Fields(rest)
			last := len(fields) - 1
			for _, f := range fields[:last] {
				status, err := strconv.Atoi(f)
				if err != nil {
					t.Fatalf("line %d: %v", n, err)
				}
				shapes[len(shapes)-1].want = append(shapes[len(shapes)-1].want, status)
			}
			shapes[len(shapes)-1].open = fields[last] == "open"
			if !shapes[len(shapes)-1].open && fields[last] != "closed" {
				t.Fatalf("line %d: %q", n, line)
			}
		default:
			t.Fatalf("line %d: %q", n, line)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	names := make(map[string]string)
	for _, s := range shapes {
		if other, twice := names[s.request]; twice {
			t.Fatalf("%q is %q once more", s.name, other)
		}
		names[s.request] = s.name
	}
	return shapes
}

// pipes is a listener whose connections the runtime's poller does not know.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	here, there := net.Pipe()
	p.conns <- there
	return here
}

func TestRequestShapes(t *testing.T) {
	shapes := readShapes(t)
	if len(shapes) < 100 {
		t.Fatalf("only %d shapes", len(shapes))
	}
	over := func(pieces int, dial func(testing.TB) *client) func(*testing.T) {
		return func(t *testing.T) {
			for _, s := range shapes {
				t.Run(s.name, func(t *testing.T) { checkShape(t, dial(t), s, pieces) })
			}
		}
	}
	tcp := startNode(t, time.Second)
	t.Run("at once", over(1, tcp.dial))
	t.Run("in pieces", over(64, tcp.dial))
	listener := newPipes()
	serveOn(t, listener, time.Second)
	t.Run("blocking", over(3, func(t testing.TB) *client { return newClient(t, listener.dial()) }))
}

// Who sends half a request waits for what is said of it, and sends nothing behind it.
func TestWhatIsWrongWithAHeadInPiecesIsSaidInTheTimeForAHead(t *testing.T) {
	const limit = time.Second
	n := startNode(t, time.Second, func(c *Config) { c.HeadTimeout = limit })
	clients := map[string]*client{}
	for _, s := range readShapes(t) {
		if s.open {
			continue
		}
		c, half := n.dial(t), len(s.request)/2
		clients[s.name] = c
		go func() {
			sendInPieces(c, s.request[:half], 1)
			time.Sleep(limit / 5) // until that is read
			sendInPieces(c, s.request[half:], 1)
		}()
	}
	for _, s := range readShapes(t) {
		if c := clients[s.name]; c != nil {
			t.Run(s.name, func(t *testing.T) {
				c.t = t
				checkAnswers(t, c, s)
			})
		}
	}
}

// checkShape sends the shape in so many pieces, and a good request, and checks the
// answers.
func checkShape(t *testing.T, c *client, s shape, pieces int) {
	go sendInPieces(c, s.request+getLast, pieces)
	checkAnswers(t, c, s)
}

// sendInPieces sends what the server takes: it may answer, and close, before it has
// everything.
func sendInPieces(c *client, all string, pieces int) {
	size := max(1, len(all)/pieces)
	for len(all) > 0 {
		n := min(size, len(all))
		if _, err := io.WriteString(c.Conn, all[:n]); err != nil {
			return
		}
		all = all[n:]
	}
}

func checkAnswers(t *testing.T, c *client, s shape) {
	t.Helper()
	want := s.want
	if s.open {
		want = append(want[:len(want):len(want)], 302)
	}
	for i, status := range want {
		resp, body := c.answer("GET")
		if resp == nil {
			t.Fatalf("the connection ended, want answers %v and got %d", want, i)
		}
		if resp.StatusCode != status {
			t.Fatalf("got %s %q, want answers %v and had %d", resp.Status, body, want, i)
		}
		last := i == len(want)-1
		if resp.Close != last {
			t.Errorf("answer %d of %v: Connection: close is %v", i+1, want, resp.Close)
		}
		if status == 302 && resp.Header.Get("Location") == "" || status == 405 && resp.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("answer %d lacks a header: %v", i+1, resp.Header)
		}
	}
	_, err := c.r.Peek(1)
	// A client that is refused is listened to for a moment. One that is served
	// and asked for the end is not: what it sends all the same resets its
	// connection.
	last := want[len(want)-1]
	served := last < 400 || last == 404
	if err != io.EOF && (s.open || !served || !errors.Is(err, syscall.ECONNRESET)) {
		t.Errorf("got %v, want the end of the connection", err)
	}
}
