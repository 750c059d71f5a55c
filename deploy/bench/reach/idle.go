package reach

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/affleet/affleet/deploy/bench/swarm"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

var idle = row{
	name:  "idle",
	title: "an idle fleet of three real nodes",
	method: "One control plane, three nodes, etcd and NATS, each a process on both cores; nothing else goes on. A link is updated as " +
		"`affctl link update --wait` does, one after the other: from the call of the write to the answer of WaitForVersion, which comes with the " +
		"last node's acknowledgement; a node acknowledges when it serves.",
	run: func(ctx context.Context, r *runner) error {
		for range r.Rounds {
			if err := r.idleRound(ctx); err != nil {
				return err
			}
		}
		return nil
	},
}

func (r *runner) idleRound(ctx context.Context) error {
	s, err := r.open(3, false)
	if err != nil {
		return err
	}
	defer s.close()
	if err := r.floors(ctx, s); err != nil {
		return err
	}
	var whole, written []time.Duration
	for i := range r.some(1000, 50) {
		begin := time.Now()
		revision, err := s.update(ctx, edited(i%100))
		if err != nil {
			return err
		}
		written = append(written, time.Since(begin))
		if err := s.waitFor(ctx, revision, 3); err != nil {
			return err
		}
		whole = append(whole, time.Since(begin))
	}
	r.add("write to applied on 3 real nodes, acknowledged, p50", "ms", 5, ms(percentile(whole, 50)))
	r.add("write to applied on 3 real nodes, acknowledged, p99", "ms", 25, ms(percentile(whole, 99)))
	r.add("the write's own answer, p50", "ms", 0, ms(percentile(written, 50)))
	r.add("the write's own answer, p99", "ms", 0, ms(percentile(written, 99)))
	return nil
}

// edits makes every edit another one: a write that changes nothing has no
// revision of its own.
var edits atomic.Int64

// edited is one of the links that are written while something is measured.
func edited(which int) *linkv1.Link {
	return &linkv1.Link{
		Domain: "edit.example.com", Path: fmt.Sprintf("/edit-%d", which),
		Destination: fmt.Sprintf("https://store.com/product/%09d", edits.Add(1)),
	}
}

var curve = row{
	name:  "curve",
	title: "one write to many nodes",
	method: "The control plane and etcd on one core; three real nodes and the simulated ones on the other, with what writes. A link is updated, and the " +
		"next one when all nodes have it. \"Served\" is when the last simulated node has verified the frame and answered; \"acknowledged\" is the " +
		"answer of WaitForVersion over all nodes, in a pass of its own. CPU is the control plane's user and system time in the first pass " +
		"(statuses and heartbeats included), divided by writes and nodes. The floor of that, measured in turns with it, is a thread on the control plane's core that " +
		"does nothing but write 200 bytes to each socket and read the 60 that come back.",
	run: func(ctx context.Context, r *runner) error {
		s, err := r.open(3, true)
		if err != nil {
			return err
		}
		defer s.close()
		if err := r.floors(ctx, s); err != nil {
			return err
		}
		if _, err := s.update(ctx, edited(0)); err != nil {
			return err
		}
		nodes := swarm.New(s.ControlAddr[0])
		defer nodes.Close()
		for _, n := range slices.Sorted(slices.Values(r.Nodes)) {
			if err := nodes.Grow(ctx, n); err != nil {
				return err
			}
			for range r.Rounds {
				if err := r.curvePoint(ctx, s, nodes, n); err != nil {
					return err
				}
				if n != 2000 {
					continue
				}
				if err := r.sockets(n); err != nil {
					return err
				}
			}
		}
		return nil
	},
}

// curvePoint measures with so many nodes.
func (r *runner) curvePoint(ctx context.Context, s *stage, nodes *swarm.Swarm, n int) error {
	least := 100
	if n > 2000 { // where no p99 is a goal
		least = 50
	}
	writes := r.some(max(least, min(400, 100_000/n)), 20)
	if err := quiet(ctx, s, nodes, n); err != nil {
		return err
	}
	var served, acknowledged []time.Duration
	stop := r.profile(s, fmt.Sprintf("curve-%d", n))
	before := s.controlCPU()
	for i := range writes {
		begin := time.Now()
		revision, err := s.update(ctx, edited(i%100))
		if err != nil {
			return err
		}
		last, err := nodes.Wait(ctx, revision)
		if err != nil {
			return err
		}
		served = append(served, last.Sub(begin))
	}
	used := s.controlCPU() - before
	stop()
	stop = r.profile(s, fmt.Sprintf("curve-wait-%d", n))
	for i := range max(writes/2, min(writes, 100)) {
		begin := time.Now()
		revision, err := s.update(ctx, edited(i%100))
		if err == nil {
			err = s.waitFor(ctx, revision, n+3)
		}
		if err != nil {
			return err
		}
		acknowledged = append(acknowledged, time.Since(begin))
	}
	stop()
	var goal, goalCPU float64
	if n == 2000 {
		goal, goalCPU = 250, 25
	}
	perNode := float64(used.Microseconds()) / float64(writes) / float64(n+3)
	name := fmt.Sprintf("%d simulated nodes: ", n)
	r.add(name+"write to acknowledged by all, p99", "ms", goal, ms(percentile(acknowledged, 99)))
	r.add(name+"write to acknowledged by all, p50", "ms", 0, ms(percentile(acknowledged, 50)))
	r.add(name+"write to served by all, p99", "ms", 0, ms(percentile(served, 99)))
	r.add(name+"write to served by all, p50", "ms", 0, ms(percentile(served, 50)))
	r.add(name+"CPU of the control plane per write and node", "µs", goalCPU, perNode)
	r.section.addPoint(Point{Nodes: n, P50: ms(percentile(acknowledged, 50)), P99: ms(percentile(acknowledged, 99)), CPU: perNode})
	return nil
}

// quiet makes all nodes serve the head, so that what connecting has cost is
// over.
func quiet(ctx context.Context, s *stage, nodes *swarm.Swarm, n int) error {
	for i := range 5 {
		revision, err := s.update(ctx, edited(0))
		if err == nil {
			_, err = nodes.Wait(ctx, revision)
		}
		if err == nil && i == 4 {
			err = s.waitFor(ctx, revision, n+len(s.Nodes))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// percentile of unsorted samples, by the nearest rank; p is 0 to 100.
func percentile(samples []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func ms(d time.Duration) float64 { return math.Round(float64(d)/1e3) / 1e3 }
