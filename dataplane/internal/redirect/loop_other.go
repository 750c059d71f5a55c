//go:build !linux

package redirect

import (
	"context"
	"net"
	"time"
)

// loop serves many connections from one goroutine, on Linux only.
type loop struct{ deadlines deadlines }

func (*loop) nudge() {}

func (*loop) lookAgain(*conn) {}

func (*loop) hold(*conn, []byte) bool { return false }

// Beside runs work on the thread of an event loop. There is none.
func (s *Server) Beside(func(look func() bool)) bool { return s.conns.errand(false) }

func (*group) serveLoops(context.Context, *net.TCPListener, time.Duration, time.Duration) (bool, error) {
	return false, nil
}

func (*conn) handToLoop([]byte) bool { return false }
