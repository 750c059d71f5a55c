package reach

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/deploy/bench/swarm"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

var stalled = row{
	name:  "stalled",
	title: "200 of 2,000 nodes stopped, 1,000 writes a second offered",
	method: "Cores as above. Writes are offered at 1,000 a second for 10 s by 32 writers, whether or not the nodes keep up; how many were acknowledged is among the figures. A stalled node does not read " +
		"its socket: a frame of 150 kB fills the stream's window first (it is sent in both runs). The time is from the acknowledgement of each write until each of the other " +
		"nodes serves it; changes coalesce while a frame is under way. Both runs take turns in one fleet.",
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
		n := r.some(2000, 200)
		if err := nodes.Grow(ctx, n); err != nil {
			return err
		}
		if _, err := r.pressed(ctx, s, nodes, 0); err != nil { // what is first takes longer
			return err
		}
		for range r.Rounds {
			if err := r.stalledRound(ctx, s, nodes, n); err != nil {
				return err
			}
		}
		return nil
	},
}

func (r *runner) stalledRound(ctx context.Context, s *stage, nodes *swarm.Swarm, n int) error {
	all, err := r.pressed(ctx, s, nodes, 0)
	if err != nil {
		return err
	}
	stop := r.profile(s, "stalled")
	some, err := r.pressed(ctx, s, nodes, n/10)
	stop()
	if err != nil {
		return err
	}
	r.add("p99 of the others, to the run without stalled nodes", "×", 1.1, some.p99/all.p99)
	r.add("write to served, p99, nobody stalled", "ms", 0, all.p99)
	r.add("write to served, p99, a tenth stalled", "ms", 0, some.p99)
	r.add("write to served, p50, nobody stalled", "ms", 0, all.p50)
	r.add("write to served, p50, a tenth stalled", "ms", 0, some.p50)
	r.add("writes that were acknowledged, nobody stalled", "/s", 0, all.rate)
	r.add("writes that were acknowledged, a tenth stalled", "/s", 0, some.rate)
	r.add("the write's own answer, p99, a tenth stalled", "ms", 0, some.written)
	r.add("control-plane memory at most, nobody stalled", "MB", 0, all.memory)
	r.add("control-plane memory at most, a tenth stalled", "MB", 0, some.memory)
	return nil
}

// pressure is what a run under load gives.
type pressure struct {
	p50, p99, written float64 // ms
	rate              float64 // writes per second
	memory            float64 // MB
}

// pressed writes for a while with some nodes stalled.
func (r *runner) pressed(ctx context.Context, s *stage, nodes *swarm.Swarm, stall int) (*pressure, error) {
	nodes.Stall(stall)
	back := sync.OnceFunc(func() { nodes.Resume(stall) })
	defer back()
	revision, err := s.wide(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := nodes.Wait(ctx, revision); err != nil {
		return nil, err
	}
	sampling, stop := context.WithCancel(ctx)
	defer stop()
	var sampler sync.WaitGroup
	p := new(pressure)
	sampler.Go(func() { p.memory = s.mostMemory(sampling) })

	nodes.Record()
	begin := time.Now()
	done, err := s.offer(ctx, 1000, time.Duration(r.some(10, 1))*time.Second)
	if err != nil {
		return nil, err
	}
	p.rate = float64(len(done)) / time.Since(begin).Seconds()
	last := slices.MaxFunc(done, func(a, b write) int { return int(a.revision - b.revision) })
	if _, err := nodes.Wait(ctx, last.revision); err != nil {
		return nil, err
	}
	logs := nodes.Recorded()
	stop()
	sampler.Wait()
	p.p50, p.p99 = spread(done, logs)
	var took []time.Duration
	for _, w := range done {
		took = append(took, w.took)
	}
	p.written = ms(percentile(took, 99))
	back()
	_, err = nodes.Wait(ctx, last.revision) // the stalled ones too
	return p, err
}

// wide makes one revision of 150 kB.
func (s *stage) wide(ctx context.Context) (int64, error) {
	req := new(adminv1.BatchWriteRequest)
	for i := range 90 {
		l := &linkv1.Link{Domain: "wide.example.com", Path: fmt.Sprintf("/%d", i), Destination: fmt.Sprintf("https://store.com/%d/%s", time.Now().UnixNano(), strings.Repeat("x", 1700))}
		req.Writes = append(req.Writes, &adminv1.Write{Verb: &adminv1.Write_Update{
			Update: &adminv1.UpdateRequest{Resource: resource(l), AllowMissing: true},
		}})
	}
	w, err := s.links.BatchWrite(ctx, req)
	return w.GetVersion().GetRevision(), err
}

// mostMemory is the most memory of the control plane until ctx ends, in MB.
func (s *stage) mostMemory(ctx context.Context) (most float64) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		now, _ := s.controlMemory()
		most = max(most, now)
		select {
		case <-ctx.Done():
			return most
		case <-tick.C:
		}
	}
}

// write is one that was acknowledged.
type write struct {
	revision     int64
	acknowledged time.Time
	took         time.Duration
}

