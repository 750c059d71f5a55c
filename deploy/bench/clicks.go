package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/affleet/affleet/deploy/bench/proc"
)

// clicks measures the way of a click through a node and to a consumer. What it
// measures is private to the packages, so their own benchmarks do it; what
// redirects notice is measured with processes.
var clicks = measurement{name: "clicks", own: measureClicks, missing: func() error {
	if _, err := exec.LookPath("taskset"); err != nil || runtime.GOOS != "linux" || runtime.NumCPU() < 2 {
		return fmt.Errorf("it needs Linux with at least 2 cores and taskset (apt-get install util-linux); this is %s with %d", runtime.GOOS, runtime.NumCPU())
	}
	return nil
}}

// clickFigure is one line of the report: a unit of a benchmark.
type clickFigure struct {
	What, Goal string
	pkg, bench string // as go test names them
	times      string // of -benchtime
	unit       string
	most       float64 // the goal is reached up to here
	least      float64 // or from here on

	samples []float64
}

const (
	nodeClicks     = "./dataplane/internal/click"
	publishClicks  = "./dataplane/internal/click/publish"
	consumerClicks = "./dataplane/clickstream"
)

func clickFigures() []*clickFigure {
	const (
		record  = "BenchmarkRecord/process/writers=1"
		kept    = "BenchmarkPublish/few-links/kept"
		browser = "BenchmarkPublish/10k-links/kept"
		half    = "500000x"
		million = "1000000x"
	)
	figures := []*clickFigure{
		{What: "recording one click at level process, ns", Goal: "at most 300", pkg: nodeClicks, bench: record, times: "800000x", unit: "cpu-ns/click", most: 300},
		{What: "recording one click at level process, allocations", Goal: "0", pkg: nodeClicks, bench: record, times: "800000x", unit: "allocs/op"},
		{What: "publishing to a file-backed stream, clicks/s", Goal: "at least 500,000", pkg: publishClicks, bench: kept, times: million, unit: "clicks/s", least: 500_000},
		{What: "the same, requests as browsers', over 10,000 links, clicks/s", Goal: "at least 500,000", pkg: publishClicks, bench: browser, times: million, unit: "clicks/s", least: 500_000},
		{What: "publishing, CPU of the node per click, ns", Goal: "at most 500", pkg: publishClicks, bench: kept, times: million, unit: "cpu-ns/click", most: 500},
		{What: "the same, requests as browsers', over 10,000 links, ns", Goal: "at most 500", pkg: publishClicks, bench: browser, times: million, unit: "cpu-ns/click", most: 500},
		{What: "the same without keeping what was sent, ns", Goal: "-", pkg: publishClicks, bench: "BenchmarkPublish/10k-links/not-kept", times: million, unit: "cpu-ns/click"},
	}
	for _, set := range []struct{ name, of string }{{"few-links", "1,000 links"}, {"10k-links", "10,000 links, as browsers ask"}, {"1M-links", "1,000,000 links, as browsers ask"}} {
		figures = append(figures,
			&clickFigure{What: "bytes per click in a batch, " + set.of, Goal: "at most 120", pkg: publishClicks, bench: "BenchmarkEncode/" + set.name, times: half, unit: "bytes/click", most: 120},
			&clickFigure{What: "the same before it is compressed, bytes", Goal: "-", pkg: publishClicks, bench: "BenchmarkCompress/" + set.name, times: half, unit: "plain-bytes/click"},
			&clickFigure{What: "encoding and compressing, ns", Goal: "-", pkg: publishClicks, bench: "BenchmarkEncode/" + set.name, times: half, unit: "ns/op"},
			&clickFigure{What: "of that, compressing, ns", Goal: "-", pkg: publishClicks, bench: "BenchmarkCompress/" + set.name, times: half, unit: "compress-ns/click"},
			&clickFigure{What: "decoding, clicks/s on one core", Goal: "at least 1,000,000", pkg: publishClicks, bench: "BenchmarkDecode/" + set.name, times: half, unit: "clicks/s", least: 1e6},
		)
	}
	figures = append(figures, &clickFigure{
		What: "`clickstream.Consume`, clicks/s, the server in the same process", Goal: "at least 1,000,000", pkg: consumerClicks, bench: "BenchmarkConsume", times: "1x", unit: "clicks/s", least: 1_000_000,
	})
	for _, way := range []struct{ name, what string }{{"message", "message by message, as nodes do"}, {"atomic", "as atomic batches of 32"}, {"fast-ingest", "by fast ingest"}} {
		figures = append(figures,
			&clickFigure{What: "ready batches into the stream, " + way.what + ", clicks/s", Goal: "-", pkg: publishClicks, bench: "BenchmarkSend/" + way.name, times: "3000000x", unit: "clicks/s"},
			&clickFigure{What: "the same, CPU of the node per click, ns", Goal: "-", pkg: publishClicks, bench: "BenchmarkSend/" + way.name, times: "3000000x", unit: "cpu-ns/click"},
		)
	}
	return figures
}

