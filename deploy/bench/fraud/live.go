package fraud

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/deploy/bench/fraud/traffic"
	"github.com/affleet/affleet/deploy/bench/linkset"
	"github.com/affleet/affleet/deploy/processes"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

const (
	// floods follow each other at this distance, so that a few go on at once.
	floodGap = 1200 * time.Millisecond
	// Clicks of a flood a second, all nodes together: evenly over the orders of
	// magnitude.
	floodSlow, floodFast = 10, 60
	// ordinaryRate is what goes on beside, a second.
	ordinaryRate = 300
	// mostUntilServed is the goal, for p99.
	mostUntilServed = 5 * time.Second
)

// live is how soon floods are blocked on every node.
type live struct {
	Floods   []flooded
	Ordinary int64 // answers
	Refused  int64 // of these, 403
	Rate     float64
}

// flooded is one flood.
type flooded struct {
	Rate   float64                      // clicks a second
	Served [traffic.Nodes]time.Duration // by each node, since the first click
	Clicks int
}

// every is when the last node refused.
func (f *flooded) every() (last time.Duration) {
	for _, d := range f.Served {
		last = max(last, d)
	}
	return last
}

func runLive(ctx context.Context, cfg *Config, r *Result) error {
	floods := 50
	if cfg.Quick {
		floods = 5
	}
	dir := filepath.Join(cfg.Dir, "live")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	f, err := processes.New(cfg.Bin, dir, 1, traffic.Nodes)
	if err != nil {
		return err
	}
	defer f.Kill()
	f.NodeArgs = []string{"--trusted-proxies", "127.0.0.1/32", "--forwarded-header", "x-forwarded-for", "--log-level", "warn"}
	if err := f.StartAll(); err != nil {
		return err
	}
	shape := traffic.Default(5)
	shape.Rate, shape.Baseline, shape.Length, shape.Attacks, shape.Unlabelled = ordinaryRate, 18*time.Hour, time.Hour, 0, true
	shape.Begin = shape.Begin.Add(18 * time.Hour)
	t := traffic.New(shape)
	if err := openShop(ctx, f, dir, t.Shop); err != nil {
		return err
	}
	if err := f.StartGuard(); err != nil {
		return err
	}
	if !processes.Eventually(func() bool { return processes.Get(f.GuardAdmin, "/readyz").Status == http.StatusOK }) {
		return fmt.Errorf("affguard does not get ready\n%s", f.Guard.Output())
	}
	l := &live{}
	if err := l.run(ctx, f, t, floods); err != nil {
		return fmt.Errorf("%w\n%s", err, f.Guard.Output())
	}
	r.Live = l
	return nil
}

// openShop writes the affiliates and links, and the policy that what is found to
// be a flood is refused: then a node's answers say whether it serves the block.
func openShop(ctx context.Context, f *processes.Fleet, dir string, shop *traffic.Shop) error {
	if err := importShop(ctx, f, dir, shop); err != nil {
		return err
	}
	conn, err := grpc.NewClient(f.ControlAddr[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	policy := &linkv1.Policy{Scope: "*", Guard: &linkv1.GuardPolicy{
		BlocksPerHour: 10_000,
		Detectors:     []*linkv1.DetectorPolicy{{Detector: "flood", Action: linkv1.BlockAction_BLOCK_ACTION_REFUSE}},
	}}
	w, err := adminv1.NewLinkServiceClient(conn).Update(ctx, &adminv1.UpdateRequest{
		Resource: &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: policy}}, AllowMissing: true,
	})
	if err != nil {
		return fmt.Errorf("write the policy: %w", err)
	}
	_, err = adminv1.NewFleetServiceClient(conn).WaitForVersion(ctx, &adminv1.WaitForVersionRequest{Version: w.GetVersion(), MinNodes: traffic.Nodes})
	return err
}

func writeAffiliates(w io.Writer, shop *traffic.Shop) error {
	for i := range shop.Affiliates {
		if err := writeResource(w, "Affiliate", &linkv1.Affiliate{Id: shop.Affiliates[i].ID}); err != nil {
			return err
		}
	}
	return nil
}

func writeLinks(w io.Writer, shop *traffic.Shop) error {
	for _, l := range shop.Links {
		link := &linkv1.Link{Domain: linkset.Domain, Path: l.Path, Destination: l.Destination, Affiliate: shop.Affiliates[l.Affiliate].ID}
		if err := writeResource(w, "Link", link); err != nil {
			return err
		}
	}
	return nil
}

