package reach

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/affleet/affleet/deploy/bench/linkset"
	"github.com/affleet/affleet/deploy/bench/proc"
	"github.com/affleet/affleet/deploy/bench/swarm"
	"github.com/affleet/affleet/deploy/processes"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// nobody is an address where no control plane is.
const nobody = "127.0.0.1:1"

var million = row{
	name:  "million",
	title: "1,000,000 links",
	method: "Both cores for all. A new node: from the start of the process without data to /readyz, asked every 2 ms, and again with its own file and an address where no control plane is. Then 2,000 simulated nodes " +
		"connect, of which the first gets the snapshot, and 100 links are written one by one: memory is the control plane's resident set after that, and the most so far. " +
		"A core each for the servers and for what drives them would change no figure here but the ready times.",
	run: func(ctx context.Context, r *runner) error {
		s, err := r.open(0, false)
		if err != nil {
			return err
		}
		defer s.close()
		if err := s.load(ctx, r.some(1_000_000, 50_000)); err != nil {
			return err
		}
		now, _ := s.controlMemory()
		r.add("control-plane memory after the import", "MB", 0, now)
		if err := r.floors(ctx, s); err != nil {
			return err
		}
		for range r.Rounds {
			if err := r.newborn(ctx, s); err != nil {
				return err
			}
		}
		return r.crowded(ctx, s)
	},
}

// newborn measures a node without data, and then with its file.
func (r *runner) newborn(ctx context.Context, s *stage) error {
	dir, err := os.MkdirTemp(s.dir, "newborn-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fleet, err := processes.New(r.Bin, dir, 0, 1)
	if err != nil {
		return err
	}
	listen, admin := fleet.NodeAddr[0], fleet.NodeAdmin[0]
	born := func(control string) (*processes.Process, time.Duration, error) {
		begin := time.Now()
		p, err := processes.Start(dir, filepath.Join(r.Bin, "affnode"), "--control", control, "--nats", "nats://"+s.NATSAddr,
			"--listen", listen, "--admin", admin, "--node", "newborn", "--region", "r0", "--data-dir", "data")
		if err != nil {
			return nil, 0, err
		}
		for time.Since(begin) < processes.Patience {
			if processes.Get(admin, "/readyz").Status == http.StatusOK {
				return p, time.Since(begin), nil
			}
			time.Sleep(2 * time.Millisecond)
		}
		p.Kill()
		return nil, 0, fmt.Errorf("the node does not get ready:\n%s", p.Output())
	}
	stop := r.profile(s, "newborn")
	p, took, err := born(s.ControlAddr[0])
	stop()
	if err != nil {
		return err
	}
	r.add("a new node from the control plane to ready", "ms", 3000, ms(took))
	// When it is stopped, its file is whole.
	if code, err := p.Stop(); err != nil || code != 0 {
		return errors.Join(err, fmt.Errorf("the node ends with exit code %d:\n%s", code, p.Output()))
	}
	if p, took, err = born(nobody); err != nil {
		return err
	}
	p.Kill()
	r.add("a node from its own file to ready, no control plane", "ms", 1000, ms(took))
	return ctx.Err()
}

// crowded measures memory with many streams.
func (r *runner) crowded(ctx context.Context, s *stage) error {
	nodes := swarm.New(s.ControlAddr[0])
	defer nodes.Close()
	if err := nodes.Grow(ctx, r.some(2000, 100)); err != nil {
		return err
	}
	for i := range 100 {
		revision, err := s.update(ctx, edited(i))
		if err == nil {
			_, err = nodes.Wait(ctx, revision)
		}
		if err != nil {
			return err
		}
	}
	now, peak := s.controlMemory()
	r.add("control-plane memory with 2,000 streams", "MB", 1200, now)
	r.add("the same, at most so far", "MB", 0, peak)
	return nil
}

var imports = row{
	name:  "import",
	title: "an import of 1,000,000 links, with edits and take-downs during it",
	method: "One control plane, three nodes, etcd and NATS, each a process on both cores, all empty. The time is that of `affctl import ndjson FILE --wait`. Meanwhile, every 100 ms, " +
		"a link is updated, and its acknowledgement by all nodes waited for; and, every 250 ms, a link is disabled, and every node asked for it, every 2 ms, until none " +
		"redirects any more, from the call of the write; and, every 100 ms, a key is put into etcd, which is the floor of an edit. Without these the import is quicker. " +
		"CPU is user and system time during the import; both cores together have twice its time.",
	run: func(ctx context.Context, r *runner) error {
		for range r.Rounds {
			if err := r.importRound(ctx); err != nil {
				return err
			}
		}
		return nil
	},
}

func (r *runner) importRound(ctx context.Context) error {
	s, err := r.open(3, false)
	if err != nil {
		return err
	}
	defer s.close()
	if err := r.floors(ctx, s); err != nil {
		return err
	}
	affiliates, file := filepath.Join(s.dir, "affiliates.ndjson"), filepath.Join(s.dir, "import.ndjson")
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := errors.Join(set.WriteNDJSON(out, r.some(1_000_000, 50_000)), out.Close(), writeFile(affiliates, linkset.WriteAffiliates)); err != nil {
		return err
	}
	if text, code := s.Affctl(ctx, "import", "ndjson", affiliates); code != 0 {
		return fmt.Errorf("affctl import of affiliates: exit code %d\n%s", code, text)
	}
	down, err := s.prepare(ctx)
	if err != nil {
		return err
	}

	during, end := context.WithCancel(ctx)
	defer end()
	var edits, written, downs, puts []time.Duration
	var editing, taking, putting error
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { edits, written, editing = s.edit(during) })
	running.Go(func() { downs, taking = s.takeDown(during, down) })
	running.Go(func() { puts, putting = s.put(during) })
	before := s.used()
	stop := r.profile(s, "import")
	begin := time.Now()
	text, code := s.Affctl(ctx, "import", "ndjson", file, "--wait")
	took := time.Since(begin)
	after := s.used() // before the profiler has ended, which is a child too
	stop()
	end()
	running.Wait()
	if code != 0 {
		return fmt.Errorf("affctl import: exit code %d\n%s", code, text)
	}
	if err := errors.Join(editing, taking, putting); err != nil {
		return err
	}
	r.add("import of 1,000,000 links with --wait on 3 nodes", "ms", 40_000, ms(took))
	r.add("an edit during it, to served by all nodes, p99", "ms", 200, ms(percentile(edits, 99)))
	r.add("an edit during it, to served by all nodes, p50", "ms", 0, ms(percentile(edits, 50)))
	r.add("an edit during it, the write's own answer, p99", "ms", 0, ms(percentile(written, 99)))
	r.add("a take-down during it, to refused by all nodes, p99", "ms", 1000, ms(percentile(downs, 99)))
	r.add("a take-down during it, to refused by all nodes, p50", "ms", 0, ms(percentile(downs, 50)))
	r.add("floor: put in etcd during it, p99", "ms", 0, ms(percentile(puts, 99)))
	r.add("floor: put in etcd during it, p50", "ms", 0, ms(percentile(puts, 50)))
	for i, part := range parts {
		r.add("CPU of "+part, "s", 0, (after[i] - before[i]).Seconds())
	}
	r.add("edits and take-downs during it", "", 0, float64(len(edits)+len(downs)))
	_, peak := s.controlMemory()
	r.add("control-plane memory at most", "MB", 0, peak)
	return nil
}

