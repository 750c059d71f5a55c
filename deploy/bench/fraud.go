package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/affleet/affleet/deploy/bench/fraud"
)

var frauds = measurement{name: "fraud", own: measureFraud, missing: fraud.Missing, alone: true}

var (
	fraudParts = flag.String("parts", "", "fraud: `names` of parts, separated by commas: "+strings.Join(fraud.Parts(), ", "))
	fraudShort = flag.Bool("truncate", false, "fraud: with --seeds: nodes record addresses as /24 and /48")
	fraudSeeds = flag.String("seeds", "", "fraud: `seeds` to evaluate in place of those of the report, separated by commas, for work on detectors")
)

func measureFraud(ctx context.Context, b *bench, out string) error {
	dir, err := os.MkdirTemp(b.dir, "fraud-")
	if err != nil {
		return err
	}
	cfg := fraud.Config{Made: made(), Bin: b.bin, Dir: dir, Rounds: b.rounds, Quick: b.quick, Judge: func(ctx context.Context) (fraud.Judge, error) { return judge(ctx, dir, b.rounds) }}
	if *fraudParts != "" {
		cfg.Parts = strings.Split(*fraudParts, ",")
	}
	cfg.Truncate = *fraudShort
	if *fraudSeeds == "" && *fraudShort {
		return errors.New("--truncate is for --seeds: in the report, truncated addresses are a part of their own")
	}
	if *fraudSeeds != "" {
		if out != "" {
			return errors.New(`a report is made of its own seeds: with --seeds, say --out ""`)
		}
		cfg.Parts = []string{"tuned"}
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
	var all fraud.Result
	return saveMerged(out, "fraud", r, &all, func() { all.Merge(r) })
}

// judge measures all labels of one request, with the package's own benchmark.
func judge(ctx context.Context, dir string, rounds int) (j fraud.Judge, err error) {
	const pkg = "./dataplane/internal/label"
	of := func(bench, unit string) *clickFigure {
		return &clickFigure{pkg: pkg, bench: bench, times: "2000000x", unit: unit}
	}
	warm, cold, nothing := of("BenchmarkJudge/warm", "ns/op"), of("BenchmarkJudge/cold", "ns/op"), of("BenchmarkJudge/harness", "ns/op")
	allocs := of("BenchmarkJudge/cold", "allocs/op")
	if err := runFigures(ctx, dir, min(rounds, 3), []*clickFigure{warm, cold, nothing, allocs}); err != nil {
		return j, err
	}
	return fraud.Judge{Warm: warm.samples, Cold: cold.samples, Nothing: nothing.samples, Allocs: allocs.sorted()[len(allocs.samples)-1]}, nil
}