func measureClicks(ctx context.Context, b *bench, out string) error {
	// What was measured before may have left this process on one core.
	if err := proc.Pin(os.Getpid(), bothCores); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(b.dir, "clicks-")
	if err != nil {
		return err
	}
	rounds := min(b.rounds, 3)
	o := &outage{bin: b.bin, dir: dir, links: 100_000, share: 0.25, window: 2 * time.Second, cycles: 7, rounds: 3, full: 1, long: 23, spool: 3e6, large: 10e6}
	if b.quick {
		rounds, o.links, o.window, o.cycles, o.rounds, o.long, o.spool, o.large = 1, 10_000, time.Second, 2, 1, 2, 2e6, 3e6
	}
	figures := clickFigures()
	if err := runFigures(ctx, dir, rounds, figures); err != nil {
		return err
	}
	if err := o.run(ctx); err != nil {
		return fmt.Errorf("outage: %w", err)
	}
	var text strings.Builder
	if err := clickReport.Execute(&text, map[string]any{"Made": made(), "Rounds": rounds, "Figures": figures, "Outage": o}); err != nil {
		return err
	}
	fmt.Print(text.String())
	if out == "" {
		return nil
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "clicks.md"), []byte(text.String()), 0o644)
}

// runFigures runs the benchmarks behind the figures, round by round.
func runFigures(ctx context.Context, dir string, rounds int, figures []*clickFigure) error {
	built := make(map[string]bool)
	for _, f := range figures {
		pkg := f.pkg
		if built[pkg] {
			continue
		}
		built[pkg] = true
		if text, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", filepath.Join(dir, filepath.Base(pkg)), pkg).CombinedOutput(); err != nil {
			return fmt.Errorf("build the benchmarks of %s: %w\n%s", pkg, err, text)
		}
	}
	for round := range rounds {
		done := make(map[string]string) // benchmarks give several figures each
		for _, f := range figures {
			if _, ok := done[f.bench]; !ok {
				begin := time.Now()
				text, err := f.run(ctx, dir)
				if err != nil {
					return err
				}
				fmt.Fprintf(os.Stderr, "round %d: %s: %.1f s\n", round+1, f.bench, time.Since(begin).Seconds())
				done[f.bench] = text
			}
			v, err := unitOf(done[f.bench], f.unit)
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", f.bench, err, done[f.bench])
			}
			f.samples = append(f.samples, v)
		}
	}
	return nil
}

func (f *clickFigure) run(ctx context.Context, dir string) (string, error) {
	name := "^" + strings.ReplaceAll(f.bench, "/", "$/^") + "$"
	cmd := exec.CommandContext(ctx, filepath.Join(dir, filepath.Base(f.pkg)), "-test.run", "^$", "-test.bench", name, "-test.benchtime", f.times, "-test.timeout", "2m")
	cmd.Dir = f.pkg
	text, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", f.bench, err, text)
	}
	return string(text), nil
}

