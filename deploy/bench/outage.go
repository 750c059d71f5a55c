package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/deploy/bench/linkset"
	"github.com/affleet/affleet/deploy/bench/proc"
	"github.com/affleet/affleet/deploy/processes"
)

// outage measures what redirects notice of NATS being away and of the drain
// that follows, in cycles: before, without NATS, with a full spool, while it drains.
// The machine changes within minutes, so that timings are compared with those of their own
// cycle. The node has one core, and all else the other.
type outage struct {
	bin, dir string
	links    int
	share    float64       // of what the node's core takes: how many redirects are asked for while they are timed
	window   time.Duration // of one timing
	cycles   int
	rounds   int     // timings before each outage, and in it while the requests stay as they are
	full     int     // timings with a full spool
	long     int     // timings in the first outage, while the requests stay as they are
	spool    float64 // clicks that wait when NATS returns, at least
	large    float64 // the same in each third cycle, from the first one on

	fleet *processes.Fleet
	node  *processes.Process

	// Results.
	rate  float64 // of redirects that are timed, per second
	awake bool    // cores do not halt
	moved bool    // all else that runs is on the other core
	done  []*cycle
	bytes float64 // per click in the stream
}

// cycle is an outage with what is before and behind it.
type cycle struct {
	before, meanwhile, behind, draining []timing

	large         bool
	stopped, away time.Duration // stopped: before the spool was filled
	waited        float64       // clicks in it when NATS returned
	drained       time.Duration // how long that took
}

// timing is what the program openloop prints.
type timing struct {
	Answered           uint64
	P50, P99, SliceP99 int64 // ns
	Paused             int64 // ns for which the generator was not let run: nothing was due meanwhile

	begin, end     time.Time
	stolen, paused float64 // shares of the time: of both cores, that the hypervisor took; that the generator was not let run
}

const (
	nodeCore  = "0"
	otherCore = "1"
	bothCores = "0,1"
)

func (o *outage) run(ctx context.Context) (err error) {
	if err := proc.Pin(os.Getpid(), otherCore); err != nil {
		return err
	}
	defer func() { _ = proc.Pin(os.Getpid(), bothCores) }() // worked a moment ago
	release, err := proc.StayAwake()
	if o.awake = err == nil; o.awake {
		defer release()
	} else {
		fmt.Fprintln(os.Stderr, err)
	}
	back, err := proc.MoveOthers(otherCore)
	if o.moved = err == nil; o.moved {
		defer func() { err = errors.Join(err, back()) }()
	} else {
		fmt.Fprintln(os.Stderr, err)
	}
	if o.fleet, err = processes.New(o.bin, o.dir, 1, 1); err != nil {
		return err
	}
	defer o.fleet.Kill()
	if err := o.open(ctx); err != nil {
		return err
	}
	defer o.node.Kill()
	if err := o.calibrate(ctx); err != nil {
		return err
	}
	for n := range o.cycles {
		if err := o.cycle(ctx, n); err != nil {
			return err
		}
	}
	return o.check(ctx)
}

// cycle is the nth one, from 0.
func (o *outage) cycle(ctx context.Context, n int) error {
	c := new(cycle)
	o.done = append(o.done, c)
	if err := o.published(); err != nil {
		return err
	}
	if err := o.times(ctx, o.rounds, &c.before); err != nil {
		return err
	}
	timings, spool := o.rounds, o.spool
	if n == 0 {
		timings = o.long
	}
	if c.large = n%3 == 0; c.large {
		spool = o.large
	}
	if err := o.withoutNATS(ctx, c, timings, spool); err != nil {
		return err
	}
	return o.drain(ctx, c)
}

// open starts all, with the links loaded.
func (o *outage) open(ctx context.Context) error {
	f := o.fleet
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(o.bin, "openloop"), "github.com/affleet/affleet/deploy/bench/openloop").CombinedOutput(); err != nil {
		return fmt.Errorf("build openloop: %w\n%s", err, out)
	}
	if err := errors.Join(f.StartEtcd(), f.StartNATS(), f.StartControl(0)); err != nil {
		return err
	}
	if !processes.Eventually(func() bool { return processes.Get(f.ControlAdmin[0], "/readyz").Status == http.StatusOK }) {
		return fmt.Errorf("the control plane does not get ready:\n%s", f.Control[0].Output())
	}
	for _, part := range []struct {
		name  string
		write func(io.Writer) error
	}{
		{"affiliates.ndjson", linkset.WriteAffiliates},
		{"links.ndjson", func(w io.Writer) error { return linkset.Set{Seed: 1}.WriteNDJSON(w, o.links) }},
	} {
		path := filepath.Join(o.dir, part.name)
		file, err := os.Create(path)
		if err != nil {
			return err
		}
		if err := errors.Join(part.write(file), file.Close()); err != nil {
			return err
		}
		if out, code := f.Affctl(ctx, "import", "ndjson", path); code != 0 {
			return fmt.Errorf("affctl import: exit code %d\n%s", code, out)
		}
	}
	var err error
	o.node, err = processes.Start(o.dir, "taskset", "-c", nodeCore, filepath.Join(o.bin, "affnode"),
		"--control", f.ControlAddr[0], "--nats", "nats://"+f.NATSAddr, "--listen", f.NodeAddr[0], "--admin", f.NodeAdmin[0],
		"--node", "node-1", "--data-dir", "data", "--log-level", "error", "--spool-bytes", strconv.Itoa(16<<30), "--max-conns-per-addr", "10000")
	if err != nil {
		return err
	}
	last := linkset.Set{Seed: 1}.Link(o.links - 1).GetPath()
	if !processes.Eventually(func() bool { return o.status(last) == http.StatusFound }) {
		return fmt.Errorf("the node does not serve %s:\n%s", last, o.node.Output())
	}
	time.Sleep(time.Second) // what loading took is given back
	return nil
}

