package controlplane

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

func TestConnectionTooManyIsClosedAndRoomComesBack(t *testing.T) {
	for name, bounds := range map[string][2]int{"in all": {2, 9}, "of one address": {9, 2}} {
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		d := newDoors(ln, bounds[0], bounds[1])
		accepted := make(chan net.Conn, 8)
		go func() {
			for {
				conn, err := d.Accept()
				if err != nil {
					close(accepted)
					return
				}
				accepted <- conn
			}
		}()
		dial := func() net.Conn {
			conn, err := net.DialTimeout("tcp", ln.Addr().String(), patience)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			return conn
		}
		dial()
		dial()
		first := <-accepted
		<-accepted
		if _, ok := first.(syscall.Conn); !ok {
			t.Errorf("%s: gRPC cannot reach the socket of a connection", name)
		}
		third := dial()
		_ = third.SetReadDeadline(time.Now().Add(patience))
		if _, err := third.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: a third connection ends with %v", name, err)
		}
		_, _ = first.Close(), first.Close() // which counts once
		dial()
		<-accepted
		fifth := dial()
		_ = fifth.SetReadDeadline(time.Now().Add(patience))
		if _, err := fifth.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: a connection closed twice makes room for two: %v", name, err)
		}
		_ = ln.Close()
		for range accepted { // until the goroutine has ended
		}
	}
}
