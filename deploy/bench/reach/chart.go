package reach

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// The chart's measures, in px, and colours that can be read on white and on
// black.
const (
	chartWidth, chartHeight = 820, 420
	left, right             = 70, 30
	top, bottom             = 58, 60

	inkColour  = "#7d8590"
	gridColour = "#7d859040"
	p99Colour  = "#2f81f7"
	p50Colour  = "#3fb950"
)

// SVG is the curve of propagation time against number of nodes, both axes
// logarithmic; "" when the row curve was not measured.
func (r *Result) SVG() string {
	i := slices.IndexFunc(r.Sections, func(s *Section) bool { return s.Row == curve.name && len(s.Points) > 0 })
	if i < 0 {
		return ""
	}
	s := r.Sections[i]
	points := s.medians()
	floor := 0.0
	for _, f := range s.Figures {
		if strings.HasPrefix(f.What, "floor") && strings.HasSuffix(f.What, "watcher, p50") {
			floor = f.median()
		}
	}
	low, high := math.Inf(1), 0.0
	for _, p := range points {
		low, high = min(low, p.P50), max(high, p.P99)
	}
	if floor > 0 {
		low = min(low, floor)
	}
	most := float64(points[len(points)-1].Nodes)
	c := axes{xHigh: math.Log10(max(most, 10)), yLow: math.Floor(math.Log10(low)), yHigh: math.Ceil(math.Log10(max(high, 1.01*low)))}

	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" font-family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="13" fill="%s">`,
		chartWidth, chartHeight, chartWidth, chartHeight, inkColour)
	p(`<title>Time from a write until all nodes have acknowledged it, against the number of nodes</title>`)
	p(`<text x="%d" y="24" font-size="14" font-weight="600">One write until every node has acknowledged it, ms</text>`, left)
	c.grid(p, points)
	if floor > 0 {
		y := c.y(floor)
		p(`<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="%s" stroke-dasharray="5 4"/>`, left, chartWidth-right, y, y, inkColour)
		p(`<text x="%d" y="%.1f" text-anchor="end" font-size="11">floor: put in etcd to its event at a watcher, p50: %.2f ms</text>`, chartWidth-right, y-6, floor)
	}
	c.line(p, points, p99Colour, "p99", -10, func(q Point) float64 { return q.P99 })
	c.line(p, points, p50Colour, "p50", 20, func(q Point) float64 { return q.P50 })
	p(`<text x="%d" y="%d" text-anchor="middle">nodes connected to one replica</text>`, (left+chartWidth-right)/2, chartHeight-26)
	p(`<text x="%d" y="%d" font-size="11">Lower is better. Medians of the rounds. The control plane and etcd share one core; all simulated nodes share the other.</text>`, left, chartHeight-8)
	p(`</svg>`)
	return b.String()
}

// medians of the rounds, by number of nodes.
func (s *Section) medians() (points []Point) {
	byNodes := make(map[int][]Point)
	for _, p := range s.Points {
		byNodes[p.Nodes] = append(byNodes[p.Nodes], p)
	}
	for n, all := range byNodes {
		of := func(figure func(Point) float64) float64 {
			var samples []float64
			for _, p := range all {
				samples = append(samples, figure(p))
			}
			return median(samples)
		}
		points = append(points, Point{
			Nodes: n,
			P50:   of(func(p Point) float64 { return p.P50 }), P99: of(func(p Point) float64 { return p.P99 }),
			CPU: of(func(p Point) float64 { return p.CPU }),
		})
	}
	slices.SortFunc(points, func(a, b Point) int { return a.Nodes - b.Nodes })
	return points
}

// axes are logarithmic: from 1 to 10^xHigh, and from 10^yLow to 10^yHigh.
type axes struct{ xHigh, yLow, yHigh float64 }

func (c axes) x(nodes int) float64 {
	return left + math.Log10(float64(nodes))/c.xHigh*(chartWidth-left-right)
}

func (c axes) y(ms float64) float64 {
	return chartHeight - bottom - (math.Log10(ms)-c.yLow)/(c.yHigh-c.yLow)*(chartHeight-top-bottom)
}

func (c axes) grid(p func(string, ...any), points []Point) {
	for power := c.yLow; power <= c.yHigh; power++ {
		v := math.Pow(10, power)
		p(`<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="%s"/>`, left, chartWidth-right, c.y(v), c.y(v), gridColour)
		p(`<text x="%d" y="%.1f" text-anchor="end" font-size="11">%g</text>`, left-8, c.y(v)+4, v)
	}
	before := -100.0
	for _, q := range points {
		x := c.x(q.Nodes)
		p(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="%s"/>`, x, x, top, chartHeight-bottom, gridColour)
		if x-before > 30 {
			p(`<text x="%.1f" y="%d" text-anchor="middle" font-size="11">%d</text>`, x, chartHeight-bottom+16, q.Nodes)
			before = x
		}
	}
}

// line draws a figure, with its values offset px below.
func (c axes) line(p func(string, ...any), points []Point, colour, name string, offset float64, figure func(Point) float64) {
	var path strings.Builder
	for i, q := range points {
		fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(i, 1)], c.x(q.Nodes), c.y(figure(q)))
	}
	p(`<path d="%s" stroke="%s" stroke-width="2" fill="none"/>`, path.String(), colour)
	for i, q := range points {
		x, y := c.x(q.Nodes), c.y(figure(q))
		p(`<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`, x, y, colour)
		text, anchor := fmt.Sprintf("%.3g", figure(q)), "middle"
		if i == 0 {
			text, anchor, x = name+" "+text, "start", x+2
		}
		p(`<text x="%.1f" y="%.1f" text-anchor="%s" font-size="11" fill="%s">%s</text>`, x, y+offset, anchor, colour, text)
	}
}
