package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/affleet/affleet/deploy/processes"
)

var start = measurement{
	name: "start",
	method: "From calling `make run` on a built tree, to the first redirect of a sample link by the first of three nodes. " +
		"The address is asked every millisecond.",
	run: measureStart,
}

func measureStart(ctx context.Context, b *bench) ([]row, error) {
	if out, err := exec.CommandContext(ctx, "make", "build").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make build: %w\n%s", err, out)
	}
	var samples []time.Duration
	for range b.rounds {
		d, err := startOnce(ctx)
		if err != nil {
			return nil, err
		}
		samples = append(samples, d)
	}
	return []row{{what: "`make run` to the first redirect", goal: "3 s", samples: samples}}, nil
}

func startOnce(ctx context.Context) (time.Duration, error) {
	const node = "127.0.0.1:18080"
	cmd := exec.CommandContext(ctx, "make", "run",
		"ARGS=--http "+node+" --control 127.0.0.1:0 --etcd 127.0.0.1:0 --nats 127.0.0.1:0 --admin 127.0.0.1:0")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that the signal reaches make's child too
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		_ = cmd.Wait() // make reports the signal
	}()
	for time.Since(begin) < processes.Patience {
		if processes.Get(node, "/go/summer-deal").Status == http.StatusFound {
			return time.Since(begin), nil
		}
		time.Sleep(time.Millisecond)
	}
	return 0, fmt.Errorf("no redirect within %v", processes.Patience)
}
