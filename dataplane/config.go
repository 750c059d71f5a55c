package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/feed"
	"github.com/affleet/affleet/dataplane/internal/label"
	"github.com/affleet/affleet/dataplane/internal/redirect"
	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/visitor"
)

// Config is a node's. Where a default is named, the zero value stands for it.
type Config struct {
	Node    string   // unique in the fleet: 1 to 128 of A-Z a-z 0-9 _ -. Required
	Region  string   // likewise. Default: local
	Control []string // host:port of control planes, at least one
	NATS    string   // URLs of NATS servers, separated by commas. Required
	Listen  string   // host:port for redirects. Default: :8080
	DataDir string   // last known good state and spool. Required

	Bootstrap     string // where a new node takes its first state from when no control plane gives it one: a file, a URL, or host:port of a node's admin address. Default: from nowhere else
	GuardShrink   int    // percent of the links that one version may remove, unless it was released. Default: 20; 100: all
	GuardGrow     int    // times as many links as before that it may lead to, likewise. Default: 10
	GuardFloor    int    // links below which any version is taken. Default: 1000
	MaxEntries    int64  // resources in all. Default: 268,435,456
	MaxStateBytes int64  // of the names and values of all resources. Default: 32 GiB
	MaxEntryBytes int    // of the name and value of one resource that is served. Default, and at most: 1 MiB

	ClickLevel   string        // memory, process or fsync. Default: process
	ClickSync    time.Duration // at level fsync: the window that a power cut may take. Default: 10 ms
	ClickAddress string        // full, truncated or hashed. Default: truncated
	ClickHashKey string        // file of a secret, at least 32 bytes: nodes that share it give an address the same hash on one day. Default: none, and random keys
	ClickOmit    string        // fields that are not recorded, separated by commas. Default: none
	ClickKeep    time.Duration // how long what JetStream has acknowledged is kept; negative: not at all. Default: 10 min
	SpoolBytes   int64         // limit of the spool. Default: 1 GiB
	StreamBytes  int64         // limit of the stream AFF_CLICKS, if this node creates it. Default: 10 GiB, or what the server has
	Drain        time.Duration // to answer what is in flight at the end. Default: 10 s
	Flush        time.Duration // to publish what is in the spool at the end; see publish.Publisher.Flush. Default: 10 s

	MaxHead         int           // bytes of a request head. Default: 16 KiB
	HeadTimeout     time.Duration // from a head's first byte to its last, and for a TLS handshake. Default: 5 s
	IdleTimeout     time.Duration // that a connection may be without a request. Default: 75 s
	MaxConns        int           // connections at a time, of each listener's clients together. Default: 65,536, at most 3/4 of the descriptors
	Loops           int           // event loops of Listen, on Linux: as many as cores, and GOMAXPROCS larger than that. Default: none, and a goroutine for each connection
	MaxConnsPerAddr int           // of these from one IPv4 address or IPv6 /64; trusted proxies are exempt. Default: a quarter

	ListenTLS string // host:port for redirects over TLS, with HTTP/2 and HTTP/1. Default: none
	TLSCerts  string // folder of NAME.crt and NAME.key, read again when they change; the first serves hosts that none is for

	TrustedProxies  []string // addresses and CIDR prefixes of peers that may say for whom they ask. Default: none
	ProxyProtocol   bool     // connections from TrustedProxies begin with a PROXY protocol header, v1 or v2
	ForwardedHeader string   // in which TrustedProxies name the client: none, x-forwarded-for or forwarded. Default: none

	GeoIP      []string // MaxMind databases (city, country, ASN), read again when they are replaced; the first that knows wins. Default: none
	GeoHeaders string   // in which TrustedProxies say where the client is: cloudflare, cloudfront, fastly, or country=HEADER,asn=HEADER. Default: none
	Bots       string   // file of regular expressions of user agents of bots, one per line, read again when it is replaced. Default: the list that comes with the program

	Datacenters []string // lists of the networks of data centres, one CIDR prefix per line, read again when they are replaced. Default: none

	LabelOff         string        // labels that are never given, separated by commas. Default: none
	LabelMemory      int64         // bytes for all that labels remember, 1 MiB to 1 GiB. Default: 16 MiB
	LabelRateWindow  time.Duration // of the label rate. Default: 1 min
	LabelRate        int           // requests of one address in that time that are not labelled. Default: 600
	LabelRatePerLink int           // of these for one link. Default: 120
	LabelDuplicate   time.Duration // how long after another a click is a duplicate. Default: 30 s
	LabelReplay      time.Duration // how long after another the same click id is a replay. Default: 1 h

	// Share the addresses with another process that does so too (Linux only).
	// They open when the node is ready to answer, and from then on the newer
	// process has all new connections, so that it takes over from an older one
	// without a refused request. Without it an address in use is an error.
	ReusePort bool

	// The node has the process to itself, and sets how often its garbage is
	// collected. Default: it is left as it is.
	TuneCollector bool

	// The same: event loops go before all other threads. Their nice value is lowered,
	// where the process may do so (CAP_SYS_NICE, RLIMIT_NICE), by 20 while they take
	// less than 70% of a core, else by 4; where it may not, that of all others is
	// raised by 4. Default: both are left as they are.
	LoopsFirst bool

	Build      string                // the program's version
	Registerer prometheus.Registerer // default: none
	Log        *slog.Logger          // default: slog.Default()
}

