package publish

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
)

func TestWhatIsSentToNATSGoesInPiecesWithAYieldBetween(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan []byte)
	go func() {
		defer close(got)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		all, _ := io.ReadAll(c)
		_ = c.Close()
		got <- all
	}()
	c, err := dialer{}.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	yields, want := 0, bytes.Repeat([]byte("0123456789"), 7000)
	p := c.(*paced)
	yield := p.yield
	p.yield = func() { yields++; yield() }
	for _, part := range [][]byte{want[:10], want[10:pieceBytes], nil, want[pieceBytes:]} {
		if n, err := c.Write(part); err != nil || n != len(part) {
			t.Fatalf("%d of %d bytes were written: %v", n, len(part), err)
		}
	}
	if least := len(want)/pieceBytes - 1; yields != least {
		t.Errorf("there were %d yields, want %d", yields, least)
	}
	if err := errors.Join(c.Close(), p.Close()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("it is not closed: %v", err)
	}
	if all := <-got; !bytes.Equal(all, want) {
		t.Errorf("%d bytes of %d arrived, or others", len(all), len(want))
	}
	if n, err := c.Write(want); n != 0 || err == nil {
		t.Errorf("%d bytes were written to what is closed", n)
	}
}

func TestTheLogOfANodeShowsNothingThatLetsItIn(t *testing.T) {
	for urls, want := range map[string]string{
		"nats://a:4222, b:4222":              "nats://a:4222, b:4222",
		"nats://ada:secret@a:4222":           "nats://xxxxx@a:4222",
		"nats://token@a:4222,tls://x@b:4222": "nats://xxxxx@a:4222,tls://xxxxx@b:4222",
		"token@a:4222, ada:secret@b":         "xxxxx@a:4222, xxxxx@b",
		"nats://sec%ret@a:4222":              "nats://xxxxx@a:4222",
	} {
		if got := redacted(urls); got != want {
			t.Errorf("%s became %s", urls, got)
		}
	}
}

func TestURLThatCannotBeReadIsRefusedWithoutWhatLetsTheNodeIn(t *testing.T) {
	r := openRecorder(t)
	for urls, shown := range map[string]string{
		"nats://secret%zz@a:4222": "nats://xxxxx@a:4222",
		"b, ada:secret%zz@a:4222": "xxxxx@a:4222",
		"nats://ada:secret/@a":    "nats://xxxxx@a",
	} {
		_, err := New(Config{URL: urls, Recorder: r})
		if want := fmt.Sprintf("publish clicks: %q is no URL of NATS", shown); err == nil || err.Error() != want {
			t.Errorf("of %s, the error is %v, want %s", urls, err, want)
		}
	}
	if _, err := New(Config{URL: "a, nats://b:4222,token@c", Recorder: r}); err != nil {
		t.Error(err)
	}
}
