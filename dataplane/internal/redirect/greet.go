package redirect

import (
	"bufio"
	"crypto/tls"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pires/go-proxyproto"
)

// greet does what comes before the first request, in the time for a head: it
// reads the PROXY protocol header of a trusted proxy, and shakes hands for
// TLS. It gives what came with the header, and whether the connection goes on.
func (c *conn) greet() (first []byte, ok bool) {
	deadline := time.Now().Add(c.srv.cfg.HeadTimeout)
	if c.socket.SetDeadline(deadline) != nil {
		return nil, false
	}
	if c.expectProxy {
		if first, ok = c.readProxyHeader(); !ok {
			return nil, false
		}
	}
	if c.group.tls != nil {
		secure := tls.Server(newWire(c, first), c.group.tls)
		if secure.Handshake() != nil {
			c.srv.conns.handshakeErrors.Add(1)
			return nil, false
		}
		c.nc, c.secure, first = secure, true, nil
	}
	return first, c.socket.SetDeadline(time.Time{}) == nil
}

// readProxyHeader learns from a trusted proxy whose connection it passes on.
func (c *conn) readProxyHeader() (rest []byte, ok bool) {
	s := c.srv
	in := bufio.NewReaderSize(c.socket, MinHead) // so what is left fits a work
	addr, err := proxyAddr(in)
	if err != nil {
		s.conns.proxyErrors.Add(1)
		return nil, false
	}
	if addr.IsValid() {
		c.addr = addr
		if s.trust.trusts(addr) { // a proxy behind a proxy
			addr = netip.Addr{}
		} else {
			c.believed = false
		}
		client := clientOf(addr)
		if !c.group.admitted(s.limits.assign(client)) {
			return nil, false
		}
		c.client = client
	}
	rest, err = in.Peek(in.Buffered())
	return rest, err == nil
}

// proxyAddr reads a PROXY protocol header and gives the client's address. It is
// the zero Addr where the proxy speaks for itself (its health checks), or does
// not know.
func proxyAddr(in *bufio.Reader) (netip.Addr, error) {
	h, err := proxyproto.Read(in)
	if err != nil || h.Command.IsLocal() {
		return netip.Addr{}, err
	}
	var port netip.AddrPort
	switch a := h.SourceAddr.(type) {
	case *net.TCPAddr:
		port = a.AddrPort()
	case *net.UDPAddr:
		port = a.AddrPort()
	}
	return port.Addr().Unmap(), nil
}

// wire is a socket below TLS.
type wire struct {
	net.Conn
	conn    *conn
	first   []byte      // read before
	handed  atomic.Bool // to net/http, which closes it
	records scanner     // of what was read
	above   *frames     // of HTTP/2
}

func newWire(c *conn, first []byte) *wire {
	return &wire{Conn: c.socket, conn: c, first: first, records: scanner{size: recordHeadBytes}}
}

func (w *wire) Read(p []byte) (n int, err error) {
	switch {
	case len(w.first) > 0:
		n = copy(p, w.first)
		w.first = w.first[n:]
	case w.above == nil:
		w.conn.hear(w.records.begun())
		n, err = w.Conn.Read(p)
		w.conn.heard()
	default:
		if err := w.above.wait(); err != nil {
			return 0, err
		}
		n, err = w.Conn.Read(p)
	}
	w.records.scan(p[:n], recordLength, func() {})
	return n, err
}

// heard is told when the socket was read. TLS writes as it reads, where the client asks
// for new keys, and the deadline of the last answer may have passed by then.
func (c *conn) heard() {
	if c.apart.Load() {
		return
	}
	if now, _ := c.srv.clock.read(); c.writeBy-now < int64(c.srv.cfg.WriteTimeout)/2 {
		c.mayWrite(now)
	}
}

func (w *wire) Close() error {
	err := w.Conn.Close()
	if w.handed.CompareAndSwap(true, false) {
		w.conn.nc = w.Conn
		w.conn.group.finish(w.conn)
	}
	return err
}

// handToHTTP2 gives a connection on which HTTP/2 was agreed to net/http.
func (c *conn) handToHTTP2() bool {
	secure, ok := c.nc.(*tls.Conn)
	if !ok {
		return false
	}
	state := secure.ConnectionState()
	if state.NegotiatedProtocol != protoHTTP2 {
		return false
	}
	w := secure.NetConn().(*wire)
	w.handed.Store(true)
	if !carriesHTTP2(&state) || !c.group.h2.take(newFrames(secure, w, c.srv.cfg.HeadTimeout)) {
		_ = w.Close()
	}
	return true
}

const protoHTTP2 = "h2"

// carriesHTTP2 says whether TLS is fit for HTTP/2: of the suites of TLS 1.2, those are
// not that RFC 9113 prohibits in its appendix A.
func carriesHTTP2(state *tls.ConnectionState) bool {
	suite := tls.CipherSuiteName(state.CipherSuite)
	return state.Version >= tls.VersionTLS13 || strings.HasPrefix(suite, "TLS_ECDHE_") && (strings.Contains(suite, "_GCM_") || strings.Contains(suite, "_CHACHA20_"))
}

// tlsConfig is that of a group. While it drains, HTTP/2 is not offered any
// more: what is still answered takes a single request.
func tlsConfig(g *group, certs *Certs) *tls.Config {
	last := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: certs.choose,
	}
	cfg := last.Clone()
	cfg.NextProtos = []string{protoHTTP2, "http/1.1"}
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if g.draining.Load() {
			return last, nil
		}
		return nil, nil
	}
	return cfg
}
