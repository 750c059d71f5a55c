package controlplane

import (
	"net"
	"sync"
)

// doors is a listener that bounds connections, in all and from one address: one
// too many is closed at once. Streams are bounded by admission, with a word to
// the node; a connection without any would cost memory unseen.
type doors struct {
	*net.TCPListener
	most, mostEach int

	mu     sync.Mutex
	all    int
	byHost map[string]int
}

// Connections that there may be beside those of nodes' streams.
const (
	othersInAll = 2000
	othersEach  = 500
)

func newDoors(ln *net.TCPListener, most, mostEach int) *doors {
	return &doors{TCPListener: ln, most: most, mostEach: mostEach, byHost: make(map[string]int)}
}

// Accept gives the next connection for which there is room.
func (d *doors) Accept() (net.Conn, error) {
	for {
		conn, err := d.AcceptTCP()
		if err != nil {
			return nil, err
		}
		host := conn.RemoteAddr().(*net.TCPAddr).IP.String()
		if d.enter(host) {
			return &guest{TCPConn: conn, leave: sync.OnceFunc(func() { d.leave(host) })}, nil
		}
		_ = conn.Close() // it was not used
	}
}

func (d *doors) enter(host string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all >= d.most || d.byHost[host] >= d.mostEach {
		return false
	}
	d.all++
	d.byHost[host]++
	return true
}

func (d *doors) leave(host string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all--
	if d.byHost[host]--; d.byHost[host] == 0 {
		delete(d.byHost, host)
	}
}

// guest is a connection that counts until it is closed.
type guest struct {
	*net.TCPConn
	leave func()
}

// Close closes the connection, and makes room.
func (g *guest) Close() error {
	defer g.leave()
	return g.TCPConn.Close()
}
