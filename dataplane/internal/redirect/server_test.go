package redirect

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/table"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// newTable builds a table of the resources.
func newTable(t testing.TB, resources ...*linkv1.Resource) *table.Table {
	t.Helper()
	b := table.NewBuilder(len(resources))
	for _, r := range resources {
		name, err := link.Name(r)
		if err != nil {
			t.Fatal(err)
		}
		value, err := link.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Put([]byte(name), value); err != nil {
			t.Fatal(err)
		}
	}
	return b.Build(table.Version{Epoch: 7, Revision: 42})
}

func aLink(domain, path, destination string, change ...func(*linkv1.Link)) *linkv1.Resource {
	l := &linkv1.Link{Domain: domain, Path: path, Destination: destination}
	for _, f := range change {
		f(l)
	}
	return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}}
}

func aDomain(d *linkv1.Domain) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: d}}
}

// withExpired is the samples and a link that is over.
func withExpired(t testing.TB) *table.Table {
	return samples(t, aLink("*", "/old", "https://store.example/", func(l *linkv1.Link) {
		l.ExpiresAt = timestamppb.New(time.Now().Add(-time.Hour))
	}))
}

// samples is the table of most tests.
func samples(t testing.TB, more ...*linkv1.Resource) *table.Table {
	return newTable(t, append(more,
		aLink("*", "/a", "https://store.example/a?ref=1"),
		aLink("go.example", "/a", "https://store.example/go-a", func(l *linkv1.Link) { l.StatusCode = 301 }),
		aLink("go.example", "/ü", "https://store.example/umlaut"),
		aLink("*", "/last", "https://store.example/last"),
		aDomain(&linkv1.Domain{Host: "all.example", NotFound: "https://store.example/", CacheControl: "max-age=60"}),
	)...)
}

func newRecorder(t testing.TB) *click.Recorder {
	t.Helper()
	r, err := click.Open(click.Config{Level: click.Memory, Node: "n1", Region: "r1", Boot: 1, Address: click.AddressFull})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// node is a running server.
type node struct {
	*Server
	addr      string
	listening *net.TCPAddr // the same; nil when it is no TCP
	clicks    *click.Recorder
	stop      func() error // ends Serve and gives its answer
}

// startNode serves the samples on a loopback address, with what change makes
// of the settings.
func startNode(t testing.TB, drain time.Duration, change ...func(*Config)) *node {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, ln, drain, change...)
}

func serveOn(t testing.TB, ln net.Listener, drain time.Duration, change ...func(*Config)) *node {
	t.Helper()
	cfg := Config{Live: &table.Live{}, Clicks: newRecorder(t), Registerer: prometheus.NewRegistry(), Loops: testLoops}
	cfg.Live.Store(samples(t))
	for _, f := range change {
		f(&cfg)
	}
	if cfg.Loops > 0 && runtime.GOMAXPROCS(0) < cfg.Loops+2 {
		runtime.GOMAXPROCS(cfg.Loops + 2) // testing sets it anew for each run
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, ln, drain) }()
	n := &node{Server: s, addr: ln.Addr().String(), clicks: cfg.Clicks}
	n.listening, _ = ln.Addr().(*net.TCPAddr)
	n.stop = func() error {
		cancel()
		err, open := <-ended
		if open {
			close(ended)
		}
		return err
	}
	t.Cleanup(func() { _ = n.stop() })
	return n
}

// awaitOpen waits until so many connections are open: clients see the end of
// one a moment before it is counted.
func (n *node) awaitOpen(want int) {
	for n.Stats().Open != want {
		time.Sleep(time.Millisecond)
	}
}

// client is one connection to a node.
type client struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func (n *node) dial(t testing.TB) *client {
	t.Helper()
	nc, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, nc)
}

