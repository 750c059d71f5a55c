// Package dataplane is a node: everything that a click touches.
//
// The way of a request through it: internal/redirect reads the head and asks
// internal/table, which holds all links in memory; proto/link decides;
// internal/click records the click in the spool; the answer is written. None of
// that waits for a lock, a disk or a network.
//
// Beside it, internal/feed keeps the table at the control plane's head, and
// internal/click/publish brings the spool to JetStream. Both may be without
// their peer for as long as it takes.
//
// Only affnode and programs that embed a node need this package; consumers of
// clicks import clickstream.
//
// A Node's methods may be called from any goroutine, Run once.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/click/publish"
	"github.com/affleet/affleet/dataplane/internal/feed"
	"github.com/affleet/affleet/dataplane/internal/redirect"
	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// Config is a node's. Where a default is named, the zero value stands for it.
type Config struct {
	Node    string   // unique in the fleet: 1 to 128 of A-Z a-z 0-9 _ -. Required
	Region  string   // likewise. Default: local
	Control []string // host:port of control planes, at least one
	NATS    string   // URLs of NATS servers, separated by commas. Required
	Listen  string   // host:port for redirects. Default: :8080
	DataDir string   // last known good state and spool. Required

	ClickLevel   string        // memory or process. Default: process
	ClickAddress string        // full or truncated. Default: truncated
	SpoolBytes   int64         // limit of the spool. Default: 1 GiB
	StreamBytes  int64         // limit of the stream AFF_CLICKS, if this node creates it. Default: 10 GiB, or what the server has
	Drain        time.Duration // to answer what is in flight at the end. Default: 10 s
	Flush        time.Duration // to publish what is in the spool at the end. Default: 10 s

	Build      string                // the program's version
	Registerer prometheus.Registerer // default: none
	Log        *slog.Logger          // default: slog.Default()
}

// Validate says what is wrong with the settings, without touching anything.
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
	for _, target := range c.Control {
		if _, _, err := net.SplitHostPort(target); err != nil {
			return fmt.Errorf("control: %q is not host:port", target)
		}
	}
	if c.ClickAddress != "" {
		if _, err := click.ParseAddressForm(c.ClickAddress); err != nil {
			return fmt.Errorf("click-address: %w", err)
		}
	}
	switch click.Level(c.ClickLevel) {
	case "", click.Memory, click.Process:
	default:
		return fmt.Errorf("click-level: %q is not memory or process", c.ClickLevel)
	}
	return nil
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

// Node is a data-plane node.
type Node struct {
	cfg       Config
	boot      uint64
	ln        net.Listener
	live      *table.Live
	clicks    *click.Recorder
	publisher *publish.Publisher
	feed      *feed.Client
	redirects *redirect.Server
	draining  atomic.Bool
	rate      rate
}

// New opens the node's address and spool. Nothing is answered before Run; a
// node that is not run must be closed.
func New(cfg Config) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	n := &Node{cfg: cfg, boot: rand.Uint64() | 1, live: new(table.Live)}
	if n.ln, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = n.Close()
		}
	}()
	if err := n.openClicks(); err != nil {
		return nil, err
	}
	n.redirects, err = redirect.New(redirect.Config{Live: n.live, Clicks: n.clicks, Registerer: cfg.Registerer})
	if err != nil {
		return nil, err
	}
	n.feed, err = feed.New(feed.Config{
		Targets:    cfg.Control,
		Node:       cfg.Node,
		Region:     cfg.Region,
		Listen:     n.ln.Addr().String(),
		Build:      cfg.Build,
		Boot:       n.boot,
		Dir:        filepath.Join(cfg.DataDir, "state"),
		Dial:       []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		Live:       n.live,
		Status:     n.status,
		Log:        cfg.Log,
		Registerer: cfg.Registerer,
	})
	return n, err
}

