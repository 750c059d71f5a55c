package contest

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// The chart's measures, in px, and colours that can be read on white and on
// black.
const (
	chartWidth = 900
	labelWidth = 208
	panelWidth = 300
	panelGap   = 52
	rowHeight  = 34
	barHeight  = 16
	headHeight = 64
	footHeight = 40

	inkColour  = "#7d8590"
	gridColour = "#7d859040"
	ourColour  = "#2f81f7"
	restColour = "#8b949e"
)

// panel is one figure of all servers, as bars.
type panel struct {
	title    string
	figure   func(sample) float64
	decimals int
	offered  bool // at the offered rate
}

// of gives the figure of each round, and at the offered rate of each turn.
func (p panel) of(c *server) []float64 {
	if p.offered {
		return c.timed(p.figure)
	}
	return c.of(p.figure)
}

// SVG is a chart of the CPU and of the p99 of each server, with the quartiles
// as whiskers.
func (r *Result) SVG() string {
	height := headHeight + rowHeight*len(r.servers) + footHeight
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" font-family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="13" fill="%s">`,
		chartWidth, height, chartWidth, height, inkColour)
	p(`<title>CPU per redirect, and p99 at %.0f redirects a second, of affnode and others</title>`, r.Rate)
	for i, c := range r.servers {
		weight := ""
		if c.admin != "" {
			weight = ` font-weight="600"`
		}
		p(`<text x="%d" y="%d" text-anchor="end"%s>%s</text>`, labelWidth-12, headHeight+i*rowHeight+rowHeight/2+4, weight, html.EscapeString(chartLabels[c.label]))
	}
	for i, panel := range []panel{
		{"CPU per redirect, µs", cpu, 1, false},
		{fmt.Sprintf("Typical p99 at %.0fk redirects/s, µs", r.Rate/1000), sliceP99, 0, true},
	} {
		r.panel(p, panel, labelWidth+i*(panelWidth+panelGap))
	}
	p(`<text x="%d" y="%d" font-size="11">Shorter is better. Bars: median of %d rounds; whiskers: quartiles. 1 core, %s links.</text>`,
		labelWidth, height-10, r.Config.Rounds, thousands(r.Config.Links))
	p(`</svg>`)
	return b.String()
}

var chartLabels = map[string]string{
	"affnode": "affnode, clicks published", "affnode, memory": "affnode, no broker", "nginx": "nginx, no log", "nginx, log": "nginx, access log",
	"fasthttp": "fasthttp", "net/http": "net/http", fixed: "kernel alone (floor)",
}

// panel draws one with its left edge at x.
func (r *Result) panel(p func(string, ...any), panel panel, x int) {
	top := 0.0
	for _, c := range r.servers {
		if !panel.offered || r.keepsUp(c) {
			top = max(top, spreadOf(panel.of(c)).high)
		}
	}
	const valueWidth = 48 // right of the longest bar
	step := niceStep(top)
	scale := float64(panelWidth-valueWidth) / top
	bottom := headHeight + rowHeight*len(r.servers)
	p(`<text x="%d" y="24" font-size="14" font-weight="600">%s</text>`, x, panel.title)
	for v := 0.0; v <= top; v += step {
		at := float64(x) + v*scale
		p(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="%s"/>`, at, at, headHeight-8, bottom, gridColour)
		p(`<text x="%.1f" y="%d" font-size="11" text-anchor="middle">%g</text>`, at, headHeight-14, v)
	}
	for i, c := range r.servers {
		if panel.offered && !r.keepsUp(c) {
			p(`<text x="%d" y="%d" font-style="italic">does not take this rate</text>`, x+6, headHeight+i*rowHeight+rowHeight/2+5)
			continue
		}
		s := spreadOf(panel.of(c))
		colour, y := restColour, headHeight+i*rowHeight+(rowHeight-barHeight)/2
		if c.admin != "" {
			colour = ourColour
		}
		p(`<rect x="%d" y="%d" width="%.1f" height="%d" rx="2" fill="%s" fill-opacity="0.6"/>`, x, y, s.median*scale, barHeight, colour)
		middle, low, high := y+barHeight/2, float64(x)+s.low*scale, float64(x)+s.high*scale
		p(`<path d="M%.1f %dH%.1fM%.1f %dv8M%.1f %dv8" stroke="%s" stroke-width="2" fill="none"/>`, low, middle, high, low, middle-4, high, middle-4, colour)
		p(`<text x="%.1f" y="%d">%.*f</text>`, high+7, middle+5, panel.decimals, s.median)
	}
}

// niceStep gives a round step, so that there are three to six lines.
func niceStep(top float64) float64 {
	for size := math.Pow(10, math.Floor(math.Log10(top))-1); ; size *= 10 {
		for _, step := range []float64{size, 2 * size, 5 * size} {
			if top/step < 6 {
				return step
			}
		}
	}
}

// thousands writes 1M for a million.
func thousands(n int) string {
	switch {
	case n%1_000_000 == 0:
		return fmt.Sprintf("%dM", n/1_000_000)
	case n%1000 == 0:
		return fmt.Sprintf("%dk", n/1000)
	}
	return fmt.Sprint(n)
}