// Validate says what is wrong with the settings. It reads the certificates and the
// hash key, and touches nothing else; databases and lists are read by New.
func (c *Config) Validate() error {
	switch {
	case !isToken(c.Node):
		return fmt.Errorf("node: %q must have 1 to 128 of A-Z a-z 0-9 _ -", c.Node)
	case c.Region != "" && !isToken(c.Region):
		return fmt.Errorf("region: %q must have 1 to 128 of A-Z a-z 0-9 _ -", c.Region)
	case len(c.Control) == 0:
		return errors.New("control: at least one control plane is needed, as host:port")
	case c.NATS == "":
		return errors.New("nats: a URL is needed, such as nats://127.0.0.1:4222")
	case c.DataDir == "":
		return errors.New("data-dir: a folder is needed")
	case c.Drain < 0 || c.Flush < 0:
		return errors.New("drain, flush: they must not be negative")
	}
	if err := clickstream.ValidateURLs(c.NATS); err != nil {
		return fmt.Errorf("nats: %w", err)
	}
	if err := c.validateListeners(); err != nil {
		return err
	}
	labels, err := c.labels()
	if err != nil {
		return err
	}
	if err := labels.Validate(); err != nil {
		return err
	}
	if err := feed.ParseBootstrap(c.Bootstrap); err != nil {
		return err
	}
	if err := c.guard().Validate(); err != nil {
		return err
	}
	for _, target := range c.Control {
		if _, _, err := net.SplitHostPort(target); err != nil {
			return fmt.Errorf("control: %q is not host:port", target)
		}
	}
	return c.validateClicks()
}

// validateClicks says what is wrong with how clicks are recorded.
func (c *Config) validateClicks() error {
	form, err := c.addressForm()
	if err != nil {
		return fmt.Errorf("click-address: %w", err)
	}
	if c.ClickHashKey != "" {
		if form != click.AddressHashed {
			return errors.New("click-hash-key: it is for --click-address hashed")
		}
		if _, err := click.ReadHashKey(c.ClickHashKey); err != nil {
			return fmt.Errorf("click-hash-key: %w", err)
		}
	}
	if _, err := click.ParseFields(c.ClickOmit); err != nil {
		return fmt.Errorf("click-omit: %w", err)
	}
	if c.ClickSync < 0 {
		return fmt.Errorf("click-sync: %v must not be negative", c.ClickSync)
	}
	switch click.Level(c.ClickLevel) {
	case "", click.Memory, click.Process, click.Fsync:
	default:
		return fmt.Errorf("click-level: %q is not memory, process or fsync", c.ClickLevel)
	}
	return nil
}

// addressForm is how client addresses are recorded.
func (c *Config) addressForm() (click.AddressForm, error) {
	return click.ParseAddressForm(cmp.Or(c.ClickAddress, "truncated"))
}