// openClicks opens the spool and what publishes it.
func (n *Node) openClicks() error {
	form := click.AddressTruncated
	if n.cfg.ClickAddress != "" {
		form, _ = click.ParseAddressForm(n.cfg.ClickAddress) // Validate has seen it
	}
	var err error
	n.clicks, err = click.Open(click.Config{
		Dir:        filepath.Join(n.cfg.DataDir, "clicks"),
		Level:      click.Level(n.cfg.ClickLevel),
		MaxBytes:   n.cfg.SpoolBytes,
		Node:       n.cfg.Node,
		Region:     n.cfg.Region,
		Boot:       n.boot,
		Address:    form,
		Registerer: n.cfg.Registerer,
	})
	if err != nil {
		return fmt.Errorf("open clicks: %w", err)
	}
	n.publisher, err = publish.New(publish.Config{
		URL:        n.cfg.NATS,
		Recorder:   n.clicks,
		Stream:     publish.StreamLimits{MaxBytes: n.cfg.StreamBytes},
		Log:        n.cfg.Log,
		Registerer: n.cfg.Registerer,
	})
	return err
}

// Addr is the address for redirects.
func (n *Node) Addr() net.Addr { return n.ln.Addr() }

// Ready is closed once the node serves a verified state.
func (n *Node) Ready() <-chan struct{} { return n.feed.Ready() }

// Healthy says whether the node should be sent requests, and else why not.
func (n *Node) Healthy() error {
	if n.draining.Load() {
		return errors.New("draining")
	}
	if n.live.Load() == nil {
		return errors.New("no state yet: waiting for a control plane")
	}
	return nil
}

// Close gives back what New has opened, for a node that is not run.
func (n *Node) Close() error {
	err := n.ln.Close()
	if n.clicks != nil {
		err = errors.Join(err, n.clicks.Close())
	}
	return err
}

// Run serves until ctx ends; then it stops accepting, answers what is in
// flight, publishes what is in the spool and returns. What could not be
// published in time stays in the spool for the next start.
func (n *Node) Run(ctx context.Context) error {
	n.cfg.Log.Info("node starts", "node", n.cfg.Node, "region", n.cfg.Region, "listen", n.Addr().String(), "build", n.cfg.Build)
	// What serves redirects ends before what it relies on.
	behind, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	background, behind := errgroup.WithContext(behind)
	background.Go(func() error { return n.feed.Run(behind) })
	background.Go(func() error { return n.publisher.Run(behind) })

	front, stopFront := context.WithCancel(ctx)
	context.AfterFunc(behind, stopFront)
	context.AfterFunc(front, func() { n.draining.Store(true) })
	err := n.redirects.Serve(front, n.ln, n.cfg.Drain)
	stopFront()

	n.cfg.Log.Info("node stops: publishing clicks")
	flush, done := context.WithTimeout(behind, n.cfg.Flush)
	defer done()
	if err := n.publisher.Flush(flush); err != nil {
		n.cfg.Log.Warn("clicks stay in the spool until the next start", "reason", err)
	}
	stop()
	if failed := background.Wait(); failed != nil && !errors.Is(failed, context.Canceled) {
		err = errors.Join(err, failed)
	}
	return errors.Join(err, n.clicks.Close())
}

// status is what the control plane is told every few seconds.
func (n *Node) status() *feedv1.Status {
	ledger := n.clicks.Ledger()
	return &feedv1.Status{
		Answered:          ledger.Answered,
		RequestsPerSecond: n.rate.update(ledger.Answered, time.Now()),
		SpoolClicks:       int64(ledger.Recorded - n.clicks.Log().Acknowledged()),
		DroppedClicks:     ledger.Lost(),
	}
}

// rate turns a counter into a rate. It belongs to the goroutine that sends the
// status.
type rate struct {
	count uint64
	at    time.Time
}

// update gives the rate per second since the last update, 0 at first.
func (r *rate) update(count uint64, now time.Time) float64 {
	seconds, clicks := now.Sub(r.at).Seconds(), count-r.count
	first := r.at.IsZero()
	r.count, r.at = count, now
	if first || seconds <= 0 {
		return 0
	}
	return float64(clicks) / seconds
}
