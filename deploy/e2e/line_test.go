package e2e

import (
	"io"
	"net"
	"sync"
	"testing"
)

// line is a way to an address that can be cut.
type line struct {
	addr, to string
	ln       net.Listener
	running  sync.WaitGroup

	mu    sync.Mutex
	open  bool
	conns map[net.Conn]bool
}

func openLine(t *testing.T, to string) *line {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{addr: ln.Addr().String(), to: to, ln: ln, open: true, conns: map[net.Conn]bool{}}
	l.running.Go(l.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		l.cut()
		l.running.Wait()
	})
	return l
}

func (l *line) accept() {
	for {
		near, err := l.ln.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", l.to)
		if err != nil {
			_ = near.Close()
			continue
		}
		if !l.join(near, far) {
			continue
		}
		for _, ends := range [][2]net.Conn{{near, far}, {far, near}} {
			l.running.Go(func() {
				_, _ = io.Copy(ends[0], ends[1]) // either end may end it
				_ = ends[0].Close()
				_ = ends[1].Close()
			})
		}
	}
}

// join notes two ends of a connection, or closes them while the line is cut.
func (l *line) join(ends ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range ends {
		if !l.open {
			_ = c.Close()
		}
		l.conns[c] = true
	}
	return l.open
}

// cut ends all connections, and those that come.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = false
	for c := range l.conns {
		_ = c.Close()
	}
	clear(l.conns)
}

// mend lets connections through again.
func (l *line) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = true
}
