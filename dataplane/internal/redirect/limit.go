package redirect

import (
	"net"
	"net/netip"
	"sync"
)

// limits counts connections, in all and by client. It is asked once when a
// connection comes and once when it goes.
type limits struct {
	max, maxPerAddr int

	mu     sync.Mutex
	total  int
	byAddr map[netip.Prefix]int // entries of 0 are removed, so it never outgrows total
}

// admission is the answer to a new connection.
type admission uint8

const (
	admitted admission = iota
	overLimit
	overAddrLimit
)

// admit takes a place for a connection of a client, if there is one. The zero
// Prefix is nobody's: it is counted in all only.
func (l *limits) admit(client netip.Prefix) admission {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.max {
		return overLimit
	}
	return l.take(client, 1)
}

// assign makes a connection that was nobody's the client's.
func (l *limits) assign(client netip.Prefix) admission {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.take(client, 0)
}

func (l *limits) take(client netip.Prefix, more int) admission {
	if client.IsValid() {
		if l.byAddr[client] >= l.maxPerAddr {
			return overAddrLimit
		}
		l.byAddr[client]++
	}
	l.total += more
	return admitted
}

// release gives the place back.
func (l *limits) release(client netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if !client.IsValid() {
		return
	}
	if l.byAddr[client]--; l.byAddr[client] == 0 {
		delete(l.byAddr, client)
	}
}

func (l *limits) open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// clientOf gives what counts as one client: an IPv4 address, or the /64 that
// an IPv6 host can choose its addresses from.
func clientOf(addr netip.Addr) netip.Prefix {
	bits := addr.BitLen()
	if bits == 128 {
		bits = 64
	}
	p, _ := addr.WithZone("").Prefix(bits)
	return p
}

// addrOf gives the address of the peer, the zero Addr when it has none.
func addrOf(nc net.Conn) netip.Addr {
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
