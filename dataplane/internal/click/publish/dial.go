package publish

import (
	"net"
	"time"

	"github.com/affleet/affleet/dataplane/internal/aside"
)

const (
	dialTimeout = 2 * time.Second
	// pieceBytes is what is written to NATS at once. The kernel copies it, and to
	// a server on the same machine it delivers it, too, before it returns.
	pieceBytes = 16 << 10
)

// dialer connects to NATS so that redirects go first between the pieces of what
// is sent.
type dialer struct{}

func (dialer) Dial(network, address string) (net.Conn, error) {
	c, err := net.DialTimeout(network, address, dialTimeout)
	if err != nil {
		return nil, err
	}
	return &paced{Conn: c, yield: aside.NewYield()}, nil
}

// paced is a connection that is written to in pieces. As of any, of its Writes
// there is one at a time, here by the NATS client's own lock.
type paced struct {
	net.Conn
	yield func()
}

func (c *paced) Write(p []byte) (n int, err error) {
	for {
		m, err := c.Conn.Write(p[n:min(n+pieceBytes, len(p))])
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
		c.yield()
	}
}
