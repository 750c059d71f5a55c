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

// admit takes a place for a connection from addr, if there is one.
func (l *limits) admit(addr netip.Addr) admission {
	client := clientOf(addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.total >= l.max:
		return overLimit
	case l.byAddr[client] >= l.maxPerAddr:
		return overAddrLimit
	}
	l.total++
	l.byAddr[client]++
	return admitted
}

// release gives the place back.
func (l *limits) release(addr netip.Addr) {
	client := clientOf(addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
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
