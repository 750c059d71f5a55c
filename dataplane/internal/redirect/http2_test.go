package redirect

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// The frames of HTTP/2 that these tests speak of (RFC 9113, section 6).
const (
	frameHeaders, frameReset, frameSettings = 1, 3, 4

	endStream, endHeaders = 1, 4
	initialWindow         = 4 // of SETTINGS
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

// An answer with a body waits for the client's window, and with it a goroutine, the
// connection, and the end of the process.
func TestAStreamWhoseClientOpensNoWindowEnds(t *testing.T) {
	n, _ := startTLS(t, newDir(t), func(c *Config) { c.WriteTimeout, c.IdleTimeout = 100*time.Millisecond, 200*time.Millisecond })
	c := n.dialTLS(t, "h2", "go.example")
	const get = "\x82\x87\x01\x09x.example\x04\x05/none" // GET, https, authority, path
	c.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(frameSettings, 0, 0, "\x00"+string(rune(initialWindow))+"\x00\x00\x00\x00") +
		frame(frameHeaders, endStream|endHeaders, 1, get))
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

// A head that does not end is no request, and the connection idles.
func TestAConnectionWithHalfAHeadOfHTTP2IsClosed(t *testing.T) {
	n, _ := startTLS(t, newDir(t), func(c *Config) { c.IdleTimeout = 200 * time.Millisecond })
	c := n.dialTLS(t, "h2", "go.example")
	c.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(frameSettings, 0, 0, "") + frame(frameHeaders, endStream|endHeaders, 1, "\x82\x87")[:10])
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c.r); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("it is still open")
	}
	n.awaitOpen(0)
}
