// Package contest measures redirect servers side by side: nginx, peers in Go,
// and affnode, each alone on one core, with the same links and the same
// requests, in one go. What is measured on different machines or on different
// days is not for it: only the ratios within a run are worth comparing.
//
// A run belongs to one goroutine. It needs Linux, nginx, wrk and two cores that
// have nothing else to do.
package contest

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/affleet/affleet/deploy/bench/linkset"
)

// Config is a run's. All fields are required.
type Config struct {
	Bin    string // folder of the fleet's programs
	Dir    string // an empty folder
	Rounds int
	Links  int

	Warm   time.Duration // before each closed loop
	Closed time.Duration // with as many requests as the server takes
	Open   time.Duration // at the fixed rate
}

// The cores: servers that are measured have one, what drives them the other.
const (
	serverCore    = "0"
	generatorCore = "1"
)

// set is the links.
var set = linkset.Set{Seed: 1}

// Missing says what this machine lacks, and how to install it; nil if nothing.
func Missing() error {
	if runtime.GOOS != "linux" || runtime.NumCPU() < 2 {
		return fmt.Errorf("redirect servers are compared on Linux with at least 2 cores; this is %s with %d", runtime.GOOS, runtime.NumCPU())
	}
	var programs, packages []string
	for _, need := range []struct{ program, from string }{
		{"nginx", "nginx-light"}, {"wrk", "wrk"}, {"taskset", "util-linux"},
	} {
		if _, err := exec.LookPath(need.program); err != nil {
			programs, packages = append(programs, need.program), append(packages, need.from)
		}
	}
	if len(programs) == 0 {
		return nil
	}
	return fmt.Errorf("%s not found; install with: apt-get install %s", strings.Join(programs, ", "), strings.Join(packages, " "))
}

// sample is what one turn of a server gives.
type sample struct {
	cpu            float64 // µs per request
	rps            float64
	busy           float64 // share of its core that the server used
	foreign        float64 // share of the cores that others used, the larger one
	p50, p99, p999 float64 // µs, at the fixed rate
	sliceP99       float64 // µs: median over slices of 100 ms
	resident       float64 // MB, at the end of the turn
}

// Result is a run's.
type Result struct {
	Config   Config
	Rate     float64 // requests per second of the open loop
	Load     [2]string
	Versions string

	servers   []*server // in the order of the report
	edits     edits
	besides   []*beside
	generator float64 // share of its core that the open loop's generator used, median
	stalls    float64 // ms in which it was not let run, median
	realTime  bool
	awake     bool // the cores did not halt
}

// Run measures.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	r := &Result{Config: cfg, Load: [2]string{load()}, Versions: versions(ctx), realTime: true}
	// What this program does itself, it does beside the generator.
	if err := repin(os.Getpid()); err != nil {
		return nil, err
	}
	s, err := newStage(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	r.servers = s.servers
	for _, c := range s.servers {
		if err := c.check(s); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	if r.Rate, err = s.calibrate(ctx); err != nil {
		return nil, err
	}
	progress("offered rate of the open loop: %.0f/s", r.Rate)
	var generator, stalls []float64
	for round := range cfg.Rounds {
		if err := s.edit(ctx, &r.edits); err != nil {
			return nil, fmt.Errorf("edits: %w", err)
		}
		for i := range s.servers {
			c := s.servers[(i+round)%len(s.servers)] // nobody is always the first
			got, own, err := s.quietTurn(ctx, c, r.Rate)
			if err != nil {
				return nil, fmt.Errorf("%s: %w\n%s", c.name, err, c.log())
			}
			progress("round %d  %-28s %5.2f µs  %6.0f/s  busy %3.0f%%  p50 %4.0f  p99 %5.0f (typically %4.0f)  p99.9 %6.0f µs  %4.0f MB  others %.1f%%",
				round+1, c.name, got.cpu, got.rps, 100*got.busy, got.p50, got.p99, got.sliceP99, got.p999, got.resident, 100*got.foreign)
			c.samples = append(c.samples, got)
			generator = append(generator, own.CPU/own.Seconds)
			stalls = append(stalls, float64(own.Stalls)/1e6)
			r.realTime = r.realTime && own.RealTime
		}
	}
	if err := s.timeMore(ctx, r.Rate, moreTimings*cfg.Rounds); err != nil {
		return nil, err
	}
	r.besides = besides(s.servers, r.Rate)
	for range min(cfg.Rounds, besideRounds) {
		for _, b := range r.besides {
			for range b.turns {
				if err := b.measure(ctx, s); err != nil {
					return nil, fmt.Errorf("%s beside %s: %w\n%s", b.server.name, b.what, err, b.server.log())
				}
			}
		}
	}
	r.generator, r.stalls = spreadOf(generator).median, spreadOf(stalls).median
	r.Load[1], r.awake = load(), s.awake
	return r, nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

const (
	// quiet is the share of a core that other programs may take.
	quiet = 0.03
	// tries is how often a turn is repeated because they took more.
	tries = 2
	// patience is for a moment that is quiet.
	patience = 5 * time.Second
	glance   = 500 * time.Millisecond
)

// awaitQuiet waits until others do next to nothing, or patience ends.
func awaitQuiet(ctx context.Context, patience time.Duration) error {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		before := coresBusy()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(glance):
		}
		now := coresBusy()
		if max(now[0]-before[0], now[1]-before[1]) <= glance/10 {
			break
		}
	}
	return nil
}

