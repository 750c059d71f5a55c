// Package reach measures how a fleet's state reaches its nodes: real affcontrol
// and etcd as processes, a few real affnodes, and up to thousands of simulated
// ones (deploy/bench/swarm) in this process. Each row measures what it needs
// beside its floors: etcd's own put and watch in the same run, and what the system
// calls alone cost.
//
// A run belongs to one goroutine. It needs Linux, taskset and two cores that
// have nothing else to do.
package reach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
)

// Config is a run's.
type Config struct {
	Bin     string // folder of the fleet's programs
	Dir     string // an empty folder
	Rounds  int
	Rows    []string // by name. Default: all
	Nodes   []int    // points of the row curve. Default: 1 to 5000
	Profile string   // folder for CPU profiles of affcontrol, by perf. Default: none
	Quick   bool     // few writes and links, to see whether it works
	Made    string   // how the figures came about, in one sentence
}

// row is a measurement of its own.
type row struct {
	name, title string
	method      string // a paragraph for the report
	run         func(ctx context.Context, r *runner) error
}

var rows = []row{idle, curve, stalled, reconnect, million, imports}

// Names are the rows' names, in the order of the report.
func Names() (names []string) {
	for _, r := range rows {
		names = append(names, r.name)
	}
	return names
}

// Missing says what this machine lacks; nil if nothing.
func Missing() error {
	if runtime.GOOS != "linux" || runtime.NumCPU() < 2 {
		return fmt.Errorf("the fleet is measured on Linux with at least 2 cores; this is %s with %d", runtime.GOOS, runtime.NumCPU())
	}
	if _, err := exec.LookPath("taskset"); err != nil {
		return errors.New("taskset not found; install with: apt-get install util-linux")
	}
	return nil
}

// runner is what a row works with: it starts what it needs and notes figures.
type runner struct {
	Config
	section *Section
}

// Run measures the chosen rows.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	if len(cfg.Nodes) == 0 {
		cfg.Nodes = []int{1, 10, 100, 500, 1000, 2000, 5000}
	}
	for _, name := range cfg.Rows {
		if !slices.Contains(Names(), name) {
			return nil, fmt.Errorf("there is no row %q, but %s", name, strings.Join(Names(), ", "))
		}
	}
	result := new(Result)
	for _, row := range rows {
		if len(cfg.Rows) > 0 && !slices.Contains(cfg.Rows, row.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "== %s: %s\n", row.name, row.title)
		r := &runner{Config: cfg, section: &Section{Row: row.name, Made: cfg.Made}}
		if err := row.run(ctx, r); err != nil {
			return nil, fmt.Errorf("%s: %w", row.name, err)
		}
		result.Sections = append(result.Sections, r.section)
	}
	return result, nil
}

// add notes a sample of a figure.
func (r *runner) add(what, unit string, goal, sample float64) {
	fmt.Fprintf(os.Stderr, "  %-72s %s\n", what, show(sample, unit))
	r.section.add(Figure{What: what, Unit: unit, Goal: goal, Samples: []float64{sample}})
}

// some gives n, or less when it is only to be seen whether it works.
func (r *runner) some(n, quick int) int {
	if r.Quick {
		return quick
	}
	return n
}
