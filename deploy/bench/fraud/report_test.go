package fraud

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/affleet/affleet/deploy/bench/contest"
	"github.com/affleet/affleet/deploy/bench/fraud/traffic"
	"github.com/affleet/affleet/deploy/bench/fraud/verdict"
)

// sample is a result of which some goals are reached and some are not.
func sample() *Result {
	score := &verdict.Score{Runs: 1, Detectors: []string{"flood"}, Confusion: map[traffic.Class]map[string]int{traffic.Flood: {"flood": 12}, traffic.NAT: {"flood": 1}}}
	for i, c := range traffic.Attacks() {
		score.Classes = append(score.Classes, verdict.ClassScore{Class: c, Attacks: 40, Found: 40 - i, By: []string{"flood"}, RightOnes: 99, All: 100, Clicks: 1000, After: 900, Under: 890, UnderBlock: 800})
	}
	score.Clicks[traffic.Viral], score.Blocked[traffic.Viral] = 1000, 0
	score.Clicks[traffic.NAT], score.Blocked[traffic.NAT] = 1000, 3
	r := &Result{
		Parts:    map[string]PartRun{"live": {"Made by a test.", 3 * time.Minute}},
		Held:     &evaluation{What: "Held out", Seeds: []uint64{1001, 1002}, Score: score},
		Live:     &live{Ordinary: 1000, Rate: 290},
		Capacity: &capacity{Load: load{Clicks: 1_000_000, Bytes: 100_000_000, Addresses: 1_000_000, Affiliates: 10_000}, Decode: []float64{1e6}, Guard: []guardRun{{Wall: 2 * time.Second, CPU: 2 * time.Second, Peak: 250}}},
		Node: &node{
			Addresses: 10_000_000, With: nodeMemory{50, 90, 95}, Without: nodeMemory{40, 60, 60},
		},
		Labels: &labels{
			Node:  &contest.Labels{With: []float64{8}, Without: []float64{7}, Ratio: []float64{8. / 7}, Foreign: []float64{.01}},
			Judge: Judge{Warm: []float64{200}, Cold: []float64{600}, Nothing: []float64{20}},
		},
	}
	for i := range 40 {
		d := time.Duration(i) * 100 * time.Millisecond
		r.Live.Floods = append(r.Live.Floods, flooded{Rate: float64(10 + i), Served: [traffic.Nodes]time.Duration{d, d / 2, d + time.Second}})
	}
	return r
}

func TestTheReportSaysWhatIsReachedAndWhatIsNot(t *testing.T) {
	text := sample().Markdown()
	for _, want := range []string{
		"| from the first click of a flood to its Block served by every node, p99 | at most 5 s | **4.9 s** | reached |",
		"| recall of each attack class, the worst | at least 0.95 | **0.800** | **not reached** |",
		"| precision of each attack class, the worst | at least 0.99 | **0.990** | reached |",
		"| clicks of viral spikes under a block | none | **0** | reached |",
		"clicks of people behind NAT under a block | none | **3** | **not reached** |",
		"| `affguard` on one core, clicks/s | at least 300,000 | **500000** | reached |",
		"| the node's memory for labelling after 10000000 addresses, MB | at most 64 | **35** | reached |",
		"| all labels of one request, ns (allocations) | at most 500 (0) | **600 (0)** | **not reached** |",
		"- live: Made by a test. It took 3.0 min.",
		"| *nat* | 1 |",
		"Held out: seeds 1001, 1002",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report does not say %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestTheChartIsDrawnWithAllClasses(t *testing.T) {
	chart := sample().SVG()
	for d := xml.NewDecoder(strings.NewReader(chart)); ; {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range traffic.Attacks() {
		if !strings.Contains(chart, ">"+c.String()+"<") {
			t.Errorf("no row of %v", c)
		}
	}
	if file := os.Getenv("AFF_CHART"); file != "" {
		if err := os.WriteFile(file, []byte(chart), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), "rsvg-convert", "-b", "white", "-o", file+".png", file).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

func TestWithoutAnEvaluationThereIsNoChart(t *testing.T) {
	if (&Result{}).SVG() != "" {
		t.Error("a chart of nothing")
	}
}

func TestPartsThatAreMeasuredAloneTakeTheirPlaceInTheReport(t *testing.T) {
	text, err := json.Marshal(sample())
	if err != nil {
		t.Fatal(err)
	}
	var all Result
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	if all.Markdown() != sample().Markdown() || all.SVG() != sample().SVG() {
		t.Error("the report of what was kept is another")
	}
	all.Merge(&Result{Parts: map[string]PartRun{"live": {"Made anew.", time.Minute}}, Live: &live{Floods: sample().Live.Floods[:1], Ordinary: 7}})
	if got := all.Markdown(); !strings.Contains(got, "Made anew.") || !strings.Contains(got, "Of 7 ordinary clicks") || !strings.Contains(got, "| *nat* | 1 |") {
		t.Errorf("the new part is not in the report, or an old one is no more:\n%s", got)
	}
}
