package redirect

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// reports collects what a server reports.
type reports struct {
	mu   sync.Mutex
	errs []error
}

func (r *reports) add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
}

func (r *reports) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.errs)
}

// startTLS serves the samples over TLS with the certificates of a folder.
func startTLS(t testing.TB, dir string, change ...func(*Config)) (*node, *reports) {
	t.Helper()
	certs, err := OpenCerts(dir)
	if err != nil {
		t.Fatal(err)
	}
	certs.every = 2 * time.Millisecond
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &reports{}
	cfg := Config{Live: &table.Live{}, Clicks: newRecorder(t), Registerer: prometheus.NewRegistry(), Report: r.add}
	cfg.Live.Store(samples(t))
	for _, f := range change {
		f(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.ServeTLS(ctx, ln, certs, time.Second) }()
	n := &node{Server: s, addr: ln.Addr().String(), clicks: cfg.Clicks}
	n.stop = func() error {
		cancel()
		err, open := <-ended
		if open {
			close(ended)
		}
		return err
	}
	t.Cleanup(func() { _ = n.stop() })
	return n, r
}

// dialTLS opens a connection that speaks a protocol.
func (n *node) dialTLS(t testing.TB, protocol, serverName string) *client {
	t.Helper()
	nc, err := tls.Dial("tcp", n.addr, &tls.Config{InsecureSkipVerify: true, ServerName: serverName, NextProtos: []string{protocol}})
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, nc)
}

func newDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	writeCert(t, dir, "tls", "first", "go.example", "*.go.example")
	return dir
}

func TestHTTP1OverTLSIsTheSameLoop(t *testing.T) {
	n, _ := startTLS(t, newDir(t))
	for _, s := range readShapes(t) {
		if s.name == "another scheme" { // over TLS, https is the scheme
			s.want, s.open = []int{302}, true
		}
		t.Run(s.name, func(t *testing.T) { checkShape(t, n.dialTLS(t, "http/1.1", "go.example"), s, 3) })
	}
}

func TestPlainHTTPOnTheTLSListenerIsClosed(t *testing.T) {
	n, _ := startTLS(t, newDir(t), func(c *Config) { c.HeadTimeout = 100 * time.Millisecond })
	for _, first := range []string{getA, "", "\x16\x03\x01"} {
		c := n.dial(t)
		c.send(first)
		b, _ := io.ReadAll(c.r)
		if strings.Contains(string(b), "HTTP/1.1") {
			t.Errorf("%q: got %q", first, b)
		}
	}
	n.awaitOpen(0)
	if st := n.Stats(); st.HandshakeErrors != 3 {
		t.Errorf("got %+v", st)
	}
}

func TestTLSBehindTheProxyProtocol(t *testing.T) {
	n, _ := startTLS(t, newDir(t), behindProxy)
	for _, protocol := range []string{"http/1.1", "h2"} {
		raw := n.dial(t)
		nc := &joined{Conn: raw.Conn, first: []byte(v2)}
		tc := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		if protocol == "http/1.1" {
			c := newClient(t, tc)
			c.send(getA)
			c.expect(302)
			continue
		}
		hc := &http.Client{
			Transport:     &http.Transport{ForceAttemptHTTP2: true, DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return tc, nil }},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		resp, err := hc.Get("https://x.example/a")
		if err != nil || resp.StatusCode != http.StatusFound || resp.ProtoMajor != 2 {
			t.Fatalf("got %v, %v", resp, err)
		}
	}
	if got := strings.Join(clickAddresses(t, n), " "); got != "198.51.100.8 198.51.100.8" {
		t.Errorf("got clicks from %s", got)
	}
}

// joined sends first together with the first bytes that are written.
type joined struct {
	net.Conn
	first []byte
}

func (j *joined) Write(p []byte) (int, error) {
	before := len(j.first)
	n, err := j.Conn.Write(append(j.first, p...))
	j.first = nil
	return n - before, err
}

func TestDrainOverTLSAnswersWhatIsInFlight(t *testing.T) {
	n, _ := startTLS(t, newDir(t))
	hc := http2Client(t, n)
	var clients sync.WaitGroup
	stopped := make(chan struct{})
	for range 4 {
		clients.Go(func() {
			for i := 0; ; i++ {
				resp, err := hc.Get("https://x.example/a")
				if err != nil {
					select {
					case <-stopped:
					default: // refused, as nobody else listens
						var refused *net.OpError
						if !errors.As(err, &refused) || refused.Op != "dial" {
							t.Errorf("request %d: %v", i, err)
						}
					}
					return
				}
				_ = resp.Body.Close()
			}
		})
	}
	part := n.dialTLS(t, "http/1.1", "go.example")
	part.send(getA + getA[:10])
	part.expect(302)
	idle := n.dialTLS(t, "http/1.1", "go.example")
	idle.send(getA)
	idle.expect(302)
	go func() {
		idle.expectEnd()
		part.send(getA[10:])
	}()
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	close(stopped)
	if resp := part.expect(302); !resp.Close {
		t.Error("the last answer does not say Connection: close")
	}
	part.expectEnd()
	clients.Wait()
	if st := n.Stats(); st.Open != 0 {
		t.Errorf("got %+v", st)
	}
}

