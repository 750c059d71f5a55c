package redirect

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// makeCert makes a certificate for names, as PEM. Its common name tells
// certificates apart.
func makeCert(t testing.TB, commonName string, names ...string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: commonName},
		DNSNames:     names,
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}

// writeCert writes a pair of files.
func writeCert(t testing.TB, dir, name, commonName string, names ...string) {
	t.Helper()
	cert, key := makeCert(t, commonName, names...)
	write(t, filepath.Join(dir, name+".crt"), cert)
	write(t, filepath.Join(dir, name+".key"), key)
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

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

// served gives the common name of the certificate that is served for a host.
func (n *node) served(t testing.TB, host string) string {
	t.Helper()
	c := n.dialTLS(t, "http/1.1", host)
	defer c.Close()
	return c.Conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
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

func newDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	writeCert(t, dir, "tls", "first", "go.example", "*.go.example")
	return dir
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

func TestCertificateIsChosenByName(t *testing.T) {
	dir := t.TempDir()
	writeCert(t, dir, "a", "default", "a.example")
	writeCert(t, dir, "b", "exact", "x.b.example", "B.example")
	writeCert(t, dir, "c", "wildcard", "*.b.example")
	writeCert(t, dir, ".hidden", "hidden", "h.example")
	write(t, filepath.Join(dir, "README.md"), []byte("not a certificate"))
	n, _ := startTLS(t, dir)
	for host, want := range map[string]string{
		"a.example": "default", "b.example": "exact", "X.b.Example": "exact", "y.b.example": "wildcard",
		"z.y.b.example": "default", "other.example": "default", "h.example": "default", "": "default",
	} {
		if got := n.served(t, host); got != want {
			t.Errorf("%q: got the certificate %q, want %q", host, got, want)
		}
	}
	if st := n.Stats(); st.Certificates != 3 || st.BrokenCertificates != 0 || time.Until(st.CertificatesUntil) > time.Hour {
		t.Errorf("got %+v", st)
	}
}

// becomes waits until a host has a certificate.
func (n *node) becomes(t testing.TB, host, want string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		got := n.served(t, host)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has the certificate %q, want %q", host, got, want)
		}
	}
}

func TestCertificatesAreReadAgainWhenTheyChange(t *testing.T) {
	dir := newDir(t)
	n, reported := startTLS(t, dir)
	c := n.dialTLS(t, "http/1.1", "go.example")
	c.send(getA)
	c.expect(302)

	writeCert(t, dir, "tls", "second", "go.example")
	n.becomes(t, "go.example", "second")

	// A new pair, and one that is gone.
	writeCert(t, dir, "more", "third", "more.example")
	n.becomes(t, "more.example", "third")
	for _, ext := range extensions {
		if err := os.Remove(filepath.Join(dir, "more"+ext)); err != nil {
			t.Fatal(err)
		}
	}
	n.becomes(t, "more.example", "second")

	before := reported.count() // of files that were half written, perhaps
	// A broken pair keeps what was good, and is reported once.
	write(t, filepath.Join(dir, "new"), []byte("broken")) // renamed: it must not be seen half written
	if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "tls.crt")); err != nil {
		t.Fatal(err)
	}
	for reported.count() == before {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond) // ten more looks
	if got := n.served(t, "go.example"); got != "second" {
		t.Errorf("got the certificate %q, want %q", got, "second")
	}
	if st := n.Stats(); reported.count() != before+1 || st.CertificateErrors != uint64(before+1) || st.BrokenCertificates != 1 || st.Certificates != 1 {
		t.Errorf("got %d reports, want %d; %+v", reported.count(), before+1, st)
	}
	writeCert(t, dir, "tls", "fourth", "go.example")
	n.becomes(t, "go.example", "fourth")
	if st := n.Stats(); st.BrokenCertificates != 0 {
		t.Errorf("got %+v", st)
	}

	// What is served does not go away with the folder.
	before = reported.count()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for reported.count() == before {
		time.Sleep(time.Millisecond)
	}
	if got := n.served(t, "go.example"); got != "fourth" {
		t.Errorf("got the certificate %q, want %q", got, "fourth")
	}
	c.send(getA)
	c.expect(302)
}

// TestCertificatesBehindSwappedLinks does what Kubernetes does with a secret.
func TestCertificatesBehindSwappedLinks(t *testing.T) {
	dir := t.TempDir()
	put := func(version, commonName string) {
		data := filepath.Join(dir, "..2026_"+version)
		if err := os.Mkdir(data, 0o755); err != nil {
			t.Fatal(err)
		}
		writeCert(t, data, "tls", commonName, "go.example")
		if err := os.Symlink(filepath.Base(data), filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	put("1", "first")
	for _, name := range []string{"tls.crt", "tls.key"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	n, reported := startTLS(t, dir)
	if got := n.served(t, "go.example"); got != "first" {
		t.Fatalf("got %q", got)
	}
	put("2", "second")
	if err := os.RemoveAll(filepath.Join(dir, "..2026_1")); err != nil {
		t.Fatal(err)
	}
	n.becomes(t, "go.example", "second")
	// A look that saw one file before the swap and one after it is put right by
	// the next.
	if reported.count() > 1 {
		t.Errorf("reported: %v", reported.errs)
	}
}

func TestFolderWithABrokenPairServesTheOthersAndReportsIt(t *testing.T) {
	dir := newDir(t)
	cert, _ := makeCert(t, "x", "x.example")
	write(t, filepath.Join(dir, "alone.crt"), cert)
	n, reported := startTLS(t, dir)
	n.becomes(t, "x.example", "first")
	for reported.count() == 0 {
		time.Sleep(time.Millisecond)
	}
	if !strings.Contains(reported.errs[0].Error(), "alone") {
		t.Errorf("got %v", reported.errs)
	}
	for _, name := range []string{"empty", "broken"} {
		dir := t.TempDir()
		if name == "broken" {
			write(t, filepath.Join(dir, "x.crt"), []byte("x"))
		}
		if _, err := OpenCerts(dir); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: got %v", name, err)
		}
	}
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
