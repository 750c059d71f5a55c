// Command bench measures the figures of the whole system, with its real parts
// as separate processes, and writes a report:
//
//	go run ./deploy/bench                      everything
//	go run ./deploy/bench --only propagation   one measurement
//	go run ./deploy/bench --rounds 1 --out ""  a quick look, printed only
//	go run ./deploy/bench --only redirect      affnode beside other redirect servers
//	go run ./deploy/bench --only memory        what a node takes with a million links and with ten, and how soon it is ready
//	go run ./deploy/bench --only decisions     what the rules, splits and macros of links cost, beside nginx
//	go run ./deploy/bench --only fleet         how the state reaches thousands of nodes
//	go run ./deploy/bench --only clicks        the way of a click, benchmark by benchmark
//	go run ./deploy/bench --only fraud         what the fraud detector finds, how soon, and what it costs
//
// Figures are medians over the rounds, with the lowest and the highest. The
// measurements redirect, memory, decisions, fleet, clicks and fraud have reports of their own.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/affleet/affleet/deploy/bench/fraud"
	"github.com/affleet/affleet/deploy/processes"
)

// A measurement gives rows of figures.
type measurement struct {
	name   string
	method string // one paragraph for the report
	run    func(ctx context.Context, b *bench) ([]row, error)

	// Instead of run: writes reports of its own into the folder out, if that is
	// not empty. Missing says what the machine lacks.
	own     func(ctx context.Context, b *bench, out string) error
	missing func() error

	alone bool // measured only when it is named
}

var measurements = []measurement{start, propagation, imports, redirects, memory, decisions, fleets, clicks, frauds}

// bench is what the measurements share.
type bench struct {
	bin, dir string
	rounds   int
	quick    bool
}

func main() {
	if fraud.DecodeMain(os.Args) {
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	only := flag.String("only", "", "`names` of measurements, separated by commas: start, propagation, import, redirect, memory, decisions, fleet, clicks, fraud")
	rounds := flag.Int("rounds", 5, "`number` of rounds of each")
	quick := flag.Bool("quick", false, "redirect, memory, decisions, fleet, clicks: one short round with few links, to see whether it works")
	out := flag.String("out", "deploy/bench/results", "`folder` for the report; empty: print only")
	flag.Parse()
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	for _, m := range chosen {
		if m.missing != nil {
			if err := m.missing(); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	dir, err := os.MkdirTemp("", "affleet-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{bin: filepath.Join(dir, "bin"), dir: dir, rounds: *rounds, quick: *quick}
	if err := os.Mkdir(b.bin, 0o755); err != nil {
		return err
	}
	if err := processes.Build(b.bin); err != nil {
		return err
	}
	var r report
	for _, m := range chosen {
		fmt.Fprintf(os.Stderr, "== %s\n", m.name)
		if m.own != nil {
			if err := m.own(ctx, b, *out); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			continue
		}
		rows, err := m.run(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		r.add(m, rows)
	}
	if r.sections.Len() == 0 {
		return nil
	}
	fmt.Print(r.String())
	if *out == "" {
		return nil
	}
	return r.save(*out)
}

func choose(only string) ([]measurement, error) {
	if only == "" {
		return slices.DeleteFunc(slices.Clone(measurements), func(m measurement) bool { return m.alone }), nil
	}
	var chosen []measurement
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(measurements, func(m measurement) bool { return m.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no measurement %q", name)
		}
		chosen = append(chosen, measurements[i])
	}
	return chosen, nil
}

// fleet starts a fleet of one control plane and three nodes for a round, and
// gives what ends it.
func (b *bench) fleet() (*processes.Fleet, func(), error) {
	dir, err := os.MkdirTemp(b.dir, "fleet-")
	if err != nil {
		return nil, nil, err
	}
	f, err := processes.New(b.bin, dir, 1, 3)
	if err != nil {
		return nil, nil, err
	}
	end := func() {
		f.Kill()
		_ = os.RemoveAll(dir) // all of it goes with b.dir in the end
	}
	if err := f.StartAll(); err != nil {
		end()
		return nil, nil, err
	}
	return f, end, nil
}
