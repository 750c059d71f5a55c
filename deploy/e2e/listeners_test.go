package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/clickstream"
)

// certs is a folder with a certificate for any name.
func certs(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"e2e"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{"e2e.crt": {Type: "CERTIFICATE", Bytes: cert}, "e2e.key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// freeAddr is an address that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// startListening starts a fleet with a node that has more flags, and a link /a.
func startListening(t *testing.T, flags ...string) *fleet {
	t.Helper()
	f := newFleet(t, 1, 1)
	f.NodeArgs = flags
	f.must(f.StartAll())
	f.do("link", "create", "/a", "https://store.com/a", "--wait")
	return f
}

// closes says what comes until the node closes a connection on which text was sent:
// long before the time that it waits by default.
func closes(t *testing.T, addr, text string) string {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := io.WriteString(nc, text); err != nil {
		t.Fatal(err)
	}
	if err := nc.SetReadDeadline(time.Now().Add(4 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(nc)
	if e, ok := err.(net.Error); ok && e.Timeout() {
		t.Errorf("%.20q: the connection stays open", text)
	}
	return string(b)
}

func TestANodeTakesTheSettingsOfItsListeners(t *testing.T) {
	secure := freeAddr(t)
	f := startListening(t, "--listen-tls", secure, "--tls-certs", certs(t), "--trusted-proxies", "127.0.0.1/32", "--forwarded-header", "x-forwarded-for",
		"--max-head", "2048", "--head-timeout", "400ms", "--idle-timeout", "400ms")
	h2 := &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	r, err := http.NewRequest(http.MethodGet, "https://"+secure+"/a", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Forwarded-For", "192.0.2.1, 198.51.100.7")
	resp, err := h2.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != "https://store.com/a" {
		t.Errorf("over TLS: %s, %s, %v", resp.Proto, resp.Status, resp.Header)
	}
	h2.CloseIdleConnections()
	const get = "GET /a HTTP/1.1\r\nHost: e2e\r\n"
	if got := closes(t, f.NodeAddr[0], get); strings.Contains(got, " 302 ") {
		t.Errorf("half a head: %.100q", got)
	}
	// A client that is held up for 0.4 s is too late for an answer.
	answered := func(what, text, want string) {
		f.eventually(fmt.Sprintf("%s is answered with %s", what, want), func() bool {
			return strings.HasPrefix(closes(t, f.NodeAddr[0], text), "HTTP/1.1 "+want+" ")
		})
	}
	answered("a long head", get+"X: "+strings.Repeat("x", 3000)+"\r\n\r\n", "431")
	answered("a whole head", get+"\r\n", "302")
	addresses := map[string]int{}
	f.readClicks(2, func(c *clickstream.Click) { addresses[c.Address.String()]++ })
	if addresses["198.51.100.0/24"] != 1 || addresses["127.0.0.0/24"] != 1 {
		t.Errorf("clicks come from %v", addresses)
	}
}

func TestANodeTakesNoMoreConnectionsThanItMay(t *testing.T) {
	f := startListening(t, "--max-conns", "20")
	var open, closed int
	for range 30 {
		nc, err := net.Dial("tcp", f.NodeAddr[0])
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if _, err := fmt.Fprint(nc, "GET /a HTTP/1.1\r\nHost: e2e\r\n\r\n"); err != nil {
			closed++
			continue
		}
		if _, err := http.ReadResponse(bufio.NewReader(nc), nil); err != nil {
			closed++
		} else {
			open++
		}
	}
	if open == 0 || open > 20 || closed == 0 {
		t.Errorf("of 30 connections %d are served and %d closed, want at most 20", open, closed)
	}
	f.clicks(open)
}

func TestANodeBehindTheProxyProtocol(t *testing.T) {
	f := startListening(t, "--trusted-proxies", "127.0.0.1/32", "--proxy-protocol")
	got := closes(t, f.NodeAddr[0], "PROXY TCP4 203.0.113.9 127.0.0.1 4711 80\r\nGET /a HTTP/1.1\r\nHost: e2e\r\nConnection: close\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 302 ") {
		t.Errorf("got %.100q", got)
	}
	if got := closes(t, f.NodeAddr[0], "GET /a HTTP/1.1\r\nHost: e2e\r\nConnection: close\r\n\r\n"); strings.Contains(got, " 302 ") {
		t.Errorf("without a header of the proxy: %.100q", got)
	}
	f.readClicks(1, func(c *clickstream.Click) {
		if got := c.Address.String(); got != "203.0.113.0/24" {
			t.Errorf("the click is from %s", got)
		}
	})
}
