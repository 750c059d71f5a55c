package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/affleet/affleet/deploy/bench/contest"
)

var decisions = measurement{name: "decisions", own: measureDecisions, missing: contest.Missing, alone: true}

func measureDecisions(ctx context.Context, b *bench, out string) error {
	dir, err := os.MkdirTemp(b.dir, "decisions-")
	if err != nil {
		return err
	}
	cfg := contest.Config{Bin: b.bin, Dir: dir, Rounds: b.rounds, Links: 50_000, Warm: time.Second, Closed: 2 * time.Second}
	if b.quick {
		cfg.Rounds, cfg.Links, cfg.Closed = 1, 5_000, time.Second
	}
	r, err := contest.RunDecisions(ctx, cfg)
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
	return os.WriteFile(filepath.Join(out, "decisions.md"), []byte(report), 0o644)
}