// offer writes links at a rate for a time.
func (s *stage) offer(ctx context.Context, rate int, lasts time.Duration) ([]write, error) {
	const writers = 32
	total := int64(float64(rate) * lasts.Seconds())
	begin := time.Now()
	var next atomic.Int64
	var mu sync.Mutex
	var done []write
	var failed error
	var running sync.WaitGroup
	for range writers {
		running.Go(func() {
			for i := next.Add(1) - 1; i < total; i = next.Add(1) - 1 {
				time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / time.Duration(rate))))
				start := time.Now()
				// Writers keep off each other's links: that is not what is measured.
				revision, err := s.update(ctx, edited(int(i)%1000))
				now := time.Now()
				mu.Lock()
				done = append(done, write{revision, now, now.Sub(start)})
				failed = errors.Join(failed, err)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	running.Wait()
	return done, failed
}

// spread gives the median and the p99 over all writes and nodes of the time from
// a write's acknowledgement until the node served it, in ms.
func spread(writes []write, logs [][]swarm.Reached) (p50, p99 float64) {
	writes = slices.Clone(writes)
	slices.SortFunc(writes, func(a, b write) int { return int(a.revision - b.revision) })
	const step, steps = 20 * time.Microsecond, 1 << 20
	counts, total := make([]int, steps), 0
	for _, log := range logs {
		at := 0
		for _, w := range writes {
			for at < len(log) && log[at].Revision < w.revision {
				at++
			}
			if at == len(log) {
				break
			}
			// A node may have it before the writer hears.
			counts[min(max(log[at].At.Sub(w.acknowledged), 0)/step, steps-1)]++
			total++
		}
	}
	rank := func(share float64) float64 {
		left := int(share * float64(total))
		for i, n := range counts {
			if left -= n; left <= 0 {
				return ms(time.Duration(i+1) * step)
			}
		}
		return math.NaN()
	}
	return rank(0.5), rank(0.99)
}

var reconnect = row{
	name:  "reconnect",
	title: "1,000 nodes come back after 10,000 changes",
	method: "Cores as above, 100,000 links. 1,000 streams end; 10,000 writes of single links change 5,000 of them, twice each; the streams come back at once, each naming what it " +
		"holds. The bytes are those of all messages that the nodes receive until the last one is at the head, against a Delta of the 5,000 links as they now are, for each node.",
	run: func(ctx context.Context, r *runner) error {
		s, err := r.open(3, true)
		if err != nil {
			return err
		}
		defer s.close()
		if err := s.load(ctx, r.some(100_000, 10_000)); err != nil {
			return err
		}
		if err := r.floors(ctx, s); err != nil {
			return err
		}
		nodes := swarm.New(s.ControlAddr[0])
		defer nodes.Close()
		if err := nodes.Grow(ctx, r.some(1000, 100)+1); err != nil {
			return err
		}
		for range r.Rounds {
			if err := r.reconnectRound(ctx, s, nodes); err != nil {
				return err
			}
		}
		return nil
	},
}

func (r *runner) reconnectRound(ctx context.Context, s *stage, nodes *swarm.Swarm) error {
	n := nodes.Nodes() - 1 // one stays, and sees what the others miss
	nodes.Disconnect(n)
	distinct := r.some(5000, 500)
	head, err := s.change(ctx, distinct, 2)
	if err != nil {
		return err
	}
	if _, err := nodes.Wait(ctx, head); err != nil {
		return err
	}
	var missed feedv1.Delta
	for i := range distinct {
		l := set.Link(i)
		l.Destination = changed(i, 1)
		value, err := proto.MarshalOptions{Deterministic: true}.Marshal(resource(l))
		if err != nil {
			return err
		}
		missed.Puts = append(missed.Puts, &feedv1.Entry{Key: "links/" + l.GetDomain() + l.GetPath(), Value: value})
	}
	before := nodes.Counts()
	stop := r.profile(s, "reconnect")
	used, begin := s.controlCPU(), time.Now()
	if err := nodes.Reconnect(ctx, n); err != nil {
		return err
	}
	last, err := nodes.Wait(ctx, head)
	if err != nil {
		return err
	}
	used = s.controlCPU() - used
	stop()
	after := nodes.Counts()
	perNode := float64(after.Bytes-before.Bytes) / float64(n)
	r.add("bytes to each node, to the coalesced change", "×", 1.3, perNode/float64(proto.Size(&missed)))
	r.add("full snapshots", "", 0, float64(after.Snapshots-before.Snapshots))
	r.add("bytes to each node", "kB", 0, perNode/1000)
	r.add("first stream opened to the last node at the head", "ms", 0, ms(last.Sub(begin)))
	r.add("CPU of the control plane", "ms", 0, ms(used))
	return nil
}

// changed is where a link leads after a change; every one has the same length.
func changed(i, round int) string {
	return fmt.Sprintf("https://store.com/changed/%d/%06d", round, i)
}

// change updates links of the set one by one, several times, and gives the last
// revision.
func (s *stage) change(ctx context.Context, distinct, times int) (int64, error) {
	var head atomic.Int64
	for round := range times {
		const writers = 16
		var running sync.WaitGroup
		errs := make([]error, writers)
		for w := range writers {
			running.Go(func() {
				for i := w; i < distinct; i += writers {
					l := set.Link(i)
					l.Destination = changed(i, round)
					if round == 0 { // so that no write of a later measurement is one that changes nothing
						l.Destination = fmt.Sprintf("https://store.com/passing/%d", time.Now().UnixNano())
					}
					revision, err := s.update(ctx, l)
					if err != nil {
						errs[w] = err
						return
					}
					for old := head.Load(); revision > old && !head.CompareAndSwap(old, revision); old = head.Load() {
					}
				}
			})
		}
		running.Wait()
		if err := errors.Join(errs...); err != nil {
			return 0, err
		}
	}
	return head.Load(), nil
}
