package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
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
	// Where a node that has no file takes its first state from, if no control
	// plane has given it one: a file, an http or https URL of one, or "host:port" of
	// the admin address of another node. Default: from nowhere.
	Bootstrap string
	// What is not taken, whoever sends it.
	Guard Guard
	// Gives answered, requests_per_second, spool_clicks and dropped_clicks of
	// each status. Called from one goroutine. Default: none are said.
	Status func() *feedv1.Status

	// Time between two statuses. Default: 5 s.
	StatusInterval time.Duration
	// Least time between two writes of the file. Default: 30 s; what comes in
	// between is in a journal beside it, and a journal that grows long is a
	// reason to write sooner. It is longer where writing takes long: at most a
	// twentieth of the time is spent so. A snapshot is written at once.
	SaveInterval time.Duration
	// Waiting time after a failed attempt: a random part of the first, doubled
	// each time up to the second. Default: 100 ms, 5 s.
	MinBackoff, MaxBackoff time.Duration

	// How connections to targets are secured. Required.
	Credentials credentials.TransportCredentials
	// How they are dialed, if not as gRPC does.
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
	serving chan struct{} // holds one for each state file that is being sent

	ready, level         chan struct{}
	readyOnce, levelOnce sync.Once

	// What follows belongs to the goroutine of Run.
	behindInRow int  // control planes in a row that hold an older version
	outage      pace // of what the log is told about
	rejects     pace
	unserved    pace
	older       pace
	boots       pace
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
	if err := cfg.Guard.Validate(); err != nil {
		return nil, fmt.Errorf("feed: %w", err)
	}
	if _, err := parseSource(cfg.Bootstrap); err != nil {
		return nil, fmt.Errorf("feed: %w", err)
	}
	for _, target := range cfg.Targets {
		conn, err := grpc.NewClient(target, append(slices.Clip(cfg.Dial), grpc.WithTransportCredentials(cfg.Credentials))...) // connects to nothing yet
		if err != nil {
			return nil, fmt.Errorf("feed: control plane %q: %w", target, err)
		}
		_ = conn.Close()
	}
	setDefault(&cfg.StatusInterval, 5*time.Second)
	setDefault(&cfg.SaveInterval, 30*time.Second)
	setDefault(&cfg.MinBackoff, 100*time.Millisecond)
	setDefault(&cfg.MaxBackoff, 5*time.Second)
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c := &Client{
		cfg: cfg, applier: newApplier(cfg.Live, cfg.Guard), serving: make(chan struct{}, maxServing),
		ready: make(chan struct{}), level: make(chan struct{}),
	}
	c.metrics = newMetrics(cfg.Live, cfg.Registerer)
	if cfg.Dir != "" {
		c.keeper = newKeeper(cfg.Dir, cfg.SaveInterval, cfg.Live, c.metrics, cfg.Log)
	}
	return c, nil
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

// pace keeps a log from being told the same again and again.
type pace struct {
	last  time.Time
	quiet int // times that the log was not told since
}

// due says whether the log is to be told, and how many times it was not since.
func (p *pace) due(every time.Duration) (quiet int, ok bool) {
	if now := time.Now(); now.Sub(p.last) >= every {
		quiet = p.quiet
		p.last, p.quiet = now, 0
		return quiet, true
	}
	p.quiet++
	return 0, false
}

// Ready is closed when a verified state is live: the last known good one, or
// one that is not older than what the control plane had when it was reached.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// CaughtUp is closed when the live state has been level with that of a control plane.
func (c *Client) CaughtUp() <-chan struct{} { return c.level }

// Run keeps the table up to date until ctx ends, and returns nil then. Whatever
// fails is tried again; what is live stays.
func (c *Client) Run(ctx context.Context) error {
	var saving sync.WaitGroup
	defer func() {
		saving.Wait()
		if c.keeper != nil {
			c.keeper.close()
		}
		c.applier.tail.close()
		c.applier.wire.close()
	}()
	if c.keeper != nil {
		c.applier.wire = openTripwire(c.keeper.note(), time.Now())
		c.applier.past = openEpochs(c.keeper.epochs(), c.cfg.Log)
		held := c.keeper.boot(&c.applier)
		c.metrics.takenDown.Store(int64(len(c.applier.down.refusals)))
		if held {
			c.holdsState()
		}
		saving.Go(func() { c.keeper.run(ctx) })
	}
	c.sitOut(ctx)
	failures := 0
	first := firstRound{client: c}
	for target := rand.N(len(c.cfg.Targets)); ctx.Err() == nil; target++ {
		address := c.cfg.Targets[target%len(c.cfg.Targets)]
		good, err := c.session(ctx, address, first.patience())
		c.metrics.connected.Store(false)
		if ctx.Err() != nil {
			break
		}
		if good && status.Code(err) != codes.Aborted {
			failures = 0 // but not when two nodes with one name take turns
		}
		wait := rand.N(min(c.cfg.MinBackoff<<min(failures, 20), c.cfg.MaxBackoff)) + 1
		failures++
		if later, ok := errors.AsType[*laterError](err); ok {
			wait, failures = later.wait(), 0
		}
		c.metrics.disconnects.Add(1)
		wait = first.asked(ctx, wait)
		c.tellOutage(ctx, address, err, failures, wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// tellOutage logs that no control plane is followed: the first time, and then
// now and then.
func (c *Client) tellOutage(ctx context.Context, address string, err error, failures int, wait time.Duration) {
	level := slog.LevelDebug
	if failures <= 1 {
		c.outage = pace{}
	}
	if _, ok := c.outage.due(tellEvery); ok {
		level = slog.LevelWarn
	}
	c.cfg.Log.Log(ctx, level, "control plane is not connected", "target", address, "err", err, "attempt", failures, "retry_in", wait,
		"state_age", time.Duration(c.metrics.age()*float64(time.Second)).Round(time.Second))
}

// holdsState makes the node ready with a state that no control plane has
// confirmed.
func (c *Client) holdsState() { c.readyOnce.Do(func() { close(c.ready) }) }

// sitOut waits, with what the node holds, when the process has ended again and
// again as it took in what a control plane sent.
func (c *Client) sitOut(ctx context.Context) {
	wait, over := c.applier.wire.quarantine()
	if wait == 0 || c.cfg.Live.Load() == nil {
		return
	}
	c.metrics.quarantined.Store(true)
	defer c.metrics.quarantined.Store(false)
	c.cfg.Log.Error("the process has ended several times in a row as it took in a state: no control plane is followed for a while",
		"for", wait, "held", heldVersion(c.cfg.Live).Revision, "crashed_on", over.Revision,
		"hint", "see why it ended in the log of the process before; a stop in order, with SIGTERM, ends the waiting")
	select {
	case <-ctx.Done():
	case <-time.After(wait):
	}
}

// laterError says that a control plane has no room now.
type laterError struct {
	after  time.Duration
	reason string
}

func (e *laterError) Error() string {
	return "control plane has no room now: " + e.reason
}

// The time that a control plane may ask for.
const minLater, maxLater = 10 * time.Millisecond, 5 * time.Minute

// wait is when the node comes back: up to half more than what it was asked for,
// so that nodes that were sent away together do not come back so.
func (e *laterError) wait() time.Duration {
	after := min(max(e.after, minLater), maxLater)
	return after + rand.N(after/2+1)
}
