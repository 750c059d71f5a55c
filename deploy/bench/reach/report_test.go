package reach

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/affleet/affleet/deploy/bench/swarm"
)

func TestRoundsReplaceOrJoinThoseOfTheReport(t *testing.T) {
	section := func(sample float64) *Section {
		return &Section{Row: "curve", Made: "now", Figures: []Figure{{What: "a", Unit: "ms", Goal: 5, Samples: []float64{sample}}}, Points: []Point{{Nodes: 10, P50: 1, P99: sample, CPU: 3}}}
	}
	all := &Result{Sections: []*Section{{Row: "import"}, section(1)}}
	all.Merge(&Result{Sections: []*Section{section(2)}}, false)
	if s := all.Sections; len(s) != 2 || s[0].Row != "curve" || s[0].Figures[0].median() != 2 {
		t.Errorf("replaced: %+v", s[0])
	}
	all.Merge(&Result{Sections: []*Section{section(8), {Row: "idle"}}}, true)
	if s := all.Sections; len(s) != 3 || s[0].Row != "idle" || s[1].Figures[0].median() != 5 || len(s[1].Points) != 2 {
		t.Errorf("joined: %+v", s[1])
	}
	text := all.Markdown()
	if !strings.Contains(text, "| a | at most 5.00 ms | **5.00 ms** | reached |") {
		t.Errorf("the report does not say that the goal is reached:\n%s", text)
	}
	all.Merge(&Result{Sections: []*Section{section(5.01)}}, false)
	if text = all.Markdown(); !strings.Contains(text, "**not reached**") {
		t.Errorf("the report says that the goal is reached:\n%s", text)
	}
}

func TestChartIsWellFormedAndHoldsEveryPoint(t *testing.T) {
	r := &Result{Sections: []*Section{{Row: "curve"}}}
	if r.SVG() != "" {
		t.Error("there is a chart of nothing")
	}
	for _, n := range []int{1, 10, 100, 5000} {
		r.Sections[0].addPoint(Point{Nodes: n, P50: float64(n) / 20, P99: float64(n) / 10})
		r.Sections[0].addPoint(Point{Nodes: n, P50: float64(n) / 20, P99: float64(n) / 10})
	}
	decoder, circles := xml.NewDecoder(strings.NewReader(r.SVG())), 0
	for {
		token, err := decoder.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "circle" {
			circles++
		}
	}
	if circles != 8 || !strings.Contains(r.SVG(), ">500<") {
		t.Errorf("%d points are drawn, want 8, of which one is p99 500", circles)
	}
}

func TestTimeOfAWriteIsUntilANodeServesItOrALaterOne(t *testing.T) {
	begin := time.Now()
	at := begin.Add
	writes := []write{{revision: 7, acknowledged: at(2 * time.Millisecond)}, {revision: 5, acknowledged: at(time.Millisecond)}}
	logs := [][]swarm.Reached{
		{{Revision: 4, At: at(0)}, {Revision: 7, At: at(11 * time.Millisecond)}},                                                                // 10 and 9 ms
		{{Revision: 5, At: at(500 * time.Microsecond)}, {Revision: 9, At: at(4 * time.Millisecond)}},                                            // 0 and 2 ms
		{{Revision: 5, At: at(2 * time.Millisecond)}, {Revision: 6, At: at(3 * time.Millisecond)}},                                              // 1 ms, and never
		{{Revision: 6, At: at(2 * time.Millisecond)}, {Revision: 7, At: at(3 * time.Millisecond)}, {Revision: 8, At: at(9 * time.Millisecond)}}, // 1 and 1 ms
	}
	p50, p99 := spread(writes, logs) // 0 1 1 1 2 9 10
	if p50 < 1 || p50 > 1.05 || p99 < 9 || p99 > 9.05 {
		t.Errorf("the median is %v ms and the p99 %v ms", p50, p99)
	}
}
