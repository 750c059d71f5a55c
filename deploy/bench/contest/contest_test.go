package contest

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestSpreadIsTheMedianBetweenTheQuartiles(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		want    spread
	}{
		{[]float64{7}, spread{7, 7, 7}},
		{[]float64{4, 2}, spread{2.5, 3, 3.5}},
		{[]float64{5, 1, 4, 2, 3}, spread{2, 3, 4}},
	} {
		if got := spreadOf(c.samples); got != c.want {
			t.Errorf("%v: %v, want %v", c.samples, got, c.want)
		}
	}
}

func TestRatiosPairTheSamplesOfARound(t *testing.T) {
	a := &server{samples: []sample{{cpu: 8}, {cpu: 4}, {cpu: 12}}}
	b := &server{samples: []sample{{cpu: 4}, {cpu: 4}, {cpu: 4}}}
	if got := ratio(a, b, cpu); got != (spread{1.5, 2, 2.5}) {
		t.Errorf("%v", got)
	}
}

func TestLedgerIsReadFromTheMetrics(t *testing.T) {
	got, err := readLedger(strings.NewReader(`# TYPE aff_redirect_requests_total counter
aff_redirect_requests_total{outcome="redirect"} 1.5e+06
aff_redirect_requests_total{outcome="expired"} 5
aff_redirect_requests_total{outcome="not_found_page"} 70
aff_redirect_requests_total{outcome="unavailable"} 80
aff_clicks_recorded_total 1.500003e+06
aff_clicks_published_total 1.5e+06
aff_clicks_unacknowledged 3
aff_clicks_dropped_total{reason="spool_full"} 1
aff_clicks_dropped_total{reason="corrupt"} 1
go_goroutines 12
`))
	if want := (ledger{1_500_005, 1_500_003, 1_500_000, 3, 2}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if _, err := readLedger(strings.NewReader("aff_clicks_recorded_total many\n")); err == nil {
		t.Error("a metric that is no number is taken")
	}
}

func TestProcTellsAboutThisProcess(t *testing.T) {
	pid := os.Getpid()
	before, err := cpuOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); time.Since(begin) < 50*time.Millisecond; { // work
	}
	after, err := cpuOf(pid)
	if err != nil || after <= before || after > before+time.Minute {
		t.Errorf("%v, then %v, %v", before, after, err)
	}
	if mb, err := resident(pid); err != nil || mb < 1 || mb > 1e5 {
		t.Errorf("%v MB, %v", mb, err)
	}
	if busy := coresBusy(); busy[0]+busy[1] <= 0 {
		t.Errorf("the cores have worked for %v", busy)
	}
	if gone(pid) || !gone(1<<22+1) {
		t.Error("gone is wrong")
	}
}

