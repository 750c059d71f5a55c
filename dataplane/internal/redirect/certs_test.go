package redirect

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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

// served gives the common name of the certificate that is served for a host.
func (n *node) served(t testing.TB, host string) string {
	t.Helper()
	c := n.dialTLS(t, "http/1.1", host)
	defer c.Close()
	return c.Conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
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

// Who may read a file is nothing that its size and time tell.
func TestAPairThatCouldNotBeLoadedIsTriedAgain(t *testing.T) {
	dir := newDir(t)
	cert, key := makeCert(t, "second", "second.example")
	_, others := makeCert(t, "another")
	path := filepath.Join(dir, "second.key")
	write(t, filepath.Join(dir, "second.crt"), cert)
	then := time.Now().Add(-time.Minute)
	as := func(content []byte) {
		write(t, path, content)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
	}
	as(bytes.Repeat([]byte("x"), len(key)))
	certs, err := OpenCerts(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		content        []byte
		errors, broken int
	}{
		{nil, 1, 1},
		{nil, 0, 1},    // it is told once
		{others, 1, 1}, // and what else is wrong
		{key, 0, 0},
	} {
		if step.content != nil {
			as(step.content)
		}
		errs := certs.read()
		if broken := certs.current.Load().broken; len(errs) != step.errors || broken != step.broken {
			t.Errorf("step %d: %d are broken, %v", i, broken, errs)
		}
	}
	if got := certs.current.Load().byName["second.example"]; len(got) != 1 {
		t.Error("it is not served")
	}
}
