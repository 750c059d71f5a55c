package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/affleet/affleet/deploy/bench/footprint"
)

var memory = measurement{name: "memory", own: measureMemory, missing: footprint.Missing, alone: true}

func measureMemory(ctx context.Context, b *bench, out string) error {
	dir, err := os.MkdirTemp(b.dir, "memory-")
	if err != nil {
		return err
	}
	r, err := footprint.Run(ctx, footprint.Config{Bin: b.bin, Dir: dir, Rounds: b.rounds, Quick: b.quick, Made: made()})
	if err != nil {
		return err
	}
	report := r.Markdown()
	fmt.Print(report)
	if out == "" {
		return nil
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "memory.md"), []byte(report), 0o644)
}
