package feed

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// issue gives a certificate that a CA has issued, and the CA's own.
func issue(t *testing.T) (leaf tls.Certificate, ca []byte) {
	t.Helper()
	sign := func(of, by *x509.Certificate, key, with *ecdsa.PrivateKey) []byte {
		of.SerialNumber, of.NotBefore, of.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		b, err := x509.CreateCertificate(rand.Reader, of, by, &key.PublicKey, with)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var keys [2]*ecdsa.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	root := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca = sign(root, root, keys[0], keys[0])
	server := &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	return tls.Certificate{Certificate: [][]byte{sign(server, root, keys[1], keys[0])}, PrivateKey: keys[1]}, ca
}

// A CA of one's own is given as to any program in Go: the process reads it once,
// so each node is one of its own.
func TestNewNodeStartsFromAnHTTPSURLWhoseCAItKnows(t *testing.T) {
	file := stateFile(t, state{"/a": "https://x.test/a"})
	leaf, ca := issue(t)
	files := httptest.NewUnstartedServer(http.FileServer(http.Dir(filepath.Dir(file))))
	files.TLS = &tls.Config{Certificates: []tls.Certificate{leaf}}
	files.StartTLS()
	t.Cleanup(files.Close)
	own := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(own, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca}), 0o600); err != nil {
		t.Fatal(err)
	}
	for setting, says := range map[string]string{
		"SSL_CERT_FILE=" + own: "serving that of another place",
		"SSL_CERT_FILE=":       "certificate signed by unknown authority",
	} {
		t.Run(says, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // ends what would never end
			node := exec.CommandContext(ctx, os.Args[0])
			node.Env = append(os.Environ(), "AFF_TEST_NODE="+t.TempDir()+"@"+nobody+"@", "AFF_TEST_BOOTSTRAP="+files.URL+"/copy.aff", setting)
			log, err := node.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := node.Start(); err != nil {
				t.Fatal(err)
			}
			var said []string
			for lines := bufio.NewScanner(log); lines.Scan(); {
				said = append(said, lines.Text())
				if strings.Contains(lines.Text(), says) {
					cancel() // it has said what it was asked
				}
			}
			cancel()
			_ = node.Wait()
			if text := strings.Join(said, "\n"); !strings.Contains(text, says) {
				t.Errorf("with %s, the node says\n%s", setting, text)
			}
		})
	}
}
