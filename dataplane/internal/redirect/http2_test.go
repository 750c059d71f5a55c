package redirect

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// What else these tests speak of (RFC 9113, section 6).
const (
	frameReset, frameSettings = 3, 4

	endStream     = 1 // flag of HEADERS
	initialWindow = 4 // of SETTINGS
)

func frame(kind, flags byte, stream uint32, payload string) string {
	b := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return string(binary.BigEndian.AppendUint32(b, stream)) + payload
}

// readFrame gives the next frame's kind.
func readFrame(r *bufio.Reader) (kind byte, stream uint32, err error) {
	var head [9]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, err
	}
	_, err = r.Discard(int(head[0])<<16 | int(head[1])<<8 | int(head[2]))
	return head[3], binary.BigEndian.Uint32(head[5:]), err
}

// http2Client asks the node over HTTP/2, whatever host the URL names.
func http2Client(t testing.TB, n *node) *http.Client {
	transport := &http.Transport{
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", n.addr)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

func TestHTTP2AnswersAreThoseOfHTTP1(t *testing.T) {
	expired := withExpired(t)
	secure, _ := startTLS(t, newDir(t), func(c *Config) { c.Live.Store(expired) })
	plain := startNode(t, time.Second, func(c *Config) { c.Live.Store(expired) })
	hc := http2Client(t, secure)
	for _, tt := range []struct{ method, host, path string }{
		{"GET", "x.example", "/a"},
		{"HEAD", "x.example", "/a"},
		{"GET", "go.example", "/a?q=1"},
		{"GET", "GO.example:443", "/a"},
		{"GET", "go.example", "/%C3%bC"},
		{"GET", "all.example", "/none"},
		{"GET", "x.example", "/none"},
		{"HEAD", "x.example", "/none"},
		{"GET", "x.example", "/old"},
		{"GET", "bad_host!", "/a"},
		{"GET", "x.example:99999", "/a"},
		{"OPTIONS", "x.example", "/a"},
		{"DELETE", "x.example", "/a"},
	} {
		c := plain.dial(t)
		c.send(tt.method + " " + tt.path + " HTTP/1.1\r\nHost: " + tt.host + "\r\n\r\n")
		want, wantBody := c.answer(tt.method)

		req, err := http.NewRequest(tt.method, "https://x.example"+tt.path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = tt.host
		got, err := hc.Do(req)
		if err != nil {
			t.Errorf("%v: %v", tt, err)
			continue
		}
		body, err := io.ReadAll(got.Body)
		if err != nil || got.ProtoMajor != 2 || got.StatusCode != want.StatusCode || string(body) != wantBody {
			t.Errorf("%v: got %s %s %q, want %s %q", tt, got.Proto, got.Status, body, want.Status, wantBody)
		}
		for _, name := range []string{"Location", "Cache-Control", "Content-Type", "Content-Length", "Allow", "Retry-After"} {
			if g, w := got.Header.Get(name), want.Header.Get(name); g != w {
				t.Errorf("%v: %s is %q, want %q", tt, name, g, w)
			}
		}
		if date, err := http.ParseTime(got.Header.Get("Date")); err != nil || time.Since(date) > 20*time.Second {
			t.Errorf("%v: Date %q", tt, got.Header.Get("Date"))
		}
	}
	a, b := secure.Stats(), plain.Stats()
	if a.Redirects != b.Redirects || a.NotFound != b.NotFound || a.Gone != b.Gone || a.Refused != b.Refused {
		t.Errorf("HTTP/2 counted %+v, HTTP/1 %+v", a, b)
	}
	if g, w := clickAddresses(t, secure), clickAddresses(t, plain); strings.Join(g, " ") != strings.Join(w, " ") {
		t.Errorf("clicks came from %v, want %v", g, w)
	}
}

func TestHTTP2WithoutATableIsUnavailable(t *testing.T) {
	n, _ := startTLS(t, newDir(t), func(c *Config) { c.Live = &table.Live{} })
	resp, err := http2Client(t, n).Get("https://x.example/a")
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("got %v, %v", resp, err)
	}
}

func TestHTTP2BodiesAreRefusedAndTheConnectionIsClosed(t *testing.T) {
	n, _ := startTLS(t, newDir(t))
	hc := http2Client(t, n)
	for i, tt := range []struct {
		method string
		length int64
		status int
	}{
		{"POST", 1000, 405},
		{"GET", 1000, 400},
		{"GET", -1, 400},
	} {
		req, err := http.NewRequest(tt.method, "https://x.example/a", strings.NewReader(strings.Repeat("x", 1000)))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = tt.length
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatalf("%+v: %v", tt, err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != tt.status {
			t.Errorf("%+v: got %s", tt, resp.Status)
		}
		resp, err = hc.Get("https://x.example/a")
		if err != nil || resp.StatusCode != http.StatusFound {
			t.Fatalf("the next request: %v, %v", resp, err)
		}
		if st := n.Stats(); st.Accepted < uint64(i+2) {
			t.Errorf("%+v: %d connections, want a new one", tt, st.Accepted)
		}
	}
	if st := n.Stats(); st.Refused != 3 || st.Refusals["body"] != 2 || st.Refusals["method"] != 1 {
		t.Errorf("got %+v", st.Refusals)
	}
}

func TestHTTP2HeadsAreLimited(t *testing.T) {
	n, _ := startTLS(t, newDir(t), func(c *Config) { c.MaxHead = 2 << 10 })
	req, err := http.NewRequest(http.MethodGet, "https://x.example/a", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Long", strings.Repeat("x", 20<<10))
	resp, err := http2Client(t, n).Do(req)
	if err == nil && resp.StatusCode < 400 {
		t.Errorf("got %s", resp.Status)
	}
	if st := n.Stats(); st.Redirects > 0 {
		t.Errorf("got %+v", st)
	}
}

func TestWhatHTTP2LetsPassAndHTTP1RefusesIsRefused(t *testing.T) {
	n, _ := startTLS(t, newDir(t))
	const kelvin = "\u212a" // Unicode folds it to k
	for _, tt := range []struct {
		name, method, host, path string
		header                   [2]string
		want, allow              string
	}{
		// net/http has an answer of its own, which nobody counts.
		{"OPTIONS of the server", "OPTIONS", "x.example", "*", [2]string{}, "405", "GET, HEAD"},
		{"GET of the server", "GET", "x.example", "*", [2]string{}, "400", ""},
		{"another host", "GET", "kite.example", "/a", [2]string{"host", kelvin + "ite.example"}, "400", ""},
		{"the same host", "GET", "kite.example", "/a", [2]string{"host", "KITE.example"}, "302", ""},
	} {
		c := n.dialTLS(t, "h2", "go.example")
		c.send(preface + frame(frameSettings, 0, 0, "") + frame(frameHeaders, endStream|endHeaders, 1,
			packed(t, ":method", tt.method, ":scheme", "https", ":authority", tt.host, ":path", tt.path, tt.header[0], tt.header[1])))
		if got := c.fields(1); got[":status"] != tt.want || got["allow"] != tt.allow {
			t.Errorf("%s: got %v, want %s", tt.name, got, tt.want)
		}
	}
	if st := n.Stats(); st.Refused != 3 || st.Refusals["method"] != 1 || st.Refusals["target"] != 1 || st.Refusals["host"] != 1 {
		t.Errorf("got %+v", st.Refusals)
	}
}

// packed makes a head of names and values. Those without a name are left out.
func packed(t *testing.T, fields ...string) string {
	t.Helper()
	var b bytes.Buffer
	to := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		if fields[i] == "" {
			continue
		}
		if err := to.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// fields gives those of the first head that comes on a stream of HTTP/2.
func (c *client) fields(stream uint32) map[string]string {
	c.t.Helper()
	frames := h2.NewFramer(nil, c.r)
	frames.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := frames.ReadFrame()
		if err != nil {
			c.t.Fatal(err)
		}
		if f, ok := f.(*h2.MetaHeadersFrame); ok && f.StreamID == stream {
			all := map[string]string{}
			for _, field := range f.Fields {
				all[field.Name] = field.Value
			}
			return all
		}
	}
}

// An answer with a body waits for the client's window, and with it a goroutine, the
// connection, and the end of the process.
func TestAStreamWhoseClientOpensNoWindowEnds(t *testing.T) {
	n, _ := startTLS(t, newDir(t), func(c *Config) { c.WriteTimeout, c.IdleTimeout = 100*time.Millisecond, 200*time.Millisecond })
	c := n.dialTLS(t, "h2", "go.example")
	c.send(preface + frame(frameSettings, 0, 0, "\x00"+string(rune(initialWindow))+"\x00\x00\x00\x00") +
		frame(frameHeaders, endStream|endHeaders, 1, getNone))
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answered, ended := false, false
	for {
		kind, stream, err := readFrame(c.r)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection is still open")
			}
			break
		}
		answered = answered || kind == frameHeaders && stream == 1
		ended = ended || kind == frameReset && stream == 1
	}
	if !answered || !ended {
		t.Errorf("answered: %t, ended: %t", answered, ended)
	}
	n.awaitOpen(0)
}

const (
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	getNone = "\x82\x87\x01\x09x.example\x04\x05/none" // GET, https, authority, path
)

func TestHeadsOverHTTP2HaveTheTimeForAHead(t *testing.T) {
	const limit = 200 * time.Millisecond
	n, _ := startTLS(t, newDir(t), func(c *Config) { c.HeadTimeout = limit })
	hello := preface + frame(frameSettings, 0, 0, "")
	for _, test := range []struct{ name, send, wire string }{
		{"nothing", "", ""},
		{"half a preface", preface[:20], ""},
		{"half a frame's head", hello + "\x00\x00", ""},
		{"half a frame", hello + frame(frameHeaders, endStream|endHeaders, 1, getNone)[:12], ""},
		{"a head that goes on", hello + frame(frameHeaders, endStream, 1, getNone[:5]), ""},
		{"half a frame of that", hello + frame(frameHeaders, endStream, 1, getNone[:5]) + frame(frameContinuation, 0, 1, getNone[5:])[:11], ""},
		{"half a record of TLS", hello, "\x17\x03\x03\x01\x00half"},
		{"half a record's head", hello, "\x17\x03"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			began := time.Now() // before the server has shaken hands, and its time begins
			c := n.dialTLS(t, "h2", "go.example")
			c.send(test.send)
			if _, err := io.WriteString(c.Conn.(*tls.Conn).NetConn(), test.wire); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(began.Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, c.r); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("it is still open")
			} else if took := time.Since(began); took < limit {
				t.Errorf("it was closed after %v", took)
			}
		})
	}
}

