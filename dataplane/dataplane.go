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
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/dataplane/internal/caps"
	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/click/publish"
	"github.com/affleet/affleet/dataplane/internal/feed"
	"github.com/affleet/affleet/dataplane/internal/label"
	"github.com/affleet/affleet/dataplane/internal/redirect"
	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	"github.com/affleet/affleet/proto/visitor"
)

// Node is a data-plane node.
type Node struct {
	cfg       Config
	boot      uint64
	doors     []*door // the first is for plain HTTP
	opened    chan struct{}
	live      *table.Live
	clicks    *click.Recorder
	publisher *publish.Publisher
	feed      *feed.Client
	redirects *redirect.Server
	sources   *visitor.Sources
	caps      *caps.Leases
	judge     *label.Judge
	draining  atomic.Bool
	rate      rate
	percent   int // at which garbage is collected, once collect has set it; trim's
}

// New opens the node's addresses and spool. Nothing is answered before Run; a
// node that is not run must be closed.
func New(cfg Config) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	n := &Node{cfg: cfg, boot: rand.Uint64() | 1, live: new(table.Live), opened: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = n.Close()
		}
	}()
	if err := n.openDoors(); err != nil {
		return nil, err
	}
	if err := n.openClicks(); err != nil {
		return nil, err
	}
	if err := n.openDecisions(); err != nil {
		return nil, err
	}
	if n.redirects, err = redirect.New(n.redirectConfig()); err != nil {
		return nil, err
	}
	n.feed, err = feed.New(feed.Config{
		Targets:     cfg.Control,
		Node:        cfg.Node,
		Region:      cfg.Region,
		Listen:      n.Addr().String(),
		Build:       cfg.Build,
		Boot:        n.boot,
		Dir:         filepath.Join(cfg.DataDir, "state"),
		Credentials: insecure.NewCredentials(),
		Live:        n.live,
		Bootstrap:   cfg.Bootstrap,
		Guard:       cfg.guard(),
		Status:      n.status,
		Log:         cfg.Log,
		Registerer:  cfg.Registerer,
	})
	return n, err
}

