package publish

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func TestWhatIsSentToNATSGoesInPiecesWithAYieldBetween(t *testing.T) {
	address, read, got := sink(t)
	close(read)
	c, err := dialer{}.Dial("tcp", address)
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

// sink is a server whose connection is read while told to.
func sink(t *testing.T) (address string, read chan<- struct{}, got <-chan []byte) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	reads, all := make(chan struct{}), make(chan []byte, 1)
	go func() {
		defer close(all)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		<-reads
		b, _ := io.ReadAll(c)
		all <- b
	}()
	return ln.Addr().String(), reads, all
}

func TestMuchIsSentToNATSWhereThatTakesLeastFromRedirects(t *testing.T) {
	const much = 20 * besideBytes
	for name, test := range map[string]struct {
		bytes     int
		refused   bool // the loop is busy
		stop      int  // look after which it gets so; 0: never
		unread    bool // the socket gets full
		least, at int  // looks
	}{
		"much":                    {bytes: much, least: 20, at: 20},
		"little":                  {bytes: besideLeast - 1},
		"by a loop that is busy":  {bytes: much, refused: true},
		"by one that gets busy":   {bytes: much, stop: 3, least: 3, at: 3},
		"more than there is room": {bytes: 64 << 20, unread: true, least: 1, at: 64 << 20 / besideBytes / 2},
	} {
		t.Run(name, func(t *testing.T) {
			address, read, got := sink(t)
			looks := 0
			c, err := dialer{func(work func(look func() bool)) bool {
				if test.refused {
					return false
				}
				work(func() bool { looks++; return looks != test.stop })
				return true
			}}.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, test.bytes)
			for i := range want {
				want[i] = byte(i / 251)
			}
			if !test.unread {
				close(read)
			} else {
				time.AfterFunc(100*time.Millisecond, func() { close(read) })
			}
			for _, part := range [][]byte{want[:7], want[7 : len(want)-5], want[len(want)-5:]} {
				if n, err := c.Write(part); err != nil || n != len(part) {
					t.Fatalf("%d of %d bytes were written: %v", n, len(part), err)
				}
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			if all := <-got; !bytes.Equal(all, want) {
				t.Errorf("%d bytes of %d arrived, or others", len(all), len(want))
			}
			if looks < test.least || looks > test.at {
				t.Errorf("requests were looked for %d times, want %d to %d", looks, test.least, test.at)
			}
		})
	}
}

// The kernel is to wait for nothing behind the last piece.
func TestWhatIsSentToNATSArrivesAtOnce(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := dialer{func(work func(look func() bool)) bool { work(func() bool { return true }); return true }}.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	const rounds, bytes = 20, besideLeast + 1000
	begin := time.Now()
	for range rounds {
		if n, err := c.Write(make([]byte, bytes)); n != bytes || err != nil {
			t.Fatalf("%d bytes were written, %v", n, err)
		}
		if _, err := io.ReadFull(server, make([]byte, bytes)); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begin); took > rounds*100*time.Millisecond { // a cork ends by itself after 200 ms
		t.Errorf("each took %v", took/rounds)
	}
}

func TestWhatIsSentOverAConnectionThatIsClosedIsAnError(t *testing.T) {
	address, read, _ := sink(t)
	close(read)
	c, err := dialer{func(work func(look func() bool)) bool { work(func() bool { return true }); return true }}.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Write(make([]byte, besideLeast)); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("%d bytes were written, %v", n, err)
	}
}

func TestURLThatCannotBeReadIsRefusedWithoutWhatLetsTheNodeIn(t *testing.T) {
	_, err := New(Config{URL: "nats://ada:secret%zz@a:4222", Recorder: openRecorder(t)})
	if want := `publish clicks: "nats://xxxxx@a:4222" is no URL of NATS`; err == nil || err.Error() != want {
		t.Errorf("the error is %v, want %s", err, want)
	}
}