func TestIdleTLSConnectionsAreClosed(t *testing.T) {
	n, _ := startTLS(t, newDir(t), func(c *Config) { c.IdleTimeout = 50 * time.Millisecond })
	for _, protocol := range []string{"http/1.1", "h2"} {
		c := n.dialTLS(t, protocol, "go.example")
		if protocol == "h2" {
			c.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		}
		if _, err := io.Copy(io.Discard, bufio.NewReader(c.Conn)); err != nil {
			t.Errorf("%s: %v", protocol, err)
		}
	}
	n.awaitOpen(0)
}

// What cannot be read before the rest of its record is there, has begun all the same.
func TestHeadsOverTLSHaveTheTimeForAHead(t *testing.T) {
	const limit = 200 * time.Millisecond
	n, _ := startTLS(t, newDir(t), func(c *Config) { c.HeadTimeout = limit })
	const half = "\x17\x03\x03\x01\x00half" // a record
	tests := []struct{ name, send, wire string }{
		{"half a head", getA[:20], ""},
		{"half a record", "", half},
		{"half a record's head", "", half[:2]},
		{"half a record behind an answer", getA, half},
		{"half a record behind half a head", getA[:20], half},
		{"half a record that trickles in", "", half + strings.Repeat("x", 200)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			began := time.Now() // before the server has shaken hands, and its time begins
			c := n.dialTLS(t, "http/1.1", "go.example")
			c.send(test.send)
			if test.send == getA {
				c.expect(302)
			}
			wire, first := c.Conn.(*tls.Conn).NetConn(), min(len(test.wire), len(half))
			if _, err := io.WriteString(wire, test.wire[:first]); err != nil {
				t.Fatal(err)
			}
			go func() {
				for _, b := range []byte(test.wire[first:]) {
					if _, err := wire.Write([]byte{b}); err != nil {
						return // closed
					}
					time.Sleep(limit / 10)
				}
			}()
			if _, err := io.Copy(io.Discard, c.r); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("it is still open")
			} else if took := time.Since(began); took < limit {
				t.Errorf("it was closed after %v", took)
			}
		})
	}
	t.Cleanup(func() {
		if st := n.Stats(); st.HeadTimeouts != uint64(len(tests)) || st.IdleTimeouts != 0 {
			t.Errorf("got %+v", st)
		}
	})
}

func TestDrainOverTLSWaitsForARecordThatHasBegun(t *testing.T) {
	n, _ := startTLS(t, newDir(t))
	idle := n.dialTLS(t, "http/1.1", "go.example")
	halves := &halving{Conn: n.dial(t).Conn}
	c := newClient(t, tls.Client(halves, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}))
	for _, c := range []*client{idle, c} {
		c.send(getA)
		c.expect(302)
	}
	halves.next = true
	c.send(getA)
	time.Sleep(50 * time.Millisecond) // until the server waits for the rest
	stopped := make(chan error)
	go func() { stopped <- n.stop() }()
	idle.expectEnd()
	time.Sleep(50 * time.Millisecond) // until all know that it drains
	if _, err := halves.Conn.Write(halves.rest); err != nil {
		t.Fatal(err)
	}
	if resp := c.expect(302); !resp.Close {
		t.Error("the last answer does not say Connection: close")
	}
	c.expectEnd()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// halving keeps back half of what is written next.
type halving struct {
	net.Conn
	next bool
	rest []byte
}

func (h *halving) Write(p []byte) (int, error) {
	if !h.next {
		return h.Conn.Write(p)
	}
	h.next, h.rest = false, bytes.Clone(p[len(p)/2:])
	_, err := h.Conn.Write(p[:len(p)/2])
	return len(p), err
}

func TestAConnectionIsIdleBehindARecordOfTLSThatHasNothingToRead(t *testing.T) {
	s, err := New(Config{Live: &table.Live{}, Clicks: newRecorder(t)})
	if err != nil {
		t.Fatal(err)
	}
	c := &conn{srv: s, group: &group{srv: s}, nc: &script{}}
	c.last, _ = s.clock.read()
	for i, tt := range []struct {
		partly bool
		want   time.Duration
	}{
		{true, s.cfg.HeadTimeout}, {true, s.cfg.HeadTimeout}, {false, s.cfg.IdleTimeout}, {true, s.cfg.HeadTimeout},
	} {
		c.hear(tt.partly)
		if left := time.Duration(c.armed - c.last); left < tt.want || left > tt.want+5*time.Second/2 {
			t.Errorf("%d: it has %v, want %v", i, left, tt.want)
		}
	}
}
