// Package footprint measures what a node takes and how soon it serves: the
// memory of an affnode process, loaded and at the most while it loads, and the
// time from its start until it is ready, with a million links and with ten.
//
// A run belongs to one goroutine. It needs Linux, and two cores that have
// nothing else to do.
package footprint

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/affleet/affleet/deploy/bench/proc"
	"github.com/affleet/affleet/deploy/processes"
)

// Config is a run's.
type Config struct {
	Bin    string // folder of affnode
	Dir    string // an empty folder
	Rounds int
	Quick  bool   // few links, to see whether it works
	Made   string // how the figures came about, in one sentence
}

// size is a number of links and what is asked of a node that has them.
type size struct {
	links          int
	resident, peak float64 // MB
	rounds         int     // at most
}

var sizes = []size{
	{links: 1_000_000, resident: 200, peak: 400, rounds: 3},
	{links: 10_000_000, resident: 1600, rounds: 1},
}

// nobody is an address where nothing is.
const nobody = "127.0.0.1:9"

// Missing says what this machine lacks; nil if nothing.
func Missing() error {
	if runtime.GOOS != "linux" || runtime.NumCPU() < 2 {
		return fmt.Errorf("memory is measured on Linux with at least 2 cores; this is %s with %d", runtime.GOOS, runtime.NumCPU())
	}
	return nil
}

// way is how a node comes by its state.
type way struct {
	what string
	run  func(r *runner, ctx context.Context) (*Sample, error)
}

var ways = []way{
	{"its own file, no control plane", (*runner).ownFile},
	{"`--bootstrap` with a file", (*runner).bootstrap},
	{"a snapshot, holding nothing", (*runner).first},
	{"a snapshot, while it serves as many links", (*runner).again},
}

// runner measures with one size.
type runner struct {
	Config
	state *state
}

// Run measures.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	result := &Result{Made: cfg.Made, Before: proc.Load()}
	for _, size := range sizes {
		if cfg.Quick {
			size.links /= 100
		}
		file := filepath.Join(cfg.Dir, "state")
		progress("%d links: writing their state file", size.links)
		s, err := writeState(file, size.links)
		if err != nil {
			return nil, err
		}
		r := &runner{Config: cfg, state: s}
		for _, w := range ways {
			row := Row{Links: size.links, What: w.what, GoalResident: size.resident, GoalPeak: size.peak}
			for range min(cfg.Rounds, size.rounds) {
				sample, err := w.run(r, ctx)
				if err != nil {
					return nil, fmt.Errorf("%d links, %s: %w", size.links, w.what, err)
				}
				progress("  %-45s ready after %.2f s, %.0f MB, at most %.0f MB", w.what, sample.Ready, sample.Resident, sample.Peak)
				row.Samples = append(row.Samples, *sample)
			}
			result.Rows = append(result.Rows, row)
		}
	}
	result.After = proc.Load()
	return result, nil
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// node is an affnode that was started.
type node struct {
	*processes.Process
	dir, control, admin string
	began               time.Time
}

// start starts a node in a folder of its own, without a broker. Before says what
// else it is given.
func (r *runner) start(before func(n *node) error, args ...string) (*node, error) {
	dir, err := os.MkdirTemp(r.Dir, "node-")
	if err != nil {
		return nil, err
	}
	fleet, err := processes.New(r.Bin, dir, 1, 1)
	if err != nil {
		return nil, err
	}
	n := &node{dir: dir, control: fleet.ControlAddr[0], admin: fleet.NodeAdmin[0]}
	if before != nil {
		if err := before(n); err != nil {
			return nil, err
		}
	}
	n.began = time.Now()
	n.Process, err = processes.Start(dir, filepath.Join(r.Bin, "affnode"), append([]string{
		"--control", n.control, "--nats", "nats://" + nobody, "--click-level", "memory",
		"--listen", fleet.NodeAddr[0], "--admin", n.admin, "--node", "node-0", "--data-dir", "data",
	}, args...)...)
	return n, err
}