// openDecisions opens what decisions depend on beside the table.
func (n *Node) openDecisions() (err error) {
	n.sources, err = visitor.Open(visitor.Config{Geo: n.cfg.GeoIP, Bots: n.cfg.Bots, Datacenters: n.cfg.Datacenters})
	if err != nil {
		return fmt.Errorf("geoip, bots, datacenters: %w", err)
	}
	labels, _ := n.cfg.labels() // Validate has seen it
	if n.judge, err = label.New(labels); err != nil {
		return err
	}
	if n.cfg.Registerer != nil {
		if err := n.cfg.Registerer.Register(sourcesCollector{n.sources, n.judge}); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	n.caps, err = caps.New(caps.Config{
		Targets: n.cfg.Control, Node: n.cfg.Node, Log: n.cfg.Log, Registerer: n.cfg.Registerer,
		Dial: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		Has: func(name []byte) bool {
			t := n.live.Load()
			return t == nil || t.Has(name)
		},
	})
	return err
}

// redirectConfig is the part of the settings that is for redirects.
func (n *Node) redirectConfig() redirect.Config {
	proxies, _ := redirect.ParseProxies(n.cfg.TrustedProxies) // Validate has seen both
	header, _ := n.cfg.forwardedHeader()
	geo, _ := visitor.ParseGeoHeaders(n.cfg.GeoHeaders)
	return redirect.Config{
		Live:            n.live,
		Clicks:          n.clicks,
		MaxHead:         n.cfg.MaxHead,
		HeadTimeout:     n.cfg.HeadTimeout,
		IdleTimeout:     n.cfg.IdleTimeout,
		MaxConns:        n.cfg.MaxConns,
		Loops:           n.cfg.Loops,
		LoopsFirst:      n.cfg.LoopsFirst,
		MaxConnsPerAddr: n.cfg.MaxConnsPerAddr,
		TrustedProxies:  proxies,
		ProxyProtocol:   n.cfg.ProxyProtocol,
		ForwardedHeader: header,
		Sources:         n.sources,
		GeoHeaders:      geo,
		Caps:            n.caps,
		Judge:           n.judge,
		Registerer:      n.cfg.Registerer,
		Report:          func(err error) { n.cfg.Log.Error("redirects", "reason", err) },
	}
}

// openClicks opens the spool and what publishes it.
func (n *Node) openClicks() error {
	form, _ := n.cfg.addressForm() // Validate has seen it
	var secret []byte
	if n.cfg.ClickHashKey != "" {
		var err error
		if secret, err = click.ReadHashKey(n.cfg.ClickHashKey); err != nil {
			return fmt.Errorf("click-hash-key: %w", err)
		}
	}
	omit, err := click.ParseFields(n.cfg.ClickOmit)
	if err != nil {
		return fmt.Errorf("click-omit: %w", err)
	}
	n.clicks, err = click.Open(click.Config{
		Dir:        filepath.Join(n.cfg.DataDir, "clicks"),
		Level:      click.Level(n.cfg.ClickLevel),
		Sync:       n.cfg.ClickSync,
		MaxBytes:   n.cfg.SpoolBytes,
		Retention:  n.cfg.ClickKeep,
		Node:       n.cfg.Node,
		Region:     n.cfg.Region,
		Boot:       n.boot,
		Address:    form,
		HashKey:    secret,
		Omit:       omit,
		Registerer: n.cfg.Registerer,
	})
	if err != nil {
		return fmt.Errorf("open clicks: %w", err)
	}
	var beside publish.Beside
	if runtime.NumCPU() == 1 { // else another core may be free
		beside = func(work func(look func() bool)) bool { return n.redirects.Beside(work) }
	}
	n.publisher, err = publish.New(publish.Config{
		URL:        n.cfg.NATS,
		Recorder:   n.clicks,
		Stream:     publish.StreamLimits{MaxBytes: n.cfg.StreamBytes},
		Beside:     beside,
		Log:        n.cfg.Log,
		Registerer: n.cfg.Registerer,
	})
	return err
}

// Addr is the address for redirects.
func (n *Node) Addr() net.Addr { return n.doors[0].addr() }

// Ready is closed once the node holds a verified state.
func (n *Node) Ready() <-chan struct{} { return n.feed.Ready() }

// Healthy says whether the node should be sent requests, and else why not.
func (n *Node) Healthy() error {
	if n.draining.Load() {
		return errors.New("draining")
	}
	if n.live.Load() == nil {
		return errors.New("no state yet: waiting for a control plane")
	}
	select {
	case <-n.feed.Ready():
	default:
		return errors.New("the state is not complete yet: it is being received")
	}
	select {
	case <-n.opened:
		return nil
	default:
		return errors.New("not listening yet")
	}
}

// ServeState answers with the state that the node keeps on disk, from which
// another one can start: see Config.Bootstrap. It is for the admin address.
func (n *Node) ServeState(w http.ResponseWriter, r *http.Request) { n.feed.ServeState(w, r) }

// Close gives back what New has opened, for a node that is not run.
func (n *Node) Close() error {
	var err error
	for _, d := range n.doors {
		err = errors.Join(err, d.close())
	}
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
	background.Go(func() error { return n.caps.Run(behind) })
	background.Go(func() error {
		n.sources.Watch(behind, func(err error) {
			n.cfg.Log.Error("a file that was replaced is not used; what was read before is", "reason", err)
		})
		return nil
	})

	front, stopFront := context.WithCancel(ctx)
	context.AfterFunc(behind, stopFront)
	context.AfterFunc(front, func() { n.draining.Store(true) })
	background.Go(func() error { return n.trim(behind) })
	err := n.serve(front)
	stopFront()

	n.cfg.Log.Info("node stops: publishing clicks")
	flush, done := context.WithTimeout(behind, n.cfg.Flush)
	defer done()
	if err := n.publisher.Flush(flush); err != nil {
		what := "what is not published stays in the spool until the next start"
		if n.cfg.ClickLevel == string(click.Memory) {
			what = "what is not published is lost with the memory that it is in"
		}
		n.cfg.Log.Warn(what, "reason", err)
	}
	stop()
	if failed := background.Wait(); failed != nil && !errors.Is(failed, context.Canceled) {
		err = errors.Join(err, failed)
	}
	return errors.Join(err, n.clicks.Close())
}

// status is what the control plane is told every few seconds.
func (n *Node) status() *feedv1.Status {
	acknowledged := n.clicks.Log().Acknowledged() // first: it follows the others
	ledger := n.clicks.Ledger()
	return &feedv1.Status{
		Answered:          ledger.Answered,
		RequestsPerSecond: n.rate.update(ledger.Answered, time.Now()),
		SpoolClicks:       int64(n.clicks.Last() - acknowledged), // sequences, also those whose clicks are lost
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
