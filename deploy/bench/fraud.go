package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/affleet/affleet/deploy/bench/fraud"
)

var frauds = measurement{name: "fraud", own: measureFraud, missing: fraud.Missing, alone: true}

var (
	fraudParts = flag.String("parts", "", "fraud: `names` of parts, separated by commas: "+strings.Join(fraud.Parts(), ", "))
	fraudSeeds = flag.String("seeds", "", "fraud: `seeds` to evaluate in place of those of the report, separated by commas, for work on detectors")
)

func measureFraud(ctx context.Context, b *bench, out string) error {
	dir, err := os.MkdirTemp(b.dir, "fraud-")
	if err != nil {
		return err
	}
	cfg := fraud.Config{Bin: b.bin, Dir: dir, Rounds: b.rounds, Quick: b.quick, Judge: func(ctx context.Context) (fraud.Judge, error) { return judge(ctx, dir, b.rounds) }}
	if *fraudParts != "" {
		cfg.Parts = strings.Split(*fraudParts, ",")
	}
	if *fraudSeeds != "" {
		if out != "" {
			return errors.New(`a report is made of its own seeds: with --seeds, say --out ""`)
		}
		cfg.Held = []uint64{}
		for text := range strings.SplitSeq(*fraudSeeds, ",") {
			seed, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				return fmt.Errorf("--seeds: %w", err)
			}
			cfg.Tuning = append(cfg.Tuning, seed)
		}
	}
	r, err := fraud.Run(ctx, cfg)
	if err != nil {
		return err
	}
	report := r.Markdown(made())
	fmt.Print(report)
	if out == "" {
		return nil
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "fraud.md"), []byte(report), 0o644); err != nil {
		return err
	}
	return writeChart(filepath.Join(out, "fraud.svg"), r.SVG())
}

// judge measures all labels of one request, with the package's own benchmark.
func judge(ctx context.Context, dir string, rounds int) (j fraud.Judge, err error) {
	const pkg = "./dataplane/internal/label"
	of := func(bench, unit string) *clickFigure {
		return &clickFigure{pkg: pkg, bench: bench, times: "2000000x", unit: unit}
	}
	warm, cold, nothing := of("BenchmarkJudge/warm", "ns/op"), of("BenchmarkJudge/cold", "ns/op"), of("BenchmarkNothing", "ns/op")
	allocs := of("BenchmarkJudge/cold", "allocs/op")
	if err := runFigures(ctx, dir, min(rounds, 3), []*clickFigure{warm, cold, nothing, allocs}); err != nil {
		return j, err
	}
	return fraud.Judge{Warm: warm.samples, Cold: cold.samples, Nothing: nothing.samples, Allocs: allocs.sorted()[len(allocs.samples)-1]}, nil
}

// writeChart leaves the chart as it is when the part that it shows was not
// measured.
func writeChart(file, chart string) error {
	if chart == "" {
		return nil
	}
	return os.WriteFile(file, []byte(chart), 0o644)
}