// status asks the node for a path of the links' domain.
func (o *outage) status(path string) int {
	r, err := http.NewRequest(http.MethodGet, "http://"+o.fleet.NodeAddr[0]+path, http.NoBody)
	if err != nil {
		return 0
	}
	r.Host = linkset.Domain
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

const (
	// warmUp is before each timing.
	warmUp = 500 * time.Millisecond
	// fast is more requests per second than the node answers.
	fast = 1e6
	// quickest is more clicks per second than the node publishes of these requests.
	quickest = 4e6
)

// calibrate finds the rate: a share of what a core takes that does nothing else, with
// every click published.
func (o *outage) calibrate(ctx context.Context) error {
	for range 2 { // the first one warms up
		before, err := proc.CPU(o.node.PID())
		if err != nil {
			return err
		}
		t, err := o.load(ctx, fast, 0, 500*time.Millisecond)
		if err != nil {
			return err
		}
		if err := o.published(); err != nil {
			return err
		}
		after, err := proc.CPU(o.node.PID())
		if err != nil {
			return err
		}
		o.rate = math.Round(o.share * float64(t.Answered) / (after - before).Seconds())
	}
	fmt.Fprintf(os.Stderr, "offered rate: %.0f/s\n", o.rate)
	return nil
}

// published waits until all clicks are.
func (o *outage) published() error {
	var m map[string]float64
	var err error
	if !processes.Eventually(func() bool {
		m, err = o.metrics()
		return err == nil && m["unacknowledged"] == 0
	}) {
		return errors.Join(err, fmt.Errorf("%.0f clicks are not published", m["unacknowledged"]))
	}
	return nil
}

// load asks the node for redirects.
func (o *outage) load(ctx context.Context, rate float64, warm, d time.Duration) (t timing, err error) {
	var errs strings.Builder
	cmd := exec.CommandContext(ctx, filepath.Join(o.bin, "openloop"), "--addr", o.fleet.NodeAddr[0], "--links", strconv.Itoa(o.links),
		"--rate", fmt.Sprint(rate), "--watch", "0", "--own-pauses", "--warm", warm.String(), "--duration", d.String())
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return t, fmt.Errorf("openloop: %w\n%s%s", err, errs.String(), o.node.Output())
	}
	return t, json.Unmarshal(out, &t)
}

// time adds a timing at the fixed rate.
func (o *outage) time(ctx context.Context, to *[]timing) error {
	begin := time.Now()
	before, err := proc.Stolen()
	if err != nil {
		return err
	}
	t, err := o.load(ctx, o.rate, warmUp, o.window)
	if err != nil {
		return err
	}
	after, err := proc.Stolen()
	if err != nil {
		return err
	}
	t.begin, t.end = begin, time.Now()
	t.stolen = (after - before).Seconds() / time.Since(begin).Seconds() / 2
	t.paused = float64(t.Paused) / float64(o.window+warmUp)
	fmt.Fprintf(os.Stderr, "p50 %.0f µs, p99 %.0f µs, typically %.0f µs, generator paused %.1f%%, stolen %.1f%%\n", float64(t.P50)/1e3, float64(t.P99)/1e3, float64(t.SliceP99)/1e3, 100*t.paused, 100*t.stolen)
	*to = append(*to, t)
	return nil
}

// times adds n timings.
func (o *outage) times(ctx context.Context, n int, to *[]timing) error {
	for range n {
		if err := o.time(ctx, to); err != nil {
			return err
		}
	}
	return nil
}

// withoutNATS stops NATS, times redirects, and fills the spool.
func (o *outage) withoutNATS(ctx context.Context, c *cycle, timings int, spool float64) error {
	if _, err := o.fleet.NATS.Stop(); err != nil {
		return err
	}
	begin := time.Now()
	fmt.Fprintln(os.Stderr, "NATS is stopped")
	if err := o.times(ctx, timings, &c.meanwhile); err != nil {
		return err
	}
	c.stopped = time.Since(begin)
	if err := o.fill(ctx, spool); err != nil {
		return err
	}
	if err := o.times(ctx, o.full, &c.behind); err != nil {
		return err
	}
	c.away = time.Since(begin)
	return nil
}

