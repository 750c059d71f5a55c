package redirect

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/click"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// roundTrips gives a function that sends the request on one connection and
// reads its whole answer, without an allocation of its own. What comes first is
// sent once.
func roundTrips(t testing.TB, n *node, request string, first ...string) func() {
	t.Helper()
	return roundTripsOf(t, n, 1, request, first...)
}

// roundTripsOf does so on several connections at once.
func roundTripsOf(t testing.TB, n *node, conns int, request string, first ...string) func() {
	t.Helper()
	probe := n.dial(t)
	probe.send(strings.Join(first, "") + request)
	if err := probe.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(probe.r)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]net.Conn, conns)
	for i := range all {
		nc, err := net.Dial("tcp", n.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		if _, err := io.WriteString(nc, strings.Join(first, "")); err != nil {
			t.Fatal(err)
		}
		all[i] = nc
	}
	out, in := []byte(request), make([]byte, len(answer))
	return func() {
		for _, nc := range all {
			if _, err := nc.Write(out); err != nil {
				t.Fatal(err)
			}
		}
		for _, nc := range all {
			if _, err := io.ReadFull(nc, in); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// benchNode serves the links of the benchmarks, with clicks kept on disk as a
// node does by default.
func benchNode(t testing.TB, change ...func(*Config)) *node {
	links := []*linkv1.Resource{aLink("*", "/go/summer-deal-2026", "https://store.example.com/p/123456?ref=aff_01")}
	for i := range 1000 {
		links = append(links, aLink("*", fmt.Sprintf("/go/%d", i), "https://store.example.com/"))
	}
	links = append(links, aLink("*", "/shop/*", "https://store.example.com/p?x=1"))
	spool, err := click.Open(click.Config{Dir: t.TempDir(), Node: "n1", Region: "r1", Boot: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = spool.Close() })
	return startNode(t, time.Second, append(change, func(c *Config) {
		c.Live.Store(newTable(t, links...))
		c.Clicks = spool
	})...)
}

func TestRequestsAllocateNothing(t *testing.T) {
	n := benchNode(t)
	for name, request := range map[string]string{
		"redirect":      browser,
		"HEAD":          "HEAD" + browser[3:],
		"not found":     "GET /none HTTP/1.1\r\nHost: h\r\n\r\n",
		"absolute form": "GET http://h/go/summer-deal-2026 HTTP/1.1\r\nHost: h\r\n\r\n",
		"escaped path":  "GET /go/summer%2Ddeal-2026 HTTP/1.1\r\nHost: h\r\n\r\n",
		"prefix link":   "GET /shop/shoes/%C3%A9%20 HTTP/1.1\r\nHost: h\r\n\r\n",
		"HTTP/1.0":      "GET /go/1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
	} {
		allocateNothing(t, name, 1, roundTrips(t, n, request))
	}
	for _, tt := range []struct{ conns, pipelined int }{{1, 20}, {1, 25}, {1, 50}, {1, 100}, {16, 1}, {16, 2}, {16, 50}} {
		name := fmt.Sprintf("%d connections, %d pipelined", tt.conns, tt.pipelined)
		allocateNothing(t, name, tt.conns*tt.pipelined, roundTripsOf(t, n, tt.conns, strings.Repeat(browser, tt.pipelined)))
	}
	if st := n.Stats(); st.Refused != 0 || st.Redirects == 0 {
		t.Errorf("got %+v", st)
	}
}

// BenchmarkRoundTrip is one connection with one request at a time: the loop
// with both ends' system calls and wake-ups.
func BenchmarkRoundTrip(b *testing.B) {
	trip := roundTrips(b, benchNode(b), browser)
	b.ReportAllocs()
	for b.Loop() {
		trip()
	}
}

// BenchmarkPipelined is the loop with the system calls shared by 20 requests;
// the time is per request.
func BenchmarkPipelined(b *testing.B) {
	trip := roundTrips(b, benchNode(b), strings.Repeat(browser, 20))
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += 20 {
		trip()
	}
}

// BenchmarkConnections is 64 connections that each have a request under way.
func BenchmarkConnections(b *testing.B) {
	n := benchNode(b)
	const conns = 64
	var clients sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range conns {
		trip := roundTrips(b, n, browser)
		clients.Go(func() {
			for range b.N/conns + 1 {
				trip()
			}
		})
	}
	clients.Wait()
}

// discard is a connection that takes every answer at once.
type discard struct{ net.Conn }

func (discard) Write(p []byte) (int, error)      { return len(p), nil }
func (discard) SetWriteDeadline(time.Time) error { return nil }

// BenchmarkDecide is the work between the two system calls of a request.
func BenchmarkDecide(b *testing.B) {
	n := benchNode(b)
	c := &conn{srv: n.Server, group: &group{srv: n.Server}, socket: discard{}, nc: discard{}}
	w := n.newWork().(*work)
	size := copy(w.in, browser)
	b.ReportAllocs()
	for b.Loop() {
		if left := c.answer(w, 0, 0, size, false); left != 0 || c.end != open {
			b.Fatal("not answered")
		}
	}
}

// BenchmarkIdleConnection says what a connection costs that waits: bytes of
// heap and stack for each, the client's end included.
func BenchmarkIdleConnection(b *testing.B) {
	n := benchNode(b)
	const conns = 1000
	before := inUse()
	var held []net.Conn
	for range conns {
		nc, err := net.Dial("tcp", n.addr)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		held = append(held, nc)
	}
	buf := make([]byte, 1<<10)
	for _, nc := range held {
		if _, err := io.WriteString(nc, browser); err != nil {
			b.Fatal(err)
		}
		if _, err := nc.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		runtime.Gosched()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(inUse()-before)/conns, "B/conn")
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
