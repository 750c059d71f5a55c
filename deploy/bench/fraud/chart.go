package fraud

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/affleet/affleet/deploy/bench/fraud/verdict"
)

// The chart's measures, in px, and colours that can be read on white and on
// black.
const (
	chartWidth = 900
	labelWidth = 120
	headHeight = 74
	rowHeight  = 30
	plotWidth  = 330
	timesLeft  = labelWidth + plotWidth + 90
	timesWidth = chartWidth - timesLeft - 30

	inkColour       = "#7d8590"
	gridColour      = "#7d859040"
	recallColour    = "#2f81f7"
	precisionColour = "#3fb950"

	// lowest is where the axis of recall and precision begins.
	lowest = 0.8
)

// SVG is the chart: recall and precision of each class of attacks on the seeds
// held out, and how many floods were blocked by when; "" without an evaluation.
func (r *Result) SVG() string {
	if r.Held == nil {
		return ""
	}
	classes := r.Held.Score.Classes
	bottom := headHeight + rowHeight*len(classes)
	height := bottom + 62
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" font-family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="13" fill="%s">`,
		chartWidth, height, chartWidth, height, inkColour)
	p(`<title>Recall and precision of each class of attacks, and the share of floods that every node blocks within a time</title>`)
	p(`<text x="%d" y="24" font-size="14" font-weight="600">Recall and precision by class of attacks</text>`, labelWidth)
	key(p, labelWidth, "recall", recallColour, false)
	key(p, labelWidth+80, "precision", precisionColour, true)
	for _, v := range []float64{.8, .85, .9, .95, 1} {
		x := rateX(v)
		p(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="%s"/>`, x, x, headHeight-6, bottom, gridColour)
		p(`<text x="%.1f" y="%d" font-size="11" text-anchor="middle">%g</text>`, x, bottom+16, v)
	}
	goalLine(p, rateX(leastRecall), bottom, recallColour)
	goalLine(p, rateX(leastPrecision), bottom, precisionColour)
	for i := range classes {
		row(p, &classes[i], headHeight+i*rowHeight+rowHeight/2)
	}
	p(`<text x="%d" y="%d" font-size="11">Dashed: goals. Seeds that no detector was tuned with: %s.</text>`, labelWidth, height-10, list(r.Held.Seeds))
	if r.Live != nil {
		r.Live.chart(p, bottom)
	}
	p(`</svg>`)
	return b.String()
}

func rateX(v float64) float64 {
	return labelWidth + (max(v, lowest)-lowest)/(1-lowest)*plotWidth
}

func key(p func(string, ...any), x int, name, colour string, square bool) {
	dot(p, float64(x+6), 46, colour, square)
	p(`<text x="%d" y="50">%s</text>`, x+16, name)
}

func dot(p func(string, ...any), x, y float64, colour string, square bool) {
	if square {
		p(`<rect x="%.1f" y="%.1f" width="9" height="9" fill="%s"/>`, x-4.5, y-4.5, colour)
		return
	}
	p(`<circle cx="%.1f" cy="%.1f" r="5" fill="%s"/>`, x, y, colour)
}

func goalLine(p func(string, ...any), x float64, bottom int, colour string) {
	p(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="%s" stroke-dasharray="4 4"/>`, x, x, headHeight-6, bottom, colour)
}

// row is one class. Recall is drawn above precision, so that equal ones can be
// told apart.
func row(p func(string, ...any), c *verdict.ClassScore, y int) {
	p(`<text x="%d" y="%d" text-anchor="end">%s</text>`, labelWidth-12, y+4, c.Class)
	dot(p, rateX(c.Recall()), float64(y)-6, recallColour, false)
	dot(p, rateX(c.Precision()), float64(y)+6, precisionColour, true)
	for _, v := range []struct {
		value, dy float64
	}{{c.Recall(), -2}, {c.Precision(), 10}} {
		p(`<text x="%d" y="%.1f" font-size="10">%.3f</text>`, labelWidth+plotWidth+10, float64(y)+v.dy, v.value)
	}
}

// chart is the share of floods that were blocked by every node within a time.
func (l *live) chart(p func(string, ...any), bottom int) {
	var times []time.Duration
	for i := range l.Floods {
		times = append(times, l.Floods[i].every())
	}
	slices.Sort(times)
	most := max(6*time.Second, times[len(times)-1])
	x := func(d time.Duration) float64 { return timesLeft + float64(d)/float64(most)*timesWidth }
	y := func(share float64) float64 { return float64(bottom) - share*float64(bottom-headHeight) }
	p(`<text x="%d" y="24" font-size="14" font-weight="600">Floods blocked by every node</text>`, timesLeft)
	p(`<text x="%d" y="50">%% of %d, since the first click</text>`, timesLeft, len(times))
	for share := 0.0; share <= 1; share += .25 {
		p(`<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="%s"/>`, timesLeft, timesLeft+timesWidth, y(share), y(share), gridColour)
		p(`<text x="%d" y="%.1f" font-size="11" text-anchor="end">%.0f</text>`, timesLeft-8, y(share)+4, 100*share)
	}
	for s := range int(most/time.Second) + 1 {
		p(`<text x="%.1f" y="%d" font-size="11" text-anchor="middle">%d s</text>`, x(time.Duration(s)*time.Second), bottom+16, s)
	}
	path := fmt.Sprintf("M%.1f %.1f", x(0), y(0))
	for i, d := range times {
		path += fmt.Sprintf("H%.1fV%.1f", x(d), y(float64(i+1)/float64(len(times))))
	}
	p(`<path d="%sH%d" stroke="%s" stroke-width="2" fill="none"/>`, path, timesLeft+timesWidth, recallColour)
	at := x(mostUntilServed)
	p(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="%s" stroke-dasharray="4 4"/>`, at, at, headHeight-6, bottom, recallColour)
}
