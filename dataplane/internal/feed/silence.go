package feed

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// underWay is how many bytes have to arrive, in the time that a stream may be without
// a message, until one counts as being under way. Pings and their answers are a tenth
// of that in the longest time.
const underWay = 16 << 10

// silence gives a stream up on which nothing comes: no message, and no part of one,
// for a large one takes longer over a slow line than anything may be silent.
type silence struct {
	giveUp  func()
	arrived atomic.Int64 // bytes of the connection

	mu       sync.Mutex
	timer    *time.Timer
	due      time.Time     // when the timer is up; zero: it is stopped
	patience time.Duration // from one time to the next
}

// begin begins to wait for the first message, which may take so long, and for parts
// of it as long as the patience.
func (s *silence) begin(first, patience time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.patience, s.due = patience, time.Now().Add(first)
	s.timer = time.AfterFunc(first, s.check)
}

// stop ends the waiting: a message is being handled, or the stream is over.
func (s *silence) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due = time.Time{}
	s.timer.Stop()
}

// wait begins to wait for the next message.
func (s *silence) wait(patience time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.patience = patience
	s.again()
}

// again sets the timer. mu is held.
func (s *silence) again() {
	s.arrived.Store(0)
	s.due = time.Now().Add(s.patience)
	s.timer.Reset(s.patience)
}

// check is called when the timer is up.
func (s *silence) check() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.due.IsZero() || time.Now().Before(s.due):
		// something else was first
	case s.arrived.Load() >= underWay:
		s.again()
	default:
		s.giveUp()
	}
}

// counting are credentials whose connections count the bytes that arrive. A dialer
// that did so would keep gRPC from proxies, and from its timeout of what a connection
// does not acknowledge.
type counting struct {
	credentials.TransportCredentials
	arrived *atomic.Int64
}

// ClientHandshake implements credentials.TransportCredentials.
func (c counting) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	return countedConn{conn, c.arrived}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (c counting) Clone() credentials.TransportCredentials {
	return counting{c.TransportCredentials.Clone(), c.arrived}
}

// countedConn counts the bytes that are read from it.
type countedConn struct {
	net.Conn
	arrived *atomic.Int64
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.arrived.Add(int64(n))
	return n, err
}
