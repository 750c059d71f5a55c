package footprint

import (
	"fmt"
	"slices"
	"strings"
)

// Result is a run's.
type Result struct {
	Made   string
	Before string // the load average
	After  string
	Rows   []Row
}

// Row is a way of loading some links, with a sample per round.
type Row struct {
	Links                  int
	What                   string
	GoalResident, GoalPeak float64 // MB; 0: none
	Samples                []Sample
}

// Sample is what a node was seen to do.
type Sample struct {
	Ready          float64 // s, until it served
	Resident, Peak float64 // MB
}

const method = "An `affnode` process with clicks in memory and without a broker, on both cores; links of the benchmark set, with their 1000 affiliates. " +
	"Resident is VmRSS, all included, once the node has had nothing to do for three seconds: it has given back what loading took, and has written its state file. " +
	"The most is VmHWM then. Ready is from the start of the process to /readyz, asked every 2 ms; of a snapshot to a node that serves, from the beginning of " +
	"the stream to its acknowledgement, which comes when it is served, and the most is since then. The control plane is one that sends a state file's entries, in chunks as " +
	"affcontrol sends them. Medians of the rounds, with the lowest and the highest."

// Markdown is the report.
func (r *Result) Markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	p("# A node's memory\n\n%s Load average at the start: %s; at the end: %s.\n\n%s\n\n", r.Made, r.Before, r.After, method)
	p("| links | its state comes from | ready, s | resident, MB | goal | bytes per link | at most, MB | goal | rounds |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, row := range r.Rows {
		ready, resident, peak := row.of(func(s *Sample) float64 { return s.Ready }), row.of(func(s *Sample) float64 { return s.Resident }),
			row.of(func(s *Sample) float64 { return s.Peak })
		p("| %d | %s | %s | %s | %s | %.0f | %s | %s | %d |\n", row.Links, row.What, show(ready, "%.2f"), show(resident, "%.0f"), goal(resident, row.GoalResident),
			median(resident)*1e6/float64(row.Links), show(peak, "%.0f"), goal(peak, row.GoalPeak), len(row.Samples))
	}
	return b.String()
}

// of gives a figure of each round, the lowest first.
func (r *Row) of(figure func(*Sample) float64) (all []float64) {
	for i := range r.Samples {
		all = append(all, figure(&r.Samples[i]))
	}
	slices.Sort(all)
	return all
}

func show(sorted []float64, format string) string {
	text := fmt.Sprintf("**"+format+"**", median(sorted))
	if n := len(sorted); n > 1 {
		text += fmt.Sprintf(" ("+format+" - "+format+")", sorted[0], sorted[n-1])
	}
	return text
}

func goal(sorted []float64, most float64) string {
	switch {
	case most == 0:
		return "-"
	case median(sorted) > most:
		return fmt.Sprintf("%.0f, **not reached**", most)
	}
	return fmt.Sprintf("%.0f, reached", most)
}

func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
