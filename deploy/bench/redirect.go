package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/affleet/affleet/deploy/bench/contest"
)

var redirects = measurement{name: "redirect", own: measureRedirects, missing: contest.Missing}

func measureRedirects(ctx context.Context, b *bench, out string) error {
	dir, err := os.MkdirTemp(b.dir, "redirect-")
	if err != nil {
		return err
	}
	cfg := contest.Config{Bin: b.bin, Dir: dir, Rounds: b.rounds, Links: 1_000_000, Warm: time.Second, Closed: 3 * time.Second, Open: 3 * time.Second}
	if b.quick {
		cfg.Rounds, cfg.Links, cfg.Warm, cfg.Closed, cfg.Open = 1, 100_000, time.Second, 2*time.Second, 2*time.Second
	}
	r, err := contest.Run(ctx, cfg)
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
	if err := os.WriteFile(filepath.Join(out, "redirect.md"), []byte(report), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "redirect.svg"), []byte(r.SVG()), 0o644)
}
