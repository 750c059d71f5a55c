package contest

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

const (
	slowConnections = 5000
	slowEvery       = time.Second // between two bytes of one
	headTimeout     = "5s"        // of nginx; it is affnode's default
	deltaRate       = 1000        // per second
	besideRounds    = 5           // at most
)

// beside is what something else that goes on does to a server's answers.
type beside struct {
	what   string
	server *server
	rate   float64
	start  func(ctx context.Context, s *stage, c *server) (stop func() error, err error)

	turns       int  // in a round
	apart       bool // measured beside slow connections to another process, too
	alone, with []openLoop
	other       []openLoop
	pace        []float64 // of deltas: how many a second there were
}

// besides are what is tried: slow connections to affnode and to nginx, and
// then deltas.
func besides(servers []*server, rate float64) (all []*beside) {
	for _, c := range servers[:3] {
		all = append(all, &beside{what: fmt.Sprintf("%d slow connections", slowConnections), server: c, rate: rate, turns: 1, start: startSlow})
	}
	all[0].apart, all[0].turns = true, 2 // it has a goal
	deltas := &beside{what: fmt.Sprintf("%d deltas a second", deltaRate), server: servers[0], rate: rate / 4, turns: 1}
	deltas.start = func(ctx context.Context, s *stage, _ *server) (func() error, error) {
		return s.startDeltas(ctx, deltas)
	}
	return append(all, deltas)
}

// measure gives a turn.
func (b *beside) measure(ctx context.Context, s *stage) error {
	c := b.server
	if err := c.begin(s); err != nil {
		return err
	}
	if err := awaitQuiet(ctx, patience); err != nil {
		return err
	}
	alone, err := s.openLoop(ctx, c.addr, b.rate)
	if err != nil {
		return err
	}
	with, err := b.loop(ctx, s, b.start)
	if err != nil {
		return err
	}
	progress("%s beside %s: p50 %d -> %d, p99 %d -> %d (typically %d -> %d), p99.9 %d -> %d µs", c.name, b.what,
		alone.P50/1000, with.P50/1000, alone.P99/1000, with.P99/1000, alone.SliceP99/1000, with.SliceP99/1000, alone.P999/1000, with.P999/1000)
	b.alone, b.with = append(b.alone, alone), append(b.with, with)
	if b.apart {
		other, err := b.loop(ctx, s, startSlowApart)
		if err != nil {
			return err
		}
		progress("%s beside as many to another process: p50 %d, p99 %d (typically %d) µs", c.name, other.P50/1000, other.P99/1000, other.SliceP99/1000)
		b.other = append(b.other, other)
	}
	return c.end()
}

// loop is the open loop beside something.
func (b *beside) loop(ctx context.Context, s *stage, start func(context.Context, *stage, *server) (func() error, error)) (openLoop, error) {
	stop, err := start(ctx, s, b.server)
	if err != nil {
		return openLoop{}, err
	}
	with, err := s.openLoop(ctx, b.server.addr, b.rate)
	if stopped := stop(); err == nil {
		err = stopped
	}
	return with, err
}

// ratio compares the turns.
func (b *beside) ratio(figure func(openLoop) int64) spread { return ratios(b.with, b.alone, figure) }

// ratios compares the open loops of the same turns.
func ratios(of, to []openLoop, figure func(openLoop) int64) spread {
	var all []float64
	for i := range to {
		all = append(all, float64(figure(of[i]))/float64(figure(to[i])))
	}
	return spreadOf(all)
}

func loopP50(o openLoop) int64   { return o.P50 }
func loopP99(o openLoop) int64   { return o.P99 }
func loopSlice(o openLoop) int64 { return o.SliceP99 }
func loopP999(o openLoop) int64  { return o.P999 }

// startSlow starts the attack, and returns when the first connections have been
// closed by the server and opened again.
func startSlow(ctx context.Context, s *stage, c *server) (stop func() error, err error) {
	return attack(ctx, s, c.addr)
}

// startSlowApart starts one of the same size that is no server's: of the two cores
// it has only the generator's.
func startSlowApart(ctx context.Context, s *stage, _ *server) (stop func() error, err error) {
	return attack(ctx, s, "")
}

func attack(ctx context.Context, s *stage, addr string) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "taskset", pinned(generatorCore, filepath.Join(s.cfg.Bin, "slow"), "--addr", addr,
		"--connections", strconv.Itoa(slowConnections), "--every", slowEvery.String())...)
	input, err := cmd.StdinPipe()
	if err == nil {
		var output interface{ Read([]byte) (int, error) }
		if output, err = cmd.StdoutPipe(); err == nil {
			if err = cmd.Start(); err == nil {
				_, err = bufio.NewReader(output).ReadString('\n')
			}
		}
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("slow connections: %w", err)
	}
	time.Sleep(6 * time.Second)
	return func() error {
		defer cancel()
		_ = input.Close()
		return cmd.Wait()
	}, nil
}

// besideTable is the report's.
func (r *Result) besideTable(p func(string, ...any)) {
	p("\n## Beside other work\n\nThe open loop alone, and then beside it: median of so many turns (quartiles).\n\n" +
		"| server | beside | requests/s | turns | p50, times | typical p99, µs alone | with | times | p99, times | p99.9, times |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, b := range r.besides {
		micros := func(of []openLoop) spread {
			var all []float64
			for _, o := range of {
				all = append(all, float64(o.SliceP99)/1e3)
			}
			return spreadOf(all)
		}
		what := b.what
		if len(b.pace) > 0 {
			what += fmt.Sprintf(" (%.0f were applied)", spreadOf(b.pace).median)
		}
		p("| %s | %s | %.0f | %d | %s | %s | %s | %s | %s | %s |\n", b.server.name, what, b.rate, len(b.alone), b.ratio(loopP50).show(2),
			micros(b.alone).show(0), micros(b.with).show(0), b.ratio(loopSlice).show(2), b.ratio(loopP99).show(2), b.ratio(loopP999).show(2))
	}
	first := r.besides[0]
	p("\nThe attack's own work is on the generator's core, and so in what the generator measures. Beside as many slow connections to another process on that core, "+
		"the typical p99 of %s is %s times what it is alone; beside those to the node itself it is %s times that.\n",
		first.server.name, ratios(first.other, first.alone, loopSlice).show(2), ratios(first.with, first.other, loopSlice).show(2))
}
