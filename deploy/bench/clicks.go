package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

// clicks measures the way of a click through a node and to a consumer. What it
// measures is private to the packages, so their own benchmarks do it.
var clicks = measurement{name: "clicks", own: measureClicks}

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

func clickFigures() []*clickFigure {
	const (
		node     = "./dataplane/internal/click"
		publish  = "./dataplane/internal/click/publish"
		consumer = "./dataplane/clickstream"
		million  = "1000000x"
	)
	return []*clickFigure{
		{What: "recording one click at level process, ns", Goal: "at most 300", pkg: node, bench: "BenchmarkRecord/process/writers=1", times: "800000x", unit: "cpu-ns/click", most: 300},
		{What: "recording one click at level process, allocations", Goal: "0", pkg: node, bench: "BenchmarkRecord/process/writers=1", times: "800000x", unit: "allocs/op", most: 0},
		{What: "publishing to a file-backed stream, clicks/s", Goal: "at least 500,000", pkg: publish, bench: "BenchmarkPublish/kept", times: million, unit: "clicks/s", least: 500_000},
		{What: "publishing, CPU of the node per click, ns", Goal: "at most 500", pkg: publish, bench: "BenchmarkPublish/kept", times: million, unit: "cpu-ns/click", most: 500},
		{What: "the same without keeping what was sent, ns", Goal: "-", pkg: publish, bench: "BenchmarkPublish/not-kept", times: million, unit: "cpu-ns/click"},
		{What: "encoding, ns per click", Goal: "-", pkg: publish, bench: "BenchmarkEncode", times: million, unit: "ns/op"},
		{What: "bytes per click in the stream", Goal: "at most 120", pkg: publish, bench: "BenchmarkEncode", times: million, unit: "bytes/click", most: 120},
		{What: "draining a spool of 10,000,000 clicks, clicks/s", Goal: "at least 333,333 (30 s)", pkg: publish, bench: "BenchmarkPublish/not-kept", times: "10000000x", unit: "clicks/s", least: 10_000_000 / 30.0},
		{What: "clickstream.Consume, clicks/s", Goal: "at least 1,000,000", pkg: consumer, bench: "BenchmarkConsume", times: "5x", unit: "clicks/s", least: 1_000_000},
	}
}

func measureClicks(ctx context.Context, b *bench, out string) error {
	figures := clickFigures()
	for round := range b.rounds {
		done := make(map[string]string) // benchmarks give several figures each
		for _, f := range figures {
			key := f.bench + f.times
			if _, ok := done[key]; !ok {
				fmt.Fprintf(os.Stderr, "round %d: %s %s\n", round+1, f.bench, f.times)
				text, err := f.run(ctx)
				if err != nil {
					return err
				}
				done[key] = text
			}
			v, err := unitOf(done[key], f.unit)
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", f.bench, err, done[key])
			}
			f.samples = append(f.samples, v)
		}
	}
	var text strings.Builder
	if err := clickReport.Execute(&text, map[string]any{"Made": made(), "Figures": figures}); err != nil {
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

func (f *clickFigure) run(ctx context.Context) (string, error) {
	name := "^" + strings.ReplaceAll(f.bench, "/", "$/^") + "$"
	text, err := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", name, "-benchtime", f.times, "-timeout", "10m", f.pkg).CombinedOutput()
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

var clickReport = template.Must(template.New("").Parse(`# Clicks

{{.Made}} ` + "`make bench-clicks`" + ` repeats it.

Each figure is the median of the rounds, all of them in one run on an otherwise idle machine. Recording counts the CPU
of the writer's own thread. The server that is published to is a process of its own; the CPU of publishing is that of
the node's process, which does nothing else, garbage collection included. "Kept" is the log of what was sent, which a
node writes unless --click-keep is negative. Clicks are as browsers make them: 1,000 links, 100 user agents.

| what | goal | median | lowest | highest | reached |
|---|---|---|---|---|---|
{{range .Figures}}| {{.What}} | {{.Goal}} | **{{.Median}}** | {{.Lowest}} | {{.Highest}} | {{.Reached}} |
{{end}}`))
