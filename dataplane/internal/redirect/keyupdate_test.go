package redirect

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"net"
	"testing"
	"time"
)

// records writes those of TLS 1.3 by hand (RFC 8446, sections 5.2 and 7): crypto/tls
// asks for no new keys by itself.
type records struct {
	t      *testing.T
	wire   net.Conn
	secret []byte // of the keys
	sent   uint64 // under it
}

// recordsOf goes on behind what a client has written in so many records.
func recordsOf(t *testing.T, c *tls.Conn, keyLog string, sent uint64) *records {
	t.Helper()
	if suite := c.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		t.Fatalf("the suite is %s", tls.CipherSuiteName(suite))
	}
	for line := range bytes.Lines([]byte(keyLog)) {
		if fields := bytes.Fields(line); string(fields[0]) == "CLIENT_TRAFFIC_SECRET_0" {
			secret, err := hex.DecodeString(string(fields[2]))
			if err != nil {
				t.Fatal(err)
			}
			return &records{t: t, wire: c.NetConn(), secret: secret, sent: sent}
		}
	}
	t.Fatal("the secret is not known")
	return nil
}

func (r *records) derive(label string, size int) []byte {
	label = "tls13 " + label
	key, err := hkdf.Expand(sha256.New, r.secret, string([]byte{0, byte(size), byte(len(label))})+label+"\x00", size)
	if err != nil {
		r.t.Fatal(err)
	}
	return key
}

func (r *records) write(kind byte, content string) {
	r.t.Helper()
	block, err := aes.NewCipher(r.derive("key", 16))
	if err != nil {
		r.t.Fatal(err)
	}
	sealer, err := cipher.NewGCM(block)
	if err != nil {
		r.t.Fatal(err)
	}
	nonce := r.derive("iv", 12)
	last := nonce[4:]
	binary.BigEndian.PutUint64(last, binary.BigEndian.Uint64(last)^r.sent)
	r.sent++
	inner := append([]byte(content), kind)
	head := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(inner)+sealer.Overhead()))
	if _, err := r.wire.Write(sealer.Seal(head, nonce, inner, head)); err != nil {
		r.t.Fatal(err)
	}
}

// updateKeys uses new ones, and asks the server to do so.
func (r *records) updateKeys() {
	r.t.Helper()
	const handshake = 22
	r.write(handshake, "\x18\x00\x00\x01\x01")
	r.secret, r.sent = r.derive("traffic upd", sha256.Size), 0
}

// TLS writes as it reads: it answers who asks for new keys. That may be long after the
// last answer was to be written.
func TestAClientMayAskForNewKeysAtAnyTime(t *testing.T) {
	const limit = 300 * time.Millisecond
	n, _ := startTLS(t, newDir(t), func(c *Config) { c.WriteTimeout = limit })
	var keyLog bytes.Buffer
	nc, err := tls.Dial("tcp", n.addr, &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS13, KeyLogWriter: &keyLog,
	})
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, nc)
	c.send(getA)
	c.expect(302)
	r := recordsOf(t, nc, keyLog.String(), 1)
	for range 2 {
		time.Sleep(limit + limit/10)
		r.updateKeys()
		const applicationData = 23
		r.write(applicationData, getA)
		c.expect(302)
	}
}
