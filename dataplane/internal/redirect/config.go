package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/label"
	"github.com/affleet/affleet/dataplane/internal/table"
	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/visitor"
)

// Config is a Server's. The zero values of the optional fields work.
type Config struct {
	Live   *table.Live     // Required. While it holds no table, requests get 503
	Clicks *click.Recorder // Required. Records every redirect before it is written

	MaxHead      int           // bytes of a request head, MinHead to MaxHead. Default: 16 KiB
	HeadTimeout  time.Duration // from a head's first byte to its last, and for a TLS handshake. Default: 5 s
	IdleTimeout  time.Duration // without a request. Default: 75 s
	WriteTimeout time.Duration // until a client has read its answers. Default: 10 s

	// Connections at a time; one more is closed at once. Default: 65,536, but at
	// most three quarters of the descriptors that the process may open.
	MaxConns int
	// Connections at a time from one IPv4 address or IPv6 /64. Behind a load
	// balancer, whose address is everybody's, name that in TrustedProxies.
	// Default: a quarter of MaxConns.
	MaxConnsPerAddr int

	// Event loops of each Serve: see loop. A loop that has work keeps a P of Go's
	// scheduler for itself, so GOMAXPROCS has to be larger, or else, and on other
	// systems than Linux, there are none. Default: none, and a goroutine for each
	// connection.
	Loops int

	// Event loops go before all other threads of this process: their nice value is
	// lowered, where the process may do so, the further the more they wait, and else
	// that of all others is raised for good when Serve starts; for one Serve of a
	// process. Default: only as far as Linux (6.12) lets them interrupt others that
	// have the same.
	LoopsFirst bool

	// Peers that are believed about whose connections and requests they pass on.
	// What comes from them is not counted by MaxConnsPerAddr, unless the PROXY
	// protocol says for whom it comes.
	TrustedProxies []netip.Prefix
	// A connection from a trusted proxy must begin with a PROXY protocol header,
	// version 1 or 2. Others are served as they are, and have none. One of version 1 has
	// to come in one piece, as the protocol asks of who sends it: go-proxyproto refuses
	// what one read from the socket does not give whole. One of version 2 may be cut.
	ProxyProtocol bool
	// The header in which a trusted proxy says for whom it asks. Default: none.
	ForwardedHeader ForwardedHeader

	// Where facts about clients come from. Default: the list of bots that comes
	// with the program, and no places.
	Sources *visitor.Sources
	// The headers in which trusted proxies say where their clients are; they are
	// looked at where ForwardedHeader is. Default: none.
	GeoHeaders visitor.GeoHeaders
	// Keeps the count of links with a cap. Default: there is room under every cap.
	Caps Caps
	// Labels requests. Default: one with the default settings.
	Judge *label.Judge

	Registerer prometheus.Registerer // optional
	Report     func(error)           // what an operator should look at, each once. Optional

	// How long the end of a connection may go unnoticed that comes together with
	// the last bytes of a request: see conn.ready. Default: 2 s.
	lookAgain time.Duration
}

// Caps keeps the count of links with a cap.
type Caps interface {
	// Take says whether a click of the link, at a time in µs since 1970, is
	// within its cap. It is taken off if it counts.
	Take(domain, path []byte, limit link.Cap, unixMicro int64, counts bool) bool
}

// What MaxHead may be, in bytes.
const (
	MinHead = 1 << 10
	MaxHead = 1 << 20
)

func (c *Config) setDefaults() error {
	defaults := []struct {
		d       *time.Duration
		name    string
		regular time.Duration
	}{
		{&c.HeadTimeout, "head", 5 * time.Second},
		{&c.IdleTimeout, "idle", 75 * time.Second},
		{&c.WriteTimeout, "write", 10 * time.Second},
		{&c.lookAgain, "look", 2 * time.Second},
	}
	for _, t := range defaults {
		if *t.d == 0 {
			*t.d = t.regular
		}
		if *t.d < 0 {
			return fmt.Errorf("%s timeout %v: it must be positive", t.name, *t.d)
		}
	}
	if c.MaxHead == 0 {
		c.MaxHead = 16 << 10
	}
	if c.MaxConns == 0 {
		c.MaxConns = min(65536, descriptors()/4*3)
	}
	if c.MaxConnsPerAddr == 0 {
		c.MaxConnsPerAddr = max(1, c.MaxConns/4)
	}
	switch {
	case c.Live == nil:
		return errors.New("a live table is required")
	case c.Clicks == nil:
		return errors.New("a click recorder is required")
	case c.MaxHead < MinHead || c.MaxHead > MaxHead:
		return fmt.Errorf("a head of at most %d bytes: it must be %d to %d", c.MaxHead, MinHead, MaxHead)
	case c.MaxConns < 0 || c.MaxConnsPerAddr < 0:
		return errors.New("a limit of connections must not be negative")
	case c.Loops < 0:
		return fmt.Errorf("%d event loops: there are 0 or more", c.Loops)
	case c.ForwardedHeader >= numForwardedHeaders:
		return fmt.Errorf("forwarded header %d: there is none", c.ForwardedHeader)
	case len(c.TrustedProxies) == 0 && (c.ProxyProtocol || c.ForwardedHeader != NoForwardedHeader):
		return errors.New("a client address from a proxy: there is no trusted proxy")
	case c.GeoHeaders != (visitor.GeoHeaders{}) && c.ForwardedHeader == NoForwardedHeader:
		return errors.New("a client's place from a proxy: the proxy has to say who its client is")
	}
	if c.Sources == nil {
		var err error
		if c.Sources, err = visitor.Open(visitor.Config{}); err != nil {
			return err
		}
	}
	if c.Judge == nil {
		var err error
		if c.Judge, err = label.New(label.Config{}); err != nil {
			return err
		}
	}
	if c.Report == nil {
		c.Report = func(error) {}
	}
	return nil
}

// descriptors gives how many files this process may have open.
func descriptors() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return int(min(limit.Cur, 1<<30))
}
