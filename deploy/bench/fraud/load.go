package fraud

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/deploy/bench/fraud/traffic"
	"github.com/affleet/affleet/deploy/bench/proc"
)

// load is clicks in a file, as many a second as a large fleet has.
type load struct {
	File                  string
	Clicks, Bytes         int
	Addresses, Affiliates int
}

// writeLoad writes clicks until there are so many of them, and of addresses.
func writeLoad(file string, cfg traffic.Config, clicks, addresses int) (l load, err error) {
	out, err := os.Create(file)
	if err != nil {
		return l, err
	}
	defer out.Close()
	w := bufio.NewWriterSize(out, 1<<20)
	l.File = file
	seen, affiliates := make(map[netip.Addr]struct{}), make(map[int32]struct{})
	t := traffic.New(cfg)
	each := func(yield func(*traffic.Click) bool) {
		for c := range t.Clicks() {
			seen[c.Address] = struct{}{}
			affiliates[c.Affiliate] = struct{}{}
			l.Clicks++
			if !yield(c) || l.Clicks >= clicks && len(seen) >= addresses {
				return
			}
		}
	}
	var buf []byte
	for _, message := range t.Batches(each, traffic.Batching{Span: 50_000}) {
		buf = traffic.AppendDelimited(buf[:0], message)
		l.Bytes += len(buf)
		if _, err := w.Write(buf); err != nil {
			return l, err
		}
	}
	l.Addresses, l.Affiliates = len(seen), len(affiliates)
	return l, w.Flush()
}

// capacity is what affguard takes on one core, and what decoding alone takes.
type capacity struct {
	Load   load
	Guard  []guardRun
	Decode []float64 // clicks/s
}

// guardRun is one replay.
type guardRun struct {
	Wall, CPU time.Duration
	Peak      float64 // MB
	State     float64 // MB: what affguard says that its tables take
}

// perSecond is clicks per second of the clock.
func (g guardRun) perSecond(clicks int) float64 { return float64(clicks) / g.Wall.Seconds() }

// nanos is CPU per click.
func (g guardRun) nanos(clicks int) float64 { return float64(g.CPU.Nanoseconds()) / float64(clicks) }

// Goals of the capacity.
const (
	leastClicksPerSecond = 300_000
	mostMemory           = 300 // MB
)

func runCapacity(ctx context.Context, cfg *Config, r *Result) (err error) {
	c := &capacity{}
	clicks, addresses := 3_000_000, 1_000_000
	if cfg.Quick {
		clicks, addresses = 300_000, 100_000
	}
	// A large fleet: 2,000 clicks a second, for throughput within half an hour of
	// the clicks' own time.
	shape := traffic.Default(7)
	shape.Affiliates, shape.Rate, shape.Baseline, shape.Length, shape.Attacks = 10_000, 2000, 11*time.Hour, 24*time.Hour, 0
	shape.Begin = shape.Begin.Add(11 * time.Hour) // by day
	if c.Load, err = writeLoad(filepath.Join(cfg.Dir, "load.bin"), shape, clicks, addresses); err != nil {
		return err
	}
	defer os.Remove(c.Load.File)
	for range cfg.rounds() {
		one, err := replayOnce(ctx, cfg.Bin, c.Load.File, c.Load.Clicks)
		if err != nil {
			return err
		}
		decode, err := decodeOnce(ctx, c.Load.File)
		if err != nil {
			return err
		}
		progress("affguard: %.0f clicks/s on one core, %.0f ns of CPU per click, peak %.0f MB; decoding alone %.0f clicks/s",
			one.perSecond(c.Load.Clicks), one.nanos(c.Load.Clicks), one.Peak, decode)
		c.Guard, c.Decode = append(c.Guard, one), append(c.Decode, decode)
	}
	r.Capacity = c
	return nil
}

// replayOnce replays a file on one core.
func replayOnce(ctx context.Context, bin, file string, clicks int) (g guardRun, err error) {
	cmd := exec.CommandContext(ctx, "taskset", "-c", guardCore, filepath.Join(bin, "affguard"), "replay", "--input", file, "--stats")
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return g, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// The process's own peak: what getrusage says may be that of its parent.
	for poll := time.NewTicker(20 * time.Millisecond); ; {
		select {
		case <-poll.C:
			if _, peak, err := proc.Memory(cmd.Process.Pid); err == nil {
				g.Peak = max(g.Peak, peak)
			}
			continue
		case err = <-ended:
			poll.Stop()
		}
		break
	}
	if err != nil {
		return g, fmt.Errorf("affguard replay: %w\n%s", err, complaints.Bytes())
	}
	g.Wall = time.Since(begin)
	g.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
	var last struct {
		Stats struct {
			Clicks     int   `json:"clicks"`
			StateBytes int64 `json:"state_bytes"`
		} `json:"stats"`
	}
	if err := json.Unmarshal(lines[len(lines)-1], &last); err != nil {
		return g, fmt.Errorf("affguard's stats: %w", err)
	}
	if last.Stats.Clicks != clicks {
		return g, fmt.Errorf("affguard looked at %d of %d clicks", last.Stats.Clicks, clicks)
	}
	g.State = float64(last.Stats.StateBytes) / 1e6
	return g, nil
}

// decodeArg tells this program to be a floor: it decodes the file behind it.
const decodeArg = "--decode-clicks"

// DecodeMain is the floor of affguard: a process that reads a file of clicks and
// decodes them, and nothing else. It says whether that was asked for.
func DecodeMain(args []string) bool {
	if len(args) != 3 || args[1] != decodeArg {
		return false
	}
	if err := decodeFile(args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func decodeFile(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	clicks, begin := 0, time.Now()
	for len(data) > 0 {
		message, rest, err := traffic.CutDelimited(data)
		if err != nil {
			return err
		}
		b, err := clickstream.Decode(message)
		if err != nil {
			return err
		}
		clicks += len(b.Clicks)
		data = rest
	}
	fmt.Printf("%.0f\n", float64(clicks)/time.Since(begin).Seconds())
	return nil
}

func decodeOnce(ctx context.Context, file string) (perSecond float64, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	out, err := exec.CommandContext(ctx, "taskset", "-c", guardCore, self, decodeArg, file).Output()
	if err != nil {
		return 0, fmt.Errorf("decode: %w", err)
	}
	_, err = fmt.Sscan(string(out), &perSecond)
	return perSecond, err
}