// parts are what an import takes CPU of.
var parts = [...]string{"etcd", "the control plane", "the three nodes", "affctl"}

// used is what each of parts has used so far; of affctl, what has ended.
func (s *stage) used() (all [len(parts)]time.Duration) {
	all[0], _ = proc.CPU(s.Etcd.PID()) // as of controlCPU
	all[1] = s.controlCPU()
	for _, node := range s.Nodes {
		used, _ := proc.CPU(node.PID())
		all[2] += used
	}
	var ended unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_CHILDREN, &ended) // it cannot fail
	all[3] = time.Duration(ended.Utime.Nano() + ended.Stime.Nano())
	return all
}

// prepare writes links to be taken down.
func (s *stage) prepare(ctx context.Context) (links []*linkv1.Link, err error) {
	var revision int64
	for i := range 400 {
		l := &linkv1.Link{Domain: "*", Path: fmt.Sprintf("/down-%d", i), Destination: "https://store.com/down"}
		if revision, err = s.update(ctx, l); err != nil {
			return nil, err
		}
		links = append(links, l)
	}
	return links, s.waitFor(ctx, revision, len(s.Nodes))
}

// edit updates links until ctx ends: the time until all nodes serve each, and of
// the write's own answer. One that ctx cuts short does not count.
func (s *stage) edit(ctx context.Context) (served, written []time.Duration, err error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return served, written, nil
		case <-tick.C:
		}
		begin := time.Now()
		revision, err := s.update(ctx, edited(i%100))
		answered := time.Since(begin)
		if err == nil {
			err = s.waitFor(ctx, revision, len(s.Nodes))
		}
		if ctx.Err() != nil {
			return served, written, nil // that is how it ends
		}
		if err != nil {
			return nil, nil, fmt.Errorf("edit: %w", err)
		}
		served, written = append(served, time.Since(begin)), append(written, answered)
	}
}

// takeDown disables link after link until ctx ends: the time until no node
// redirects it.
func (s *stage) takeDown(ctx context.Context, links []*linkv1.Link) (took []time.Duration, err error) {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for _, l := range links {
		select {
		case <-ctx.Done():
			return took, nil
		case <-tick.C:
		}
		l.Disabled = true
		begin := time.Now()
		_, err := s.links.Update(ctx, &adminv1.UpdateRequest{Resource: resource(l)})
		if err == nil {
			err = s.refused(ctx, l)
		}
		if ctx.Err() != nil {
			return took, nil // that is how it ends
		}
		if err != nil {
			return nil, fmt.Errorf("take-down: %w", err)
		}
		took = append(took, time.Since(begin))
	}
	return took, nil
}

// refused waits until no node redirects a link.
func (s *stage) refused(ctx context.Context, l *linkv1.Link) error {
	left := slices.Clone(s.NodeAddr)
	for deadline := time.Now().Add(processes.Patience); ; time.Sleep(2 * time.Millisecond) {
		left = slices.DeleteFunc(left, func(addr string) bool {
			a := processes.Get(addr, l.GetPath())
			return a.Status != 0 && a.Location != l.GetDestination()
		})
		if len(left) == 0 || ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s still redirects %s", strings.Join(left, ", "), l.GetPath())
		}
	}
}
