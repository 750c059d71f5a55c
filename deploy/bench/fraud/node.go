package fraud

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/affleet/affleet/deploy/bench/contest"
	"github.com/affleet/affleet/deploy/bench/fraud/traffic"
	"github.com/affleet/affleet/deploy/bench/proc"
	"github.com/affleet/affleet/deploy/processes"
	"github.com/affleet/affleet/proto/link"
)

// Goals of the node.
const (
	mostLabelMemory = 64  // MB
	mostJudge       = 500 // ns
)

// node is the memory that labels take of a node.
type node struct {
	Addresses     int
	With, Without nodeMemory
}

// labels is the time that labels take.
type labels struct {
	Node  *contest.Labels
	Judge Judge
}

// nodeMemory is in MB.
type nodeMemory struct{ Ready, After, Peak float64 }

// Judge is what the benchmark of dataplane/internal/label says of all labels of
// one request: of an address that is asked for again and again, and of one out of
// four million.
type Judge struct {
	Warm, Cold, Nothing []float64 // ns
	Allocs              float64
}

func runNode(ctx context.Context, cfg *Config, r *Result) error {
	n := &node{Addresses: 10_000_000}
	if cfg.Quick {
		n.Addresses = 300_000
	}
	if err := n.measure(ctx, cfg); err != nil {
		return err
	}
	r.Node = n
	return nil
}

func runLabels(ctx context.Context, cfg *Config, r *Result) (err error) {
	l := &labels{}
	if l.Judge, err = cfg.Judge(ctx); err != nil {
		return err
	}
	shape := contest.Config{Bin: cfg.Bin, Dir: filepath.Join(cfg.Dir, "contest"), Rounds: cfg.rounds(), Links: 20_000, Warm: time.Second, Closed: 2 * time.Second}
	if cfg.Quick {
		shape.Links = 5000
	}
	if err := os.Mkdir(shape.Dir, 0o755); err != nil {
		return err
	}
	if l.Node, err = contest.RunLabels(ctx, shape); err != nil {
		return err
	}
	r.Labels = l
	return nil
}

// measure lets a node with labels, and one without, answer one request of
// each of so many addresses. Clicks have a small spool and no broker: what they
// take is the same for both.
func (n *node) measure(ctx context.Context, cfg *Config) error {
	dir := filepath.Join(cfg.Dir, "memory")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	f, err := processes.New(cfg.Bin, dir, 1, 2)
	if err != nil {
		return err
	}
	defer f.Kill()
	if err := errors.Join(f.StartEtcd(), f.StartControl(0)); err != nil {
		return err
	}
	if !processes.Eventually(func() bool { return processes.Get(f.ControlAdmin[0], "/readyz").Status == 200 }) {
		return fmt.Errorf("the control plane does not get ready\n%s", f.Control[0].Output())
	}
	shape := traffic.Default(3)
	shape.Affiliates, shape.Attacks = 100, 0
	shop := traffic.New(shape).Shop
	if err := importShop(ctx, f, dir, shop); err != nil {
		return err
	}
	var all []string
	for l := range link.NumLabels {
		all = append(all, l.String())
	}
	args := []string{"--trusted-proxies", "127.0.0.1/32", "--forwarded-header", "x-forwarded-for", "--log-level", "error", "--click-level", "memory", "--spool-bytes", "33554432"}
	for i, memory := range []*nodeMemory{&n.With, &n.Without} {
		f.NodeArgs = args
		if i == 1 {
			f.NodeArgs = append(args, "--label-off", strings.Join(all, ","))
		}
		if err := n.fill(f, i, shop, memory); err != nil {
			return fmt.Errorf("%w\n%s", err, f.Nodes[i].Output())
		}
		f.Nodes[i].Kill()
	}
	return nil
}

// fill asks a node on behalf of each address.
func (n *node) fill(f *processes.Fleet, i int, shop *traffic.Shop, memory *nodeMemory) error {
	if err := f.StartNode(i); err != nil {
		return err
	}
	first := shop.Links[0].Path
	if !processes.Eventually(func() bool { return processes.Get(f.NodeAdmin[i], "/readyz").Status == 200 }) {
		return fmt.Errorf("node %d does not get ready for %s", i+1, first)
	}
	pid := f.Nodes[i].PID()
	var err error
	if memory.Ready, _, err = proc.Memory(pid); err != nil {
		return err
	}
	const connections = 4
	var group errgroup.Group
	begin := time.Now()
	for c := range connections {
		group.Go(func() error {
			return fillFrom(f.NodeAddr[i], shop, c*n.Addresses/connections, (c+1)*n.Addresses/connections)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	progress("%d addresses in %.0f s", n.Addresses, time.Since(begin).Seconds())
	time.Sleep(2 * time.Second) // memory that is not needed is given back
	memory.After, memory.Peak, err = proc.Memory(pid)
	return err
}

// pipeline is how many requests are under way on a connection.
const pipeline = 64

// fillFrom asks on behalf of addresses 11.0.0.0 and on, one request each.
func fillFrom(addr string, shop *traffic.Shop, from, to int) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	in := bufio.NewReaderSize(nc, 1<<16)
	visitor := traffic.Click{Agent: "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/145.0.0.0 Mobile Safari/537.36", Languages: "en-US,en;q=0.9"}
	var buf []byte
	for n := from; n < to; {
		buf = buf[:0]
		sent := 0
		for ; sent < pipeline && n < to; sent, n = sent+1, n+1 {
			visitor.Link = int32(n % len(shop.Links))
			visitor.Address = numbered(n)
			buf = shop.AppendRequest(buf, &visitor)
		}
		if err := nc.SetDeadline(time.Now().Add(processes.Patience)); err != nil {
			return err
		}
		if _, err := nc.Write(buf); err != nil {
			return err
		}
		for range sent {
			if err := skipAnswer(in); err != nil {
				return err
			}
		}
	}
	return nil
}

// skipAnswer reads a redirect, which has no body.
func skipAnswer(in *bufio.Reader) error {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 302")) {
		return fmt.Errorf("answered with %q", line)
	}
	for len(line) > len("\r\n") {
		if line, err = in.ReadSlice('\n'); err != nil {
			return err
		}
	}
	return nil
}

// importShop writes affiliates and links by affctl.
func importShop(ctx context.Context, f *processes.Fleet, dir string, shop *traffic.Shop) error {
	for name, write := range shopFiles(shop) {
		file, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		w := bufio.NewWriter(file)
		if err := errors.Join(write(w), w.Flush(), file.Close()); err != nil {
			return err
		}
		if out, code := f.Affctl(ctx, "import", "ndjson", file.Name()); code != 0 {
			return fmt.Errorf("affctl import: exit code %d\n%s", code, out)
		}
	}
	return nil
}

// shopFiles are what is imported, in order.
func shopFiles(shop *traffic.Shop) func(yield func(string, func(io.Writer) error) bool) {
	return func(yield func(string, func(io.Writer) error) bool) {
		_ = yield("affiliates.ndjson", func(w io.Writer) error { return writeAffiliates(w, shop) }) &&
			yield("links.ndjson", func(w io.Writer) error { return writeLinks(w, shop) })
	}
}
