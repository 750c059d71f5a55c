package reach

import (
	"fmt"
	"slices"
	"strings"
)

// Result is figures, by row. It is kept as JSON beside the report, so that rows
// may be measured one at a time.
type Result struct {
	Sections []*Section
}

// Section is a row's.
type Section struct {
	Row     string
	Made    string // how it came about
	Figures []Figure
	Points  []Point `json:",omitempty"` // of the row curve
}

// Figure has a sample per round.
type Figure struct {
	What    string
	Unit    string  // ms, s, MB, µs, /s, ×
	Goal    float64 `json:",omitempty"` // at most; 0: none
	Samples []float64
}

// Point is a round of the row curve.
type Point struct {
	Nodes    int
	P50, P99 float64 // ms, from a write to its acknowledgement by all nodes
	CPU      float64 // µs of the control plane per write and node
}

func (s *Section) add(f Figure) {
	i := slices.IndexFunc(s.Figures, func(g Figure) bool { return g.What == f.What })
	if i < 0 {
		s.Figures = append(s.Figures, f)
		return
	}
	s.Figures[i].Goal = f.Goal
	s.Figures[i].Samples = append(s.Figures[i].Samples, f.Samples...)
}

func (s *Section) addPoint(p Point) { s.Points = append(s.Points, p) }

// Merge takes in newer sections: in place of those of the same row, or, if
// appended, as more rounds of them.
func (r *Result) Merge(newer *Result, appended bool) {
	for _, n := range newer.Sections {
		i := slices.IndexFunc(r.Sections, func(s *Section) bool { return s.Row == n.Row })
		switch {
		case i < 0:
			r.Sections = append(r.Sections, n)
		case !appended:
			r.Sections[i] = n
		default:
			r.Sections[i].Made = n.Made
			for _, f := range n.Figures {
				r.Sections[i].add(f)
			}
			r.Sections[i].Points = append(r.Sections[i].Points, n.Points...)
		}
	}
	order := Names()
	slices.SortStableFunc(r.Sections, func(a, b *Section) int {
		return slices.Index(order, a.Row) - slices.Index(order, b.Row)
	})
}

// Markdown is the report.
func (r *Result) Markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	p("# Figures of distribution\n\nHow the fleet's state reaches its nodes. Made by `make bench-fleet`; each part says on what and at which commit. " +
		"Medians of the rounds, with the lowest and the highest; every round's samples are in fleet.json.\n\n## Goals\n\n" +
		"| what | goal | median | |\n|---|---|---|---|\n")
	for _, s := range r.Sections {
		for _, f := range s.Figures {
			if f.Goal == 0 {
				continue
			}
			mark := "reached"
			if f.median() > f.Goal {
				mark = "**not reached**"
			}
			p("| %s | at most %s | **%s** | %s |\n", f.What, show(f.Goal, f.Unit), show(f.median(), f.Unit), mark)
		}
		if growth := s.growth(); growth > 0 {
			mark := "reached"
			if growth > 1 {
				mark = "**not reached**"
			}
			p("| the same with 5000 nodes, to that with 2000 | at most 1.00 × | **%.2f ×** | %s |\n", growth, mark)
		}
	}
	for _, s := range r.Sections {
		i := slices.IndexFunc(rows, func(row row) bool { return row.name == s.Row })
		if i < 0 {
			continue // of an older release
		}
		p("\n## %s\n\n%s\n\n%s\n", rows[i].title, rows[i].method, s.Made)
		if len(s.Points) > 0 {
			p("\n![propagation time against number of nodes](fleet.svg)\n")
		}
		p("\n| figure | goal | median | lowest | highest | rounds |\n|---|---|---|---|---|---|\n")
		for _, f := range s.Figures {
			goal := "-"
			if f.Goal > 0 {
				goal = show(f.Goal, f.Unit)
			}
			p("| %s | %s | **%s** | %s | %s | %d |\n", f.What, goal, show(f.median(), f.Unit),
				show(slices.Min(f.Samples), f.Unit), show(slices.Max(f.Samples), f.Unit), len(f.Samples))
		}
	}
	return b.String()
}

// growth is how many times as much CPU a write takes per node with 5000 nodes
// than with 2000; 0 when one of them was not measured.
func (s *Section) growth() float64 {
	cpu := map[int]float64{}
	for _, p := range s.medians() {
		cpu[p.Nodes] = p.CPU
	}
	if cpu[2000] == 0 {
		return 0
	}
	return cpu[5000] / cpu[2000]
}

func (f *Figure) median() float64 { return median(f.Samples) }

func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// show gives three digits.
func show(v float64, unit string) string {
	switch {
	case unit == "ms" && v >= 1000:
		return fmt.Sprintf("%.2f s", v/1000)
	case v >= 100:
		return fmt.Sprintf("%.0f %s", v, unit)
	case v >= 10:
		return fmt.Sprintf("%.1f %s", v, unit)
	}
	return fmt.Sprintf("%.2f %s", v, unit)
}