// quietTurn gives the quietest of a few turns.
func (s *stage) quietTurn(ctx context.Context, c *server, rate float64) (best sample, own openLoop, err error) {
	for try := range tries {
		if err := awaitQuiet(ctx, patience); err != nil {
			return best, own, err
		}
		got, o, err := s.turn(ctx, c, rate)
		if err != nil {
			return best, own, err
		}
		if try == 0 || got.foreign < best.foreign {
			best, own = got, o
		}
		if best.foreign <= quiet {
			break
		}
	}
	return best, own, nil
}

// turn lets a server run alone: closed loop, then open loop.
func (s *stage) turn(ctx context.Context, c *server, rate float64) (sample, openLoop, error) {
	if err := c.begin(s); err != nil {
		return sample{}, openLoop{}, err
	}
	if _, err := s.measure(c, func() (uint64, error) { return s.wrk(ctx, c.addr, s.cfg.Warm) }); err != nil {
		return sample{}, openLoop{}, fmt.Errorf("warm-up: %w", err)
	}
	closed, err := s.measure(c, func() (uint64, error) { return s.wrk(ctx, c.addr, s.cfg.Closed) })
	if err != nil {
		return sample{}, openLoop{}, err
	}
	got, own, err := s.time(ctx, c, rate)
	if err != nil {
		return sample{}, openLoop{}, err
	}
	if got.resident, err = resident(c.pid()); err != nil {
		return sample{}, openLoop{}, err
	}
	got.cpu = closed.cpu.Seconds() * 1e6 / float64(closed.requests)
	got.rps = float64(closed.requests) / closed.wall.Seconds()
	got.busy, got.foreign = closed.cpu.Seconds()/closed.wall.Seconds(), max(closed.foreign, got.foreign)
	return got, own, c.end()
}

// time gives the latencies of an open loop.
func (s *stage) time(ctx context.Context, c *server, rate float64) (got sample, own openLoop, err error) {
	open, err := s.measure(c, func() (_ uint64, err error) {
		own, err = s.openLoop(ctx, c.addr, rate)
		return own.Answered, err
	})
	if err != nil {
		return sample{}, openLoop{}, fmt.Errorf("open loop: %w", err)
	}
	micros := func(ns int64) float64 { return float64(ns) / 1e3 }
	return sample{
		foreign: open.foreign, p50: micros(own.P50), p99: micros(own.P99), p999: micros(own.P999), sliceP99: micros(own.SliceP99),
	}, own, nil
}

// moreTimings is how often, for each round, affnode and nginx are timed once more: a
// p99 over some seconds is mostly what else the machine did in them, and five of them
// say little.
const moreTimings = 3

// timeMore lets affnode and nginx take the fixed rate in turns, now one and now the
// other first.
func (s *stage) timeMore(ctx context.Context, rate float64, turns int) error {
	for turn := range turns {
		pair := [2]*server{s.node, s.nginx}
		if turn%2 == 1 {
			pair[0], pair[1] = pair[1], pair[0]
		}
		for _, c := range pair {
			if err := c.begin(s); err != nil {
				return err
			}
			if err := awaitQuiet(ctx, patience); err != nil {
				return err
			}
			got, _, err := s.time(ctx, c, rate)
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", c.name, err, c.log())
			}
			progress("turn %d  %-28s p50 %4.0f  p99 %5.0f (typically %4.0f)  p99.9 %6.0f µs", turn+1, c.name, got.p50, got.p99, got.sliceP99, got.p999)
			c.more = append(c.more, got)
			if err := c.end(); err != nil {
				return err
			}
		}
	}
	return nil
}

// calibrate gives half of what a core that is full takes with nginx, the
// best of a few tries.
func (s *stage) calibrate(ctx context.Context) (float64, error) {
	c := s.nginx
	if err := c.begin(s); err != nil {
		return 0, err
	}
	best := 0.0
	for range 4 {
		m, err := s.measure(c, func() (uint64, error) { return s.wrk(ctx, c.addr, s.cfg.Warm) })
		if err != nil {
			return 0, err
		}
		best = max(best, float64(m.requests)/m.cpu.Seconds())
	}
	return math.Round(best / 2), c.end()
}
