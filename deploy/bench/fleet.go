package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/affleet/affleet/deploy/bench/reach"
)

var fleets = measurement{name: "fleet", own: measureFleet, missing: reach.Missing, alone: true}

var (
	fleetRows    = flag.String("rows", "", "fleet: `names` of rows, separated by commas: "+strings.Join(reach.Names(), ", "))
	fleetNodes   = flag.String("nodes", "", "fleet: `numbers` of simulated nodes in the row curve, separated by commas; default 1 to 5000")
	fleetAppend  = flag.Bool("append", false, "fleet: add the rounds to those of the report, instead of replacing the rows")
	fleetProfile = flag.String("profile", "", "fleet: `folder` for CPU profiles of affcontrol, by perf")
)

func measureFleet(ctx context.Context, b *bench, out string) error {
	dir, err := os.MkdirTemp(b.dir, "fleet-")
	if err != nil {
		return err
	}
	cfg := reach.Config{Bin: b.bin, Dir: dir, Rounds: b.rounds, Profile: *fleetProfile, Quick: b.quick, Made: made()}
	if *fleetRows != "" {
		cfg.Rows = strings.Split(*fleetRows, ",")
	}
	if *fleetNodes != "" {
		for text := range strings.SplitSeq(*fleetNodes, ",") {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 {
				return fmt.Errorf("--nodes: %q is not a number of nodes", text)
			}
			cfg.Nodes = append(cfg.Nodes, n)
		}
	}
	if cfg.Profile != "" {
		if err := os.MkdirAll(cfg.Profile, 0o755); err != nil {
			return err
		}
	}
	result, err := reach.Run(ctx, cfg)
	if err != nil {
		return err
	}
	var all reach.Result
	return saveMerged(out, "fleet", result, &all, func() { all.Merge(result, *fleetAppend) })
}
