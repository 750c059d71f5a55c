package redirect

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"
	"time"
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
