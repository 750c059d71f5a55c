package publish

import (
	"net"
	"syscall"
	"time"

	"github.com/affleet/affleet/dataplane/internal/aside"
)

const (
	dialTimeout = 2 * time.Second
	// pieceBytes is what is written to NATS at once. The kernel copies it, and to
	// a server on the same machine it delivers it, too, before it returns.
	pieceBytes = 16 << 10
	// besideBytes is what is written at once where redirects wait for it, and
	// besideLeast how much is worth it to have written there.
	besideBytes = 4 << 10
	besideLeast = 2 * pieceBytes
)

// dialer connects to NATS so that redirects go first between the pieces of what
// is sent.
type dialer struct {
	beside Beside // where much is written; nil: where the NATS client does
}

func (d dialer) Dial(network, address string) (net.Conn, error) {
	c, err := net.DialTimeout(network, address, dialTimeout)
	if err != nil {
		return nil, err
	}
	p := &paced{Conn: c, yield: aside.NewYield()}
	if s, ok := c.(syscall.Conn); ok && d.beside != nil {
		if p.raw, err = s.SyscallConn(); err == nil {
			p.beside = d.beside
		}
	}
	return p, nil
}

// paced is a connection that is written to in pieces. As of any, of its Writes
// there is one at a time, here by the NATS client's own lock.
type paced struct {
	net.Conn
	yield  func()
	beside Beside // nil: there is none
	raw    syscall.RawConn
}

func (c *paced) Write(p []byte) (n int, err error) {
	if c.beside != nil && len(p) >= besideLeast {
		n = c.writeBeside(p)
	}
	for n < len(p) || n == 0 {
		m, err := c.Conn.Write(p[n:min(n+pieceBytes, len(p))])
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
		c.yield()
	}
	return n, nil
}

// writeBeside writes what the socket has room for. Write meets with what is wrong.
func (c *paced) writeBeside(p []byte) (n int) {
	var look func() bool
	write := func(fd uintptr) (done bool) {
		for more := true; more && n < len(p); more = look() {
			piece := p[n:min(n+besideBytes, len(p))]
			m := sendNow(fd, piece, n+len(piece) < len(p))
			if m <= 0 {
				break
			}
			n += m
		}
		return true
	}
	c.beside(func(l func() bool) {
		look = l
		_ = c.raw.Write(write)
	})
	return n
}