// validateListeners says what is wrong with how redirects are listened for.
func (c *Config) validateListeners() error {
	switch {
	case c.MaxHead != 0 && (c.MaxHead < redirect.MinHead || c.MaxHead > redirect.MaxHead):
		return fmt.Errorf("max-head: %d is not %d to %d bytes", c.MaxHead, redirect.MinHead, redirect.MaxHead)
	case c.HeadTimeout < 0:
		return fmt.Errorf("head-timeout: %v must not be negative", c.HeadTimeout)
	case c.IdleTimeout < 0:
		return fmt.Errorf("idle-timeout: %v must not be negative", c.IdleTimeout)
	case c.MaxConns < 0:
		return fmt.Errorf("max-conns: %d must not be negative", c.MaxConns)
	case c.MaxConnsPerAddr < 0:
		return fmt.Errorf("max-conns-per-addr: %d must not be negative", c.MaxConnsPerAddr)
	case c.ListenTLS != "" && c.TLSCerts == "":
		return errors.New("tls-certs: a folder is needed for --listen-tls")
	case c.ListenTLS == "" && c.TLSCerts != "":
		return errors.New("listen-tls: an address is needed for --tls-certs")
	case c.ReusePort && !redirect.Shareable:
		return errors.New("reuse-port: it works on Linux only")
	}
	for _, l := range []struct{ flag, addr string }{{"listen", c.Listen}, {"listen-tls", c.ListenTLS}} {
		if _, _, err := net.SplitHostPort(l.addr); l.addr != "" && err != nil {
			return fmt.Errorf("%s: %q is not host:port", l.flag, l.addr)
		}
	}
	if c.TLSCerts != "" {
		if _, err := redirect.OpenCerts(c.TLSCerts); err != nil {
			return fmt.Errorf("tls-certs: %w", err)
		}
	}
	geo, err := visitor.ParseGeoHeaders(c.GeoHeaders)
	if err != nil {
		return fmt.Errorf("geo-headers: %w", err)
	}
	header, err := c.forwardedHeader()
	if err != nil {
		return fmt.Errorf("forwarded-header: %w", err)
	}
	if _, err := redirect.ParseProxies(c.TrustedProxies); err != nil {
		return fmt.Errorf("trusted-proxies: %w", err)
	}
	if geo != (visitor.GeoHeaders{}) && header == redirect.NoForwardedHeader {
		return errors.New("geo-headers: they are believed where --forwarded-header is; set that and --trusted-proxies")
	}
	speaks := c.ProxyProtocol || header != redirect.NoForwardedHeader
	switch {
	case speaks && len(c.TrustedProxies) == 0:
		return errors.New("trusted-proxies: without any, --proxy-protocol and --forwarded-header have no effect")
	case !speaks && len(c.TrustedProxies) > 0:
		return errors.New("trusted-proxies: say how they name a client, with --proxy-protocol or --forwarded-header")
	}
	return nil
}

// labels are the settings of labels.
func (c *Config) labels() (label.Config, error) {
	off, err := link.ParseLabelSet(c.LabelOff)
	if err != nil {
		return label.Config{}, fmt.Errorf("label-off: %w", err)
	}
	return label.Config{
		Memory: c.LabelMemory, Off: off, RateWindow: c.LabelRateWindow, Rate: c.LabelRate, RatePerLink: c.LabelRatePerLink,
		Duplicate: c.LabelDuplicate, Replay: c.LabelReplay,
	}, nil
}

// guard is what is not taken from a control plane.
func (c *Config) guard() feed.Guard {
	return feed.Guard{
		Shrink: c.GuardShrink, Grow: c.GuardGrow, Floor: c.GuardFloor,
		MaxEntries: c.MaxEntries, MaxBytes: c.MaxStateBytes, MaxEntryBytes: c.MaxEntryBytes,
	}
}

func (c *Config) forwardedHeader() (redirect.ForwardedHeader, error) {
	return redirect.ParseForwardedHeader(cmp.Or(c.ForwardedHeader, "none"))
}

// isToken says whether s may be part of a subject: NATS separates those by
// dots.
func isToken(s string) bool {
	return s != "" && len(s) <= 128 && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	}) < 0
}

func (c *Config) setDefaults() {
	if c.Region == "" {
		c.Region = "local"
	}
	if c.Listen == "" {
		c.Listen = ":8080"
	}
	if c.Drain == 0 {
		c.Drain = 10 * time.Second
	}
	if c.Flush == 0 {
		c.Flush = 10 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}
