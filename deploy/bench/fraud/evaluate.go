// Package fraud measures the fraud detection of a fleet: what affguard finds in
// labelled traffic and whom it would hurt, how soon a block is served by every
// node, what affguard can take, and what labels cost a node.
//
// A run belongs to one goroutine. It needs Linux and two cores that have nothing
// else to do.
package fraud

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"

	"github.com/affleet/affleet/deploy/bench/fraud/traffic"
	"github.com/affleet/affleet/deploy/bench/fraud/verdict"
)

// Evaluate lets affguard replay traffic with the default policy, and compares what
// it says with the truth.
func Evaluate(ctx context.Context, bin string, cfg traffic.Config, how traffic.Batching) (*verdict.Jury, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "affguard"), "replay", "--input", "-")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	plan, written := traffic.New(cfg), make(chan error, 1)
	var truth verdict.Truth
	go func() { written <- errors.Join(Write(in, plan, how, truth.Add), in.Close()) }()
	reports, err := verdict.Read(out)
	if err != nil {
		cancel() // it must not wait for a reader
	}
	if err = errors.Join(err, <-written, cmd.Wait()); err != nil {
		return nil, fmt.Errorf("affguard replay: %w\n%s", err, complaints.Bytes())
	}
	return verdict.Judge(plan, &truth, reports), nil
}

// Write writes the batches of some traffic, each with its length before it, and
// tells of each click.
func Write(w io.Writer, t *traffic.Traffic, how traffic.Batching, each func(*traffic.Click)) error {
	out := bufio.NewWriterSize(w, 1<<20)
	clicks := func(yield func(*traffic.Click) bool) {
		for c := range t.Clicks() {
			each(c)
			if !yield(c) {
				return
			}
		}
	}
	var buf []byte
	for _, message := range t.Batches(clicks, how) {
		buf = traffic.AppendDelimited(buf[:0], message)
		if _, err := out.Write(buf); err != nil {
			return err
		}
	}
	return out.Flush()
}