// fill sends requests as fast as they are answered until so many clicks wait.
func (o *outage) fill(ctx context.Context, clicks float64) error {
	for {
		m, err := o.metrics()
		if err != nil {
			return err
		}
		missing := clicks - m["unacknowledged"]
		if missing <= 0 {
			return o.whole("while the spool was filled")
		}
		if _, err := o.load(ctx, fast, 0, time.Duration(min(missing, 2e6)/fast*float64(time.Second))+time.Millisecond); err != nil {
			return err
		}
	}
}

// drain lets NATS return, and times redirects until the spool is empty but for what comes
// in a second. What was not timed while it shrank does not count.
func (o *outage) drain(ctx context.Context, c *cycle) error {
	waited, err := o.waiting()
	if err != nil {
		return err
	}
	if err := o.fleet.NATS.Restart(); err != nil {
		return err
	}
	begin := time.Now()
	fmt.Fprintf(os.Stderr, "NATS returns: %.0f clicks wait\n", waited)
	var timings sync.WaitGroup
	done := make(chan struct{})
	var timed []timing
	var failed error
	timings.Go(func() {
		for failed == nil {
			select {
			case <-done:
				return
			default:
				failed = o.time(ctx, &timed)
			}
		}
	})
	shrinks, empty, err := o.watch(waited)
	c.waited, c.drained = waited, empty.Sub(begin)
	close(done)
	timings.Wait()
	for _, t := range timed {
		if t.begin.After(shrinks) && t.end.Before(empty) {
			c.draining = append(c.draining, t)
		}
	}
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	if len(c.draining) == 0 {
		return fmt.Errorf("the spool drained within %v, before redirects were timed", c.drained)
	}
	fmt.Fprintf(os.Stderr, "drained in %.1f s, %.0f clicks/s\n", c.drained.Seconds(), waited/c.drained.Seconds())
	return o.whole("while the spool drained")
}

// watch gives when a spool began to shrink, and when it was empty but for what comes in a
// second.
func (o *outage) watch(waited float64) (shrinks, empty time.Time, err error) {
	begin, left := time.Now(), waited
	for time.Since(begin) < 5*time.Minute {
		// Asking takes the node's core up to 1 ms, and makes garbage: seldom, while there is much left.
		wait := max(250*time.Millisecond, time.Duration(left/quickest*float64(time.Second)))
		if shrinks.IsZero() {
			wait = 100 * time.Millisecond
		}
		time.Sleep(wait)
		left, err = o.waiting()
		now := time.Now()
		if err != nil || left < o.rate {
			return shrinks, now, err
		}
		if shrinks.IsZero() && left < 0.99*waited {
			shrinks = now
		}
	}
	return shrinks, time.Now(), fmt.Errorf("after %v, %.0f clicks still wait\n%s", time.Since(begin), left, o.node.Output())
}

// waiting is how many clicks are not published.
func (o *outage) waiting() (float64, error) {
	m, err := o.metrics()
	return m["unacknowledged"], err
}

// whole fails when clicks were dropped, in the phase that has just ended.
func (o *outage) whole(phase string) error {
	m, err := o.metrics()
	if err == nil && m["dropped_total"] > 0 {
		err = fmt.Errorf("clicks were dropped %s: %v\n%s", phase, m, o.node.Output())
	}
	return err
}

// check sees to it that no click is missing in the stream, and measures it.
func (o *outage) check(ctx context.Context) error {
	if err := o.published(); err != nil {
		return err
	}
	if err := o.whole("at the end"); err != nil {
		return err
	}
	m, err := o.metrics()
	if err != nil {
		return err
	}
	if m["published_total"] != m["recorded_total"] {
		return fmt.Errorf("clicks are missing: %v\n%s", m, o.node.Output())
	}
	nc, err := nats.Connect("nats://" + o.fleet.NATSAddr)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	stream, err := js.Stream(ctx, clickstream.StreamName)
	if err != nil {
		return err
	}
	o.bytes = float64(stream.CachedInfo().State.Bytes) / m["recorded_total"]
	return nil
}

// metrics are the node's about clicks, without their prefix; those with labels
// are there one by one, and added up.
func (o *outage) metrics() (map[string]float64, error) {
	resp, err := http.Get("http://" + o.fleet.NodeAdmin[0] + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	m := make(map[string]float64)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		family, _, _ := strings.Cut(name, "{")
		short, ours := strings.CutPrefix(family, "aff_clicks_")
		if !ours {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, fmt.Errorf("metric %s: %w", name, err)
		}
		if m[short] += v; family != name {
			m[short+strings.TrimPrefix(name, family)] = v
		}
	}
	return m, lines.Err()
}