func TestMissingNamesWhatInstallsIt(t *testing.T) {
	if runtime.GOOS != "linux" || runtime.NumCPU() < 2 {
		if err := Missing(); err == nil || !strings.Contains(err.Error(), "at least 2 cores") {
			t.Error(err)
		}
		return
	}
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for _, tt := range []struct{ install, want string }{
		{"", "nginx, wrk, taskset not found; install with: apt-get install nginx-light wrk util-linux"},
		{"taskset", "nginx, wrk not found; install with: apt-get install nginx-light wrk"},
		{"nginx", "wrk not found; install with: apt-get install wrk"},
	} {
		if tt.install != "" {
			writeProgram(t, dir, tt.install)
		}
		if err := Missing(); err == nil || err.Error() != tt.want {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
	writeProgram(t, dir, "wrk")
	if err := Missing(); err != nil {
		t.Error(err)
	}
}

func writeProgram(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// someResult has a sample of each server, in two rounds.
func someResult() *Result {
	r := &Result{Config: Config{Rounds: 2, Links: 1_000_000}, Rate: 60_000, edits: edits{
		nginx: []float64{5000, 5100}, node: []float64{2, 3}, acked: []float64{0.1, 0.2}, pairs: []float64{2500, 1700}, ackedPairs: []float64{50000, 25500},
	}}
	for i, c := range servers() {
		v := float64(i + 6)
		c.loaded = 100 * v
		for range 2 {
			c.samples = append(c.samples, sample{cpu: v, rps: 1e6 / v, busy: 1, p50: 20 * v, p99: 60 * v, p999: 90 * v, sliceP99: 50 * v, resident: 100})
			v++
		}
		r.servers = append(r.servers, c)
	}
	r.servers[0].more = []sample{{p50: 90, p99: 300, sliceP99: 200, p999: 900}, {p50: 90, p99: 310, sliceP99: 200, p999: 900}, {p50: 90, p99: 320, sliceP99: 200, p999: 900}}
	r.servers[2].more = []sample{{p50: 80, p99: 400, sliceP99: 100, p999: 800}, {p50: 80, p99: 400, sliceP99: 100, p999: 800}, {p50: 80, p99: 400, sliceP99: 100, p999: 800}}
	r.besides = besides(r.servers, r.Rate)
	for i, b := range r.besides {
		b.alone = []openLoop{{P50: 1000, P99: 2000, P999: 3000, SliceP99: 2000}}
		b.with = []openLoop{{P50: 1000, P99: 4000, P999: 4500, SliceP99: 2200 + 400*int64(i)}}
		b.other = []openLoop{{P50: 1000, P99: 4000, P999: 4500, SliceP99: 2100}}
	}
	r.besides[3].pace = []float64{999}
	return r
}

func TestReportSaysWhichGoalsAreReached(t *testing.T) {
	report := someResult().Markdown("Made here.")
	for _, want := range []string{
		"Made here.",
		"| CPU per redirect, every click recorded and published | at most 1.00 | **0.76** (0.76 - 0.77) | reached |",
		"median of 2 rounds (quartiles), of 5 turns for p99",
		"| p99 at the same offered rate | at most 1.00 | **0.78** (0.75 - 0.78) | reached |",
		"| the same, typically: median over slices of 100 ms | at most 1.00 | **2.00** (0.78 - 2.00) | **not reached** |",
		"take the open loop alone, in 3 turns",
		"| p50 | to nginx | typical p99 | to nginx | p99 | to nginx | p99.9 | to nginx |",
		"| affnode, every click published | **90** (90 - 120) | **1.12** (0.78 - 1.12) | **200** (200 - 300) | **2.00** (0.78 - 2.00) | " +
			"**320** (310 - 360) | **0.78** (0.75 - 0.78) | **900** (630 - 900) | **1.12** (0.78 - 1.12) |",
		"| resident memory with the links loaded | at most 0.60 | **0.75** (0.75 - 0.75) | **not reached** |",
		"| typical p99 beside 5000 slow connections, to that without | at most 1.20 | **1.10** (1.10 - 1.10) | reached |",
		"| the same, to that beside as many to another process on the generator's core | at most 1.20 | **1.05** (1.05 - 1.05) | reached |",
		"| p99.9 beside 1000 deltas a second, to that without | at most 2.00 | **1.50** (1.50 - 1.50) | reached |",
		"1000 deltas a second (999 were applied) | 15000 |",
		"| an edit: how many times sooner, from the call that writes it | at least 500 | **2100** (1900 - 2300) | reached |",
	} {
		if !strings.Contains(report, want) {
			t.Errorf("%q is missing in\n%s", want, report)
		}
	}
	if strings.Contains(report, "%!") {
		t.Errorf("a verb without its value in\n%s", report)
	}
}

func TestChartIsWellFormedAndNamesEveryServer(t *testing.T) {
	chart := someResult().SVG()
	texts := 0
	for d := xml.NewDecoder(strings.NewReader(chart)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "text" {
			texts++
		}
	}
	for _, c := range someResult().servers {
		if label := chartLabels[c.label]; label == "" || !strings.Contains(chart, ">"+label+"<") {
			t.Errorf("%s is not in the chart", c.name)
		}
	}
	if texts < 3*len(chartLabels) {
		t.Errorf("%d texts", texts)
	}
	if strings.Contains(chart, "%!") || strings.Contains(chart, "NaN") {
		t.Error(chart)
	}
}

func TestAServerThatDoesNotTakeTheRateHasNoLatency(t *testing.T) {
	r := someResult()
	if before := r.Markdown("") + r.SVG(); strings.Contains(before, "does not take") {
		t.Errorf("all take 60k/s, but\n%s", before)
	}
	r.servers[5].samples = []sample{{cpu: 25, sliceP99: 2e6}, {cpu: 25, sliceP99: 2e6}}
	if report := r.Markdown(""); !strings.Contains(report, "| net/http, Go map | does not take this rate |") {
		t.Error(report)
	}
	if chart := r.SVG(); !strings.Contains(chart, "does not take this rate") || strings.Contains(chart, "2000000") {
		t.Error(chart)
	}
}

func TestStepsOfTheAxisAreRound(t *testing.T) {
	for top, want := range map[float64]float64{21.8: 5, 8.9: 2, 1: 0.2, 149_258: 50_000, 480: 100} {
		if got := niceStep(top); got != want {
			t.Errorf("up to %v: %v, want %v", top, got, want)
		}
	}
}
