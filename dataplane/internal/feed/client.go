package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// Config says who the node is and where its state comes from.
type Config struct {
	// Control planes, "host:port" each. At least one.
	Targets []string
	// Unique in the fleet: 1 to 128 of A-Z a-z 0-9 _ . -. Required.
	Node string
	// Where it stands; as Node. Required.
	Region string
	// Where it listens for redirects, as operators are to see it.
	Listen string
	// The program's version.
	Build string
	// Random, anew each time the process starts.
	Boot uint64
	// The folder of the last-known-good file; made if it is missing. Empty:
	// the node boots from a control plane only.
	Dir string
	// What is served. Required.
	Live *table.Live
	// Gives answered, requests_per_second, spool_clicks and dropped_clicks of
	// each status. Called from one goroutine. Default: none are said.
	Status func() *feedv1.Status

	// Time between two statuses. Default: 5 s.
	StatusInterval time.Duration
	// Least time between two writes of the file. Default: 5 s. It is longer
	// where writing takes long: at most a twentieth of the time is spent so.
	SaveInterval time.Duration
	// Waiting time after a failed attempt: a random part of the first, doubled
	// each time up to the second. Default: 100 ms, 5 s.
	MinBackoff, MaxBackoff time.Duration

	// How targets are dialed, transport credentials included. Required.
	Dial []grpc.DialOption
	// Default: slog.Default().
	Log *slog.Logger
	// Default: none.
	Registerer prometheus.Registerer
}

// Client keeps a node's table at the head.
type Client struct {
	cfg     Config
	applier applier
	keeper  *keeper // nil: no folder
	metrics *metrics

	ready     chan struct{}
	readyOnce sync.Once
}

// New checks the configuration.
func New(cfg Config) (*Client, error) {
	switch {
	case len(cfg.Targets) == 0:
		return nil, errors.New("feed: no control plane to connect to")
	case !validID(cfg.Node):
		return nil, fmt.Errorf("feed: node %.150q: a node's name is 1 to 128 of A-Z a-z 0-9 _ . -", cfg.Node)
	case !validID(cfg.Region):
		return nil, fmt.Errorf("feed: region %.150q: a region's name is 1 to 128 of A-Z a-z 0-9 _ . -", cfg.Region)
	case cfg.Live == nil:
		return nil, errors.New("feed: nothing to keep up to date")
	}
	for _, target := range cfg.Targets {
		conn, err := grpc.NewClient(target, cfg.Dial...) // connects to nothing yet
		if err != nil {
			return nil, fmt.Errorf("feed: control plane %q: %w", target, err)
		}
		_ = conn.Close()
	}
	setDefault(&cfg.StatusInterval, 5*time.Second)
	setDefault(&cfg.SaveInterval, 5*time.Second)
	setDefault(&cfg.MinBackoff, 100*time.Millisecond)
	setDefault(&cfg.MaxBackoff, 5*time.Second)
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c := &Client{cfg: cfg, applier: applier{live: cfg.Live}, ready: make(chan struct{})}
	c.metrics = newMetrics(cfg.Live, cfg.Registerer)
	if cfg.Dir != "" {
		c.keeper = newKeeper(cfg.Dir, cfg.SaveInterval, cfg.Live, c.metrics, cfg.Log)
	}
	return c, nil
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}

// validID says whether s may name a node or a region.
func validID(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '.', c == '-':
		default:
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 128
}

// tellEvery is how often an outage is logged that goes on.
const tellEvery = time.Minute

// Ready is closed when a verified state is live: the last known good one, or
// one that is not older than what the control plane had when it was reached.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Run keeps the table up to date until ctx ends, and returns nil then. Whatever
// fails is tried again; what is live stays.
func (c *Client) Run(ctx context.Context) error {
	var saving sync.WaitGroup
	defer saving.Wait()
	if c.keeper != nil {
		if c.keeper.boot() {
			c.readyOnce.Do(func() { close(c.ready) })
		}
		saving.Go(func() { c.keeper.run(ctx) })
	}
	failures := 0
	var told time.Time
	for target := rand.N(len(c.cfg.Targets)); ctx.Err() == nil; target++ {
		address := c.cfg.Targets[target%len(c.cfg.Targets)]
		good, err := c.session(ctx, address)
		c.metrics.connected.Store(false)
		if ctx.Err() != nil {
			break
		}
		if good && status.Code(err) != codes.Aborted {
			failures = 0 // but not when two nodes with one name take turns
		}
		wait := rand.N(min(c.cfg.MinBackoff<<min(failures, 20), c.cfg.MaxBackoff)) + 1
		failures++
		c.metrics.disconnects.Add(1)
		level := slog.LevelDebug
		if failures == 1 || time.Since(told) > tellEvery {
			level, told = slog.LevelWarn, time.Now()
		}
		c.cfg.Log.Log(ctx, level, "control plane is not connected", "target", address, "err", err, "attempt", failures, "retry_in", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}