// end ends the node and removes what it has written.
func (n *node) end() {
	n.Kill()
	_ = os.RemoveAll(n.dir) // all of it goes with the run's folder in the end
}

// ready waits until the node is, and says how many seconds that took from its
// start.
func (n *node) ready() (float64, error) {
	for time.Since(n.began) < patience {
		if processes.Get(n.admin, "/readyz").Status == http.StatusOK {
			return time.Since(n.began).Seconds(), nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return 0, fmt.Errorf("the node does not get ready:\n%s", n.Output())
}

const (
	restTime = 3 * time.Second // for which a node must do next to nothing
	restWork = 5 * proc.Tick
	restless = 2 * time.Minute
	patience = 2 * processes.Patience // ten million links take their time
)

// rest waits until the node has nothing left to do of its own accord: it has
// given back what loading took, and has written its state file. It gives the
// memory that it then takes, and the most since it began.
func (n *node) rest(ctx context.Context) (now, peak float64, err error) {
	for deadline := time.Now().Add(restless); time.Now().Before(deadline); {
		before, err := proc.CPU(n.PID())
		if err != nil {
			return 0, 0, err
		}
		select {
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		case <-time.After(restTime):
		}
		after, err := proc.CPU(n.PID())
		if err != nil {
			return 0, 0, err
		}
		if after-before <= restWork {
			return proc.Memory(n.PID())
		}
	}
	return 0, 0, errors.New("the node does not come to rest")
}

// measure is what becomes of a node that gets its state as it starts.
func (n *node) measure(ctx context.Context) (*Sample, error) {
	s := new(Sample)
	var err error
	if s.Ready, err = n.ready(); err == nil {
		s.Resident, s.Peak, err = n.rest(ctx)
	}
	return s, err
}

func (r *runner) ownFile(ctx context.Context) (*Sample, error) {
	n, err := r.start(r.giveFile)
	if err != nil {
		return nil, err
	}
	defer n.end()
	return n.measure(ctx)
}

// giveFile gives a node the state as its own last known good one.
func (r *runner) giveFile(n *node) error {
	folder := filepath.Join(n.dir, "data", "state")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	return os.Link(r.state.path, filepath.Join(folder, "state.aff"))
}

func (r *runner) bootstrap(ctx context.Context) (*Sample, error) {
	n, err := r.start(nil, "--bootstrap", r.state.path)
	if err != nil {
		return nil, err
	}
	defer n.end()
	return n.measure(ctx)
}

func (r *runner) first(ctx context.Context) (*Sample, error) {
	p, stop := newPlane(r.state), func() {}
	n, err := r.start(func(n *node) (err error) {
		stop, err = p.serve(n.control)
		return err
	})
	defer func() { stop() }()
	if err != nil {
		return nil, err
	}
	defer n.end()
	return n.measure(ctx)
}

// again gives a snapshot to a node that serves. The time is that from the
// beginning of the stream, and the peak that since then.
func (r *runner) again(ctx context.Context) (*Sample, error) {
	n, err := r.start(r.giveFile)
	if err != nil {
		return nil, err
	}
	defer n.end()
	if _, err := n.measure(ctx); err != nil {
		return nil, err
	}
	if err := proc.ForgetPeak(n.PID()); err != nil {
		return nil, err
	}
	p := newPlane(r.state)
	stop, err := p.serve(n.control)
	if err != nil {
		return nil, err
	}
	defer stop()
	s := new(Sample)
	select {
	case err = <-p.applied:
		s.Ready = time.Since(<-p.began).Seconds()
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(patience):
		err = fmt.Errorf("the node does not take the snapshot:\n%s", n.Output())
	}
	if err == nil {
		s.Resident, s.Peak, err = n.rest(ctx)
	}
	return s, err
}
