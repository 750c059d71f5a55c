package controlplane

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/affleet/affleet/controlplane/internal/snapshot"
)

// counts are what schedules have tried.
type counts struct{ applied, rejected, takeDowns, held int }

// schedule is a store, replicas and nodes, and what happens to them.
type schedule struct {
	*timeline
	fail func(format string, args ...any)

	world    sync.Mutex
	healed   bool
	replicas []*runningReplica // nil: it is down
	sources  []*source
	tried    counts
	running  sync.WaitGroup
}

// runningReplica is a log and a feed.
type runningReplica struct {
	ctx  context.Context
	stop context.CancelFunc
	log  *snapshot.Log
	feed *feed
}

func (s *schedule) isHealed() bool {
	s.world.Lock()
	defer s.world.Unlock()
	return s.healed
}

func (s *schedule) count(f func(*counts)) {
	s.world.Lock()
	defer s.world.Unlock()
	f(&s.tried)
}

// replica gives one that serves, or nil.
func (s *schedule) replica(i int) *runningReplica {
	s.world.Lock()
	defer s.world.Unlock()
	return s.replicas[i]
}

// boot starts a replica.
func (s *schedule) boot(i int) {
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	src := s.sources[i]
	r := new(runningReplica)
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.log = snapshot.New(src, snapshot.Config{
		LogBytes: int64(2<<10 + s.draw(20<<10)), MaxDelta: int64(256 + s.draw(4<<10)), ChunkBytes: 300,
		Guard: snapshot.Guard{Floor: 8, Window: 30 * time.Millisecond}, AuditInterval: 200 * time.Millisecond,
		MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond, Progress: src.ask, ProgressInterval: 10 * time.Millisecond, Logger: quiet,
	})
	f := newFleet(r.log, fleetConfig{Replica: "r" + strconv.Itoa(i), Logger: quiet})
	r.feed = newFeed(r.log, f, feedConfig{
		Logger: quiet, Heartbeat: 20 * time.Millisecond, CatchUp: 5 * time.Millisecond, RetryRejected: 5 * time.Millisecond,
		Snapshots: 1, SnapshotTime: 50 * time.Millisecond, MaxUnread: []int{1, 150, 1000, 0}[s.draw(4)],
	})
	s.running.Go(func() {
		if err := r.log.Run(r.ctx); err != nil {
			s.fail("replica %d: %v", i, err)
		}
	})
	s.running.Go(func() { r.feed.run(r.ctx) })
	s.world.Lock()
	defer s.world.Unlock()
	s.replicas[i] = r
}

// kill ends a replica, and all its streams.
func (s *schedule) kill(i int) {
	s.world.Lock()
	defer s.world.Unlock()
	if r := s.replicas[i]; r != nil {
		r.stop()
		s.replicas[i] = nil
	}
}

// step does something to the store, a replica or a node.
func (s *schedule) step(nodes []*modelNode) {
	i, n := s.draw(len(s.replicas)), nodes[s.draw(len(nodes))]
	src := s.sources[i]
	switch s.draw(20) {
	case 0, 1, 2, 3, 4:
		s.write(false)
	case 5, 6:
		s.write(true)
	case 7:
		s.free()
	case 8:
		s.change(func() { s.compacted = s.revision })
	case 9:
		s.change(func() { src.broken = true })
	case 10, 11:
		s.change(func() { src.broken = false })
	case 12:
		s.change(func() { src.limit = s.revision })
	case 13:
		s.change(func() { src.limit = 0 })
	case 14:
		s.kill(i)
	case 15, 16:
		if s.replica(i) == nil {
			s.boot(i)
		}
	case 17:
		n.disconnect()
	case 18:
		n.save()
	case 19:
		n.crash()
	}
}

// heal ends all that is bad.
func (s *schedule) heal() {
	s.world.Lock()
	s.healed = true
	s.world.Unlock()
	for i, src := range s.sources {
		s.change(func() { src.broken, src.limit = false, 0 })
		if s.replica(i) == nil {
			s.boot(i)
		}
	}
	// A node that has rejected a snapshot is left alone until there is a newer
	// version.
	s.write(false)
}

// holding says whether a replica holds something back.
func (s *schedule) holding() bool {
	for i := range s.replicas {
		if r := s.replica(i); r != nil && r.log.View().Hold() != nil {
			return true
		}
	}
	return false
}

// until waits until all is well with every node.
func (s *schedule) until(t *testing.T, seed uint64, well func(*modelNode) error, nodes []*modelNode) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		var all []error
		for _, n := range nodes {
			all = append(all, well(n))
		}
		err := errors.Join(all...)
		if err == nil {
			return
		}
		if time.Since(begin) > 10*time.Minute {
			t.Fatalf("seed %d: nothing bad happens for ten minutes, and %v", seed, err)
		}
	}
}

func runSchedule(t *testing.T, seed uint64, tried *counts) {
	s := &schedule{
		timeline: newTimeline(seed), replicas: make([]*runningReplica, 2),
		fail: func(format string, args ...any) { t.Errorf("seed %d: "+format, append([]any{seed}, args...)...) },
	}
	for i := range s.replicas {
		s.sources = append(s.sources, &source{timeline: s.timeline})
		s.boot(i)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var nodes []*modelNode
	for _, name := range []string{"a", "b", "c"} {
		n := &modelNode{schedule: s, name: name, entries: map[string]string{}}
		nodes = append(nodes, n)
		s.running.Go(func() { n.run(ctx) })
	}
	defer func() {
		cancel()
		for i := range s.replicas {
			s.kill(i)
		}
		s.running.Wait()
	}()
	for range 60 {
		s.step(nodes)
		time.Sleep(time.Duration(s.draw(10)) * time.Millisecond)
		if s.holding() {
			s.count(func(c *counts) { c.held++ })
		}
	}
	s.heal()
	// What is taken down is gone everywhere, held back or not.
	s.until(t, seed, (*modelNode).untold, nodes)
	// What is written last is live everywhere once an operator has released what
	// is held back.
	s.until(t, seed, func(n *modelNode) error {
		if s.holding() {
			s.free()
		}
		return n.differs()
	}, nodes)
	s.world.Lock()
	defer s.world.Unlock()
	tried.applied += s.tried.applied
	tried.rejected += s.tried.rejected
	tried.takeDowns += s.tried.takeDowns
	tried.held += s.tried.held
}

func TestReplicasKeepTheirPromisesUnderAnySchedule(t *testing.T) {
	count := uint64(200)
	if text := os.Getenv("AFF_SCHEDULES"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("AFF_SCHEDULES: %q is not a number", text)
		}
		count = n
	}
	var tried counts
	for seed := uint64(1); seed <= count && !t.Failed(); seed++ {
		synctest.Test(t, func(t *testing.T) { runSchedule(t, seed, &tried) })
	}
	t.Logf("%d schedules: %+v", count, tried)
	if !t.Failed() && min(tried.applied, tried.rejected, tried.takeDowns, tried.held) == 0 {
		t.Error("the schedules leave out what they are to try")
	}
}
