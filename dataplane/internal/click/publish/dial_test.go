package publish

import (
	"bytes"
	"errors"
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

func TestURLThatCannotBeReadIsRefusedWithoutWhatLetsTheNodeIn(t *testing.T) {
	_, err := New(Config{URL: "nats://ada:secret%zz@a:4222", Recorder: openRecorder(t)})
	if want := `publish clicks: "nats://xxxxx@a:4222" is no URL of NATS`; err == nil || err.Error() != want {
		t.Errorf("the error is %v, want %s", err, want)
	}
}