func newClient(t testing.TB, nc net.Conn) *client {
	t.Cleanup(func() { _ = nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &client{Conn: nc, t: t, r: bufio.NewReader(nc)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Fatal(err)
	}
}

// answer reads one answer to a request of the method; nil at a clean end.
func (c *client) answer(method string) (*http.Response, string) {
	c.t.Helper()
	resp, body, err := c.tryAnswer(method)
	if err == io.EOF {
		return nil, ""
	}
	if err != nil {
		c.t.Fatalf("read answer: %v", err)
	}
	return resp, body
}

// tryAnswer likewise; io.EOF at a clean end.
func (c *client) tryAnswer(method string) (*http.Response, string, error) {
	if _, err := c.r.Peek(1); err != nil {
		return nil, "", err
	}
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// expect reads an answer and checks its status.
func (c *client) expect(status int) *http.Response {
	c.t.Helper()
	resp, _ := c.answer("GET")
	if resp == nil {
		c.t.Fatalf("connection ended, want an answer with %d", status)
	}
	if resp.StatusCode != status {
		c.t.Fatalf("got %s, want %d", resp.Status, status)
	}
	return resp
}

// expectEnd checks that nothing more comes.
func (c *client) expectEnd() {
	c.t.Helper()
	if b, err := c.r.Peek(1); err == nil {
		rest, _ := c.r.Peek(c.r.Buffered())
		c.t.Fatalf("got %q..., want the end of the connection (%q)", rest, b)
	} else if err != io.EOF {
		c.t.Fatalf("got %v, want a clean end of the connection", err)
	}
}

const (
	getA    = "GET /a HTTP/1.1\r\nHost: x.example\r\n\r\n"
	getLast = "GET /last HTTP/1.1\r\nHost: x.example\r\nConnection: close\r\n\r\n"
)

func TestGoClientKeepsItsConnection(t *testing.T) {
	n := startNode(t, time.Second)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	hc := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	for _, method := range []string{"GET", "HEAD", "GET"} {
		req, err := http.NewRequest(method, "http://"+n.addr+"/a?utm=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != "https://store.example/a?ref=1" {
			t.Errorf("%s: got %s %v", method, resp.Status, resp.Header)
		}
	}
	if st := n.Stats(); st.Accepted != 1 || st.Redirects != 3 {
		t.Errorf("got %d connections and %d redirects, want 1 and 3", st.Accepted, st.Redirects)
	}
	resp, err := hc.Post("http://"+n.addr+"/a", "text/plain", strings.NewReader(strings.Repeat("x", 100_000)))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != "GET, HEAD" || !resp.Close {
		t.Errorf("POST: got %s %v", resp.Status, resp.Header)
	}
}

func TestPipelinedRequestsAreAnsweredInOrderInOneWrite(t *testing.T) {
	n := startNode(t, time.Second)
	c := n.dial(t)
	c.send(strings.Repeat(getA+"GET /none HTTP/1.1\r\nHost: x\r\n\r\n", 50) + "GET /a HT")
	c.expect(302)
	buffered := c.r.Buffered()
	for i := 1; i < 100; i++ {
		c.expect([]int{302, 404}[i%2])
	}
	if buffered < 1000 {
		t.Errorf("%d bytes came with the first answer, want those of many", buffered)
	}
	c.send("TP/1.1\r\nHost: x\r\n\r\n")
	c.expect(302)
}

// narrow is a listener whose sockets take little at a time.
type narrow struct{ net.Listener }

func (l narrow) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err == nil {
		err = nc.(*net.TCPConn).SetWriteBuffer(4 << 10)
	}
	return nc, err
}

func TestMoreAnswersThanTheSocketTakesAllArrive(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := serveOn(t, narrow{ln}, time.Second)
	c := n.dial(t)
	if err := c.Conn.(*net.TCPConn).SetReadBuffer(16 << 10); err != nil {
		t.Fatal(err)
	}
	const requests = 300
	c.send(strings.Repeat(getA, requests-1) + getLast)
	for range requests {
		c.expect(302)
	}
	c.expectEnd()
}

func TestHalfClosedClientGetsItsAnswersAndTheEnd(t *testing.T) {
	n := startNode(t, time.Second, func(c *Config) { c.lookAgain = 20 * time.Millisecond })
	for _, before := range []int{0, 1, 10} { // requests
		var clients sync.WaitGroup
		for range 30 {
			c := n.dial(t)
			clients.Go(func() {
				for range before {
					c.send(getA)
					c.expect(302)
				}
				c.send(getA + getA)
				if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
					t.Error(err)
				}
				c.expect(302)
				c.expect(302)
				c.expectEnd()
			})
		}
		clients.Wait()
	}
	if st := n.Stats(); st.IdleTimeouts != 0 {
		t.Errorf("%d connections were closed as idle, not as ended", st.IdleTimeouts)
	}
}

func TestSettingsThatCannotWorkAreRefused(t *testing.T) {
	live, rec := &table.Live{}, newRecorder(t)
	for name, cfg := range map[string]Config{
		"no table":         {Clicks: rec},
		"no recorder":      {Live: live},
		"tiny head":        {Live: live, Clicks: rec, MaxHead: 100},
		"negative timeout": {Live: live, Clicks: rec, HeadTimeout: -1},
		"negative limit":   {Live: live, Clicks: rec, MaxConns: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	registry := prometheus.NewRegistry()
	for i, want := range []bool{true, false} {
		if _, err := New(Config{Live: live, Clicks: rec, Registerer: registry}); (err == nil) != want {
			t.Errorf("registration %d: %v", i, err)
		}
	}
}

func TestServeGivesTheErrorOfABrokenListener(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := startNode(t, time.Second)
	_ = ln.Close()
	if err := n.Serve(context.Background(), ln, time.Second); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestMetricsNameEveryOutcome(t *testing.T) {
	registry := prometheus.NewRegistry()
	n := startNode(t, time.Second, func(c *Config) { c.Registerer = registry })
	c := n.dial(t)
	c.send(getA + "GET /none HTTP/1.1\r\nHost: x\r\n\r\n" + "BREW /a HTTP/1.1\r\nHost: x\r\n\r\n")
	c.expect(302)
	c.expect(404)
	c.expect(405)
	c.expectEnd()
	n.Beside(func(func() bool) {}) // refused, without a loop and with two
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := f.GetName()
			for _, l := range m.GetLabel() {
				key += " " + l.GetValue()
			}
			got[key] = m.GetCounter().GetValue()
		}
	}
	for key, want := range map[string]float64{
		"aff_redirect_requests_total destination":             1,
		"aff_redirect_requests_total not_found_page":          1,
		"aff_redirect_requests_total gone_page":               0,
		"aff_redirect_refused_total method":                   1,
		"aff_redirect_refused_total body":                     0,
		"aff_redirect_connections_accepted_total":             1,
		"aff_redirect_connections_dropped_total head_timeout": 0,
		"aff_redirect_errands_total run":                      0,
		"aff_redirect_errands_total refused":                  1,
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s is %v (present %v), want %v", key, v, ok, want)
		}
	}
}
