package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// row is one figure: a sample per round.
type row struct {
	what    string
	goal    string
	samples []time.Duration
}

// report is Markdown.
type report struct{ sections strings.Builder }

func (r *report) add(m measurement, rows []row) {
	fmt.Fprintf(&r.sections, "\n## %s\n\n%s\n\n| figure | goal | median | lowest | highest | rounds |\n|---|---|---|---|---|---|\n", m.name, m.method)
	for _, row := range rows {
		s := slices.Sorted(slices.Values(row.samples))
		fmt.Fprintf(&r.sections, "| %s | %s | **%s** | %s | %s | %d |\n", row.what, cmp.Or(row.goal, "-"),
			show(median(s)), show(s[0]), show(s[len(s)-1]), len(s))
	}
}

// String is the report with what it was made on.
func (r *report) String() string {
	return fmt.Sprintf("# Figures of the whole system\n\n%s\n%s", made(), r.sections.String())
}

// made says how a report came about.
func made() string {
	return fmt.Sprintf("Made by `make bench` on %s, commit %s, %s, on %s.",
		time.Now().UTC().Format(time.DateOnly), commit(), runtime.Version(), machine())
}

func (r *report) save(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "system.md"), []byte(r.String()), 0o644)
}

// result is what a measurement with a report of its own gives. It is kept as
// JSON, so that parts can be measured again without the others.
type result interface {
	Markdown() string
	SVG() string // empty: no chart
}

// saveMerged reads what the folder has into all, lets merge put in what is new,
// and writes all three files; without a folder what is new is printed only.
func saveMerged(out, name string, newer, all result, merge func()) error {
	if out == "" {
		fmt.Print(newer.Markdown())
		return nil
	}
	file := filepath.Join(out, name)
	before, err := os.ReadFile(file + ".json")
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(before, all); err != nil {
			return fmt.Errorf("%s.json: %w", file, err)
		}
	}
	merge()
	text, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for ending, content := range map[string]string{".json": string(text) + "\n", ".md": all.Markdown(), ".svg": all.SVG()} {
		if content == "" { // a chart of what was not measured stays as it is
			continue
		}
		if err := os.WriteFile(file+ending, []byte(content), 0o644); err != nil {
			return err
		}
	}
	fmt.Print(all.Markdown())
	return nil
}

func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func machine() string {
	model := "an unknown processor"
	info, _ := os.ReadFile("/proc/cpuinfo") // elsewhere than on Linux there is none
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("%d cores of %s, %s", runtime.NumCPU(), model, runtime.GOOS)
}

// median of sorted samples.
func median[T time.Duration | float64](sorted []T) T {
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// percentile of unsorted samples, by the nearest rank; p is 0 to 100.
func percentile(samples []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

// show gives three digits.
func show(d time.Duration) string {
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d >= 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	default:
		return fmt.Sprintf("%.2f ms", float64(d)/1e6)
	}
}