func writeResource(w io.Writer, kind string, m proto.Message) error {
	line, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "{\"kind\":%q,%s\n", kind, line[1:])
	return err
}

// run sends ordinary clicks, and floods beside them.
func (l *live) run(ctx context.Context, f *processes.Fleet, t *traffic.Traffic, floods int) error {
	ordinary, stop := context.WithCancel(ctx)
	var others sync.WaitGroup
	var failed atomic.Pointer[error]
	begin := time.Now()
	others.Go(func() {
		if err := l.people(ordinary, f, t); err != nil && ordinary.Err() == nil {
			failed.Store(&err)
		}
	})
	defer func() { stop(); others.Wait() }()
	time.Sleep(3 * time.Second) // what is ordinary must be known a little
	r := rand.New(rand.NewPCG(11, 1))
	l.Floods = make([]flooded, floods)
	errs := make([]error, floods)
	var all sync.WaitGroup
	for i := range floods {
		one := &l.Floods[i]
		one.Rate = floodSlow * math.Pow(float64(floodFast)/floodSlow, r.Float64())
		aff := &t.Shop.Affiliates[r.IntN(len(t.Shop.Affiliates))]
		c := traffic.Click{
			Link: aff.Links[0], Address: floodAddress(i), Languages: "en-US,en;q=0.9",
			Agent: "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/144.0.0.0 Safari/537.36",
		}
		request := t.Shop.AppendRequest(nil, &c)
		all.Go(func() { errs[i] = one.run(f, request) })
		time.Sleep(floodGap)
	}
	all.Wait()
	l.Rate = float64(atomic.LoadInt64(&l.Ordinary)) / time.Since(begin).Seconds()
	if err := failed.Load(); err != nil {
		return fmt.Errorf("ordinary clicks: %w", *err)
	}
	return errors.Join(errs...)
}

// people send ordinary clicks at an even pace, to the node that each is at.
func (l *live) people(ctx context.Context, f *processes.Fleet, t *traffic.Traffic) error {
	var conns [traffic.Nodes]*asker
	for i := range conns {
		var err error
		if conns[i], err = dial(f.NodeAddr[i]); err != nil {
			return err
		}
		defer conns[i].nc.Close()
	}
	next, stop := iter.Pull(t.Clicks())
	defer stop()
	tick := time.NewTicker(time.Second / ordinaryRate)
	defer tick.Stop()
	var buf []byte
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		c, ok := next()
		if !ok {
			return errors.New("no clicks are left")
		}
		buf = t.Shop.AppendRequest(buf[:0], c)
		status, err := conns[c.Node].ask(buf)
		if err != nil {
			return err
		}
		atomic.AddInt64(&l.Ordinary, 1)
		if status == http.StatusForbidden {
			atomic.AddInt64(&l.Refused, 1)
		}
	}
}

// run floods each node in turn until all refuse. It is its own probe: a node
// counts as serving the block from its first refusal on.
func (f *flooded) run(fleet *processes.Fleet, request []byte) error {
	var conns [traffic.Nodes]*asker
	for i := range conns {
		var err error
		if conns[i], err = dial(fleet.NodeAddr[i]); err != nil {
			return err
		}
		defer conns[i].nc.Close()
	}
	tick := time.NewTicker(time.Duration(float64(time.Second) / f.Rate))
	defer tick.Stop()
	begin, left := time.Now(), traffic.Nodes
	for i := 0; left > 0; i++ {
		node := i % traffic.Nodes
		status, err := conns[node].ask(request)
		if err != nil {
			return err
		}
		f.Clicks++
		since := time.Since(begin)
		switch {
		case status == http.StatusForbidden && f.Served[node] == 0:
			f.Served[node] = since
			left--
		case since > processes.Patience:
			return fmt.Errorf("a flood of %.0f/s is not blocked within %v", f.Rate, processes.Patience)
		}
		<-tick.C
	}
	return nil
}

// asker sends requests over one connection.
type asker struct {
	nc net.Conn
	in *bufio.Reader
}

func dial(addr string) (*asker, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &asker{nc, bufio.NewReader(nc)}, nil
}

// ask gives the status of the answer.
func (a *asker) ask(request []byte) (int, error) {
	if err := a.nc.SetDeadline(time.Now().Add(processes.Patience)); err != nil {
		return 0, err
	}
	if _, err := a.nc.Write(request); err != nil {
		return 0, err
	}
	var of *http.Request
	if request[0] == 'H' {
		of = &http.Request{Method: http.MethodHead}
	}
	resp, err := http.ReadResponse(a.in, of)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}
