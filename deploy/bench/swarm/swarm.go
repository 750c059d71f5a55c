// Package swarm is thousands of nodes in one process, for measuring a control
// plane: each is a gRPC stream over a connection of its own, verifies the set
// hash of every frame before it acknowledges it, and says its status as affnode
// does. What it does not have is a table, a listener and clicks. It is for
// benchmarks only.
//
// A Swarm's methods may be called from any goroutine, but Grow, Stall and
// Disconnect only one at a time.
package swarm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// statusInterval is that of affnode.
const statusInterval = 5 * time.Second

// Swarm is a number of nodes.
type Swarm struct {
	address string
	ledger  *ledger
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	nodes   []*node
	newest  state // of any node: what new nodes begin with
	waiters []*waiter
	failed  error
	log     bool

	bytes, snapshots, deltas, takeDowns atomic.Int64
}

// Counts are what the nodes have received so far.
type Counts struct {
	Bytes                        int64 // of messages
	Snapshots, Deltas, TakeDowns int64
}

// Reached is a node's arrival at a revision.
type Reached struct {
	Revision int64
	At       time.Time
}

// New makes a swarm without nodes at a replica's address. Close ends it.
func New(address string) *Swarm {
	s := &Swarm{address: address, ledger: newLedger()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.running.Go(s.report)
	return s
}

// Close ends all nodes.
func (s *Swarm) Close() {
	s.cancel()
	for _, n := range s.nodes {
		n.disconnect()
	}
	s.running.Wait()
}

// Counts gives what was received so far.
func (s *Swarm) Counts() Counts {
	return Counts{s.bytes.Load(), s.snapshots.Load(), s.deltas.Load(), s.takeDowns.Load()}
}

// Nodes is how many there are.
func (s *Swarm) Nodes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.nodes)
}

// Grow makes nodes until there are so many, and waits until all of them are
// connected and serve what the swarm serves. The first one gets a snapshot; the
// others begin with the state of the first ones, as nodes that were restarted
// with their file do.
func (s *Swarm) Grow(ctx context.Context, to int) error {
	if len(s.nodes) == 0 && to > 0 {
		if err := s.add(ctx, 1); err != nil {
			return err
		}
	}
	const atOnce = 50
	for len(s.nodes) < to {
		if err := s.add(ctx, min(atOnce, to-len(s.nodes))); err != nil {
			return err
		}
	}
	return nil
}

func (s *Swarm) add(ctx context.Context, count int) error {
	s.mu.Lock()
	var fresh []*node
	for range count {
		n := &node{swarm: s, index: len(s.nodes), state: s.newest}
		n.init()
		s.nodes = append(s.nodes, n)
		fresh = append(fresh, n)
	}
	s.mu.Unlock()
	return s.start(ctx, fresh)
}

// start connects nodes and waits until each is greeted.
func (s *Swarm) start(ctx context.Context, nodes []*node) error {
	for _, n := range nodes {
		n.greeted = make(chan struct{})
		n.stop.Store(false)
		s.running.Go(n.run)
	}
	for _, n := range nodes {
		select {
		case <-n.greeted:
		case <-ctx.Done():
			return fmt.Errorf("node %d is not connected: %w", n.index, errors.Join(ctx.Err(), s.Err()))
		}
	}
	return s.Err()
}

// Err is what no node ever comes across when the control plane is right: a frame
// that does not verify, or one that leads back.
func (s *Swarm) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *Swarm) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = err
	}
	for _, w := range s.waiters {
		close(w.done)
	}
	s.waiters = nil
}

// waiter waits until nodes have reached a revision.
type waiter struct {
	revision int64
	missing  int
	at       time.Time // when the last one had
	done     chan struct{}
}

// Wait waits until all nodes that are not stalled or disconnected serve a
// revision, and says when the last one did.
func (s *Swarm) Wait(ctx context.Context, revision int64) (time.Time, error) {
	s.mu.Lock()
	w := &waiter{revision: revision, done: make(chan struct{})}
	for _, n := range s.nodes {
		if !n.away && n.state.revision < revision {
			w.missing++
		}
		if n.reachedAt.After(w.at) {
			w.at = n.reachedAt
		}
	}
	if w.missing == 0 {
		s.mu.Unlock()
		return w.at, nil
	}
	s.waiters = append(s.waiters, w)
	s.mu.Unlock()
	select {
	case <-w.done:
		if err := s.Err(); err != nil {
			return time.Time{}, err
		}
		return w.at, nil
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("%d nodes do not reach revision %d: %w", w.missing, revision, errors.Join(ctx.Err(), s.Err()))
	}
}

// reached notes that a node serves another state.
func (s *Swarm) reached(n *node, to state) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	before := n.state.revision
	n.state, n.reachedAt = to, now
	if to.revision > s.newest.revision {
		s.newest = to
	}
	if s.log {
		n.log = append(n.log, Reached{to.revision, now})
	}
	kept := s.waiters[:0]
	for _, w := range s.waiters {
		if !n.away && before < w.revision && to.revision >= w.revision {
			if w.missing--; w.missing == 0 {
				w.at = now
				close(w.done)
				continue
			}
		}
		kept = append(kept, w)
	}
	s.waiters = kept
}

// Record makes every node note when it reaches which revision, from now on.
func (s *Swarm) Record() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = true
	for _, n := range s.nodes {
		n.log = nil
	}
}

// Recorded ends that, and gives what the nodes that are neither stalled nor
// disconnected have noted, in order.
func (s *Swarm) Recorded() (logs [][]Reached) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = false
	for _, n := range s.nodes {
		if !n.away {
			logs = append(logs, n.log)
		}
		n.log = nil
	}
	return logs
}

// Stall makes the last count nodes stop reading, as a process that is stopped
// does: what is sent to them fills their windows.
func (s *Swarm) Stall(count int) {
	for _, n := range s.last(count) {
		s.mu.Lock()
		n.away = true
		s.mu.Unlock()
		n.pause.Lock()
	}
}

// Resume makes them read again.
func (s *Swarm) Resume(count int) {
	for _, n := range s.last(count) {
		n.pause.Unlock()
		s.mu.Lock()
		n.away = false
		s.mu.Unlock()
	}
}

// Disconnect ends the streams of the last count nodes. They keep their state.
func (s *Swarm) Disconnect(count int) {
	for _, n := range s.last(count) {
		s.mu.Lock()
		n.away = true
		s.mu.Unlock()
		n.disconnect()
		<-n.ended
	}
}

// Reconnect connects them again.
func (s *Swarm) Reconnect(ctx context.Context, count int) error {
	nodes := s.last(count)
	for _, n := range nodes {
		s.mu.Lock()
		n.away = false
		s.mu.Unlock()
		n.init()
	}
	return s.start(ctx, nodes)
}

func (s *Swarm) last(count int) []*node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[len(s.nodes)-min(count, len(s.nodes)):]
}

// report says every node's status, spread over the interval.
func (s *Swarm) report() {
	const slices = 50
	tick := time.NewTicker(statusInterval / slices)
	defer tick.Stop()
	for turn := 0; ; turn++ {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		nodes := s.nodes
		s.mu.Unlock()
		for i := turn % slices; i < len(nodes); i += slices {
			nodes[i].sayStatus()
		}
	}
}