// unitOf finds a figure in the output of a benchmark: each stands before its unit.
func unitOf(text, unit string) (float64, error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if i := slices.Index(fields, unit); i > 0 {
			return strconv.ParseFloat(fields[i-1], 64)
		}
	}
	return 0, fmt.Errorf("no figure in %s", unit)
}

func (f *clickFigure) sorted() []float64 { return slices.Sorted(slices.Values(f.samples)) }

// Lowest, Median and Highest are over the rounds.
func (f *clickFigure) Lowest() string  { return show3(f.sorted()[0]) }
func (f *clickFigure) Median() string  { return show3(median(f.sorted())) }
func (f *clickFigure) Highest() string { return show3(f.sorted()[len(f.samples)-1]) }

// Reached says whether the median reaches the goal.
func (f *clickFigure) Reached() string {
	m := median(f.sorted())
	switch {
	case f.Goal == "-":
		return ""
	case f.least > 0 && m >= f.least, f.least == 0 && m <= f.most:
		return "yes"
	}
	return "no"
}

func show3(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// outageRow is a line of the report about timings.
type outageRow struct {
	What                                                       string
	Timings                                                    int
	P50, P99, Low, High, Slice, Paused, Stolen, Ratio, Typical string
}

// Rows compare the timings with those before, cycle by cycle.
func (o *outage) Rows() (rows []outageRow) {
	p50 := func(t timing) float64 { return float64(t.P50) / 1e3 }
	p99 := func(t timing) float64 { return float64(t.P99) / 1e3 }
	slice := func(t timing) float64 { return float64(t.SliceP99) / 1e3 }
	paused := func(t timing) float64 { return 100 * t.paused }
	stolen := func(t timing) float64 { return 100 * t.stolen }
	of := func(timings []timing, what func(timing) float64) (sorted []float64) {
		for _, t := range timings {
			sorted = append(sorted, what(t))
		}
		slices.Sort(sorted)
		return sorted
	}
	for _, r := range []struct {
		what    string
		timings func(*cycle) []timing
	}{
		{"before", func(c *cycle) []timing { return c.before }},
		{"while NATS is stopped", func(c *cycle) []timing { return c.meanwhile }},
		{"then, with a full spool", func(c *cycle) []timing { return c.behind }},
		{"while the spool drains", func(c *cycle) []timing { return c.draining }},
	} {
		var timings []timing
		for _, c := range o.done {
			timings = append(timings, r.timings(c)...)
		}
		against := func(what func(timing) float64) string {
			var ratios []float64
			for _, c := range o.done {
				ratios = append(ratios, median(of(r.timings(c), what))/median(of(c.before, what)))
			}
			slices.Sort(ratios)
			return fmt.Sprintf("**%.2f** (%.2f to %.2f)", median(ratios), ratios[0], ratios[len(ratios)-1])
		}
		all := of(timings, p99)
		rows = append(rows, outageRow{
			r.what, len(timings), show3(median(of(timings, p50))),
			show3(median(all)), show3(all[0]), show3(all[len(all)-1]), show3(median(of(timings, slice))),
			show3(median(of(timings, paused))), show3(median(of(timings, stolen))), against(p99), against(slice),
		})
	}
	return rows
}

// These are for the report.
func (o *outage) Halting() string   { return proc.Halting(o.awake) }
func (o *outage) Others() string    { return proc.Others(o.moved) }
func (o *outage) Rate() string      { return show3(o.rate) }
func (o *outage) Links() int        { return o.links }
func (o *outage) Window() string    { return o.window.String() }
func (o *outage) Stopped() string   { return fmt.Sprintf("%.0f s", o.done[0].stopped.Seconds()) }
func (o *outage) Away() string      { return fmt.Sprintf("%.0f s", o.done[0].away.Seconds()) }
func (o *outage) Cycles() int       { return len(o.done) }
func (o *outage) Small() string     { return show3(o.spool) }
func (o *outage) Large() string     { return show3(o.large) }
func (o *outage) Drained() string   { return fmt.Sprintf("%.1f s", 10e6/median(o.drainRates())) }
func (o *outage) Drains() int       { return len(o.drainRates()) }
func (o *outage) PerSecond() string { return show3(median(o.drainRates())) }
func (o *outage) Slowest() string   { return show3(slices.Min(o.drainRates())) }
func (o *outage) Quickest() string  { return show3(slices.Max(o.drainRates())) }

// drainRates are clicks per second of the large spools, in order.
func (o *outage) drainRates() []float64 {
	var rates []float64
	for _, c := range o.done {
		if c.large {
			rates = append(rates, c.waited/c.drained.Seconds())
		}
	}
	slices.Sort(rates)
	return rates
}

func (o *outage) Bytes() string { return show3(o.bytes) }

var clickReport = template.Must(template.New("").Parse(`# Clicks

{{.Made}} ` + "`make bench-clicks`" + ` repeats it.

## Benchmark by benchmark

Each figure is the median of {{.Rounds}} rounds, all of them in one run. Recording counts the CPU of the writer's own
thread. The server that is published to is a process of its own on the same two cores; the CPU of publishing is that of
the node's process, which does nothing else, garbage collection included. "Kept" is the log of what was sent, which a
node writes unless --click-keep is negative. With 1,000 links, there are 100 user agents; "as browsers ask" are the
requests of the other benchmarks, every link as likely as any other.

| what | goal | median | lowest | highest | reached |
|---|---|---|---|---|---|
{{range .Figures}}| {{.What}} | {{.Goal}} | **{{.Median}}** | {{.Lowest}} | {{.Highest}} | {{.Reached}} |
{{end}}
{{with .Outage}}## NATS is stopped, and returns

affnode at level process has core 0, with {{.Links}} links. NATS, etcd, the control plane and the generator share core 1. {{.Halting}}
{{.Others}} The generator is an open loop of {{.Rate}} requests per second, a quarter of what a core of the node takes, over
64 connections. Each timing is {{.Window}} behind half a second of warm-up. NATS and the generator share a core, and the kernel
finishes what it does for NATS first, for some ms at times, though the generator's priority is real-time: what others do on
its core is not the node's. So a latency counts from when the request is sent until the kernel has the answer, and while
the generator is not let run, the schedule stands still. What comes while all connections wait for the node counts from its
moment in the schedule. While one is free, the node does not wake the generator:
it looks for answers when the next requests are due, every 100 µs. Stolen is the share of both cores' time that the
hypervisor gave to others while this machine wanted it, by /proc/stat.

There are {{.Cycles}} cycles: timings before, NATS is stopped and the timings go on, requests come as fast as they are answered
until {{.Small}} clicks wait, in each third cycle {{.Large}}, a timing, NATS returns, and timings, of which those count that
were wholly while the spool shrank. In the first cycle, NATS was stopped for {{.Stopped}} before the spool was filled, and away for
{{.Away}}. The ratios are medians over the cycles, with the lowest and the highest: a cycle's is the median of its timings,
divided by that of its own timings before. All clicks were in the stream in the end, and none was dropped.

| | timings | p50, µs | p99, µs: median | lowest | highest | p99 of 100 ms, typically, µs | generator paused, % | stolen, % | p99 against before | typically |
|---|---|---|---|---|---|---|---|---|---|---|
{{range .Rows}}| {{.What}} | {{.Timings}} | {{.P50}} | **{{.P99}}** | {{.Low}} | {{.High}} | {{.Slice}} | {{.Paused}} | {{.Stolen}} | {{.Ratio}} | {{.Typical}} |
{{end}}
The goal is at most 1.2 times. Draining 10,000,000 clicks took **{{.Drained}}** (goal: 30 s): {{.PerSecond}} clicks/s beside the
redirects from when NATS was started, the median of {{.Drains}} large spools ({{.Slowest}} to {{.Quickest}}). In the stream, a click of these
requests takes **{{.Bytes}} bytes**, the server's own share included (goal: at most 120).
{{end}}`))