// Each byte of a head comes in time, and yet the head does not.
func TestAHeadOverHTTP2ThatTricklesInIsNotWaitedFor(t *testing.T) {
	const limit = 300 * time.Millisecond
	n, _ := startTLS(t, newDir(t), func(c *Config) { c.HeadTimeout = limit })
	c := n.dialTLS(t, "h2", "go.example")
	c.send(preface + frame(frameSettings, 0, 0, ""))
	head := frame(frameHeaders, endStream|endHeaders, 1, getNone)
	for i := range head {
		if _, err := io.WriteString(c.Conn, head[i:i+1]); err != nil {
			break // closed
		}
		time.Sleep(limit / 10)
	}
	n.awaitOpen(0)
	if st := n.Stats(); st.Requests() != 0 {
		t.Errorf("%d requests were answered", st.Requests())
	}
}

// Whoever is between two heads is idle, and may be for longer than a head may take.
func TestAConnectionOfHTTP2IdlesForTheIdleTime(t *testing.T) {
	const limit = time.Second
	n, _ := startTLS(t, newDir(t), func(c *Config) { c.HeadTimeout, c.IdleTimeout = limit, 4*limit })
	c := n.dialTLS(t, "h2", "go.example")
	c.send(preface + frame(frameSettings, 0, 0, ""))
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for stream := range uint32(2) {
		time.Sleep(limit * 3 / 2)
		stream = 2*stream + 1
		// A head in two frames, which come one after the other.
		c.send(frame(frameHeaders, endStream, stream, getNone[:5]))
		time.Sleep(limit / 100)
		c.send(frame(frameContinuation, endHeaders, stream, getNone[5:]))
		for kind, of := byte(0), uint32(0); kind != frameHeaders || of != stream; {
			var err error
			if kind, of, err = readFrame(c.r); err != nil {
				t.Fatalf("stream %d: %v after %v", stream, err, time.Since(began))
			}
		}
	}
	last := time.Now()
	if _, err := io.Copy(io.Discard, c.r); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("it is still open")
	} else if idle := time.Since(last); idle < 2*limit {
		t.Errorf("it was closed after %v", idle)
	}
	n.awaitOpen(0)
}

// A suite that RFC 9113 prohibits (appendix A) carries HTTP/1, and no HTTP/2.
func TestHTTP2IsNotServedOverAProhibitedCipherSuite(t *testing.T) {
	n, _ := startTLS(t, newDir(t))
	for suite, served := range map[uint16]bool{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA:          false,
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256:       true,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: true,
	} {
		nc, err := tls.Dial("tcp", n.addr, &tls.Config{
			InsecureSkipVerify: true, ServerName: "go.example", NextProtos: []string{"h2"},
			MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite},
		})
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, nc)
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c.Conn, preface+frame(frameSettings, 0, 0, "")+frame(frameHeaders, endStream|endHeaders, 1, getNone)) // it may be closed
		answered := false
		for !answered {
			kind, _, err := readFrame(c.r)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: it is still open", tls.CipherSuiteName(suite))
			}
			if err != nil {
				break
			}
			answered = kind == frameHeaders
		}
		if answered != served {
			t.Errorf("%s: answered: %t", tls.CipherSuiteName(suite), answered)
		}
		_ = c.Close()
	}
	n.awaitOpen(0)
}
