package swarm

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	"github.com/affleet/affleet/proto/link"
)

// node is one stream, and opens it again when it ends.
type node struct {
	swarm *Swarm
	index int

	// Guarded by swarm.mu; state is changed by run alone.
	state     state
	reachedAt time.Time
	away      bool // stalled or disconnected
	log       []Reached

	wire    atomic.Pointer[wire]
	stop    atomic.Bool
	pause   sync.Mutex // held while the node is stalled
	greeted chan struct{}
	once    *sync.Once
	ended   chan struct{} // closed when run has returned

	snapshot *snapshot
}

// snapshot is one under way.
type snapshot struct {
	begin   *feedv1.SnapshotBegin
	sum     link.SetHash
	entries int64
}

// init readies the node for another run.
func (n *node) init() { n.once, n.ended = new(sync.Once), make(chan struct{}) }

func (n *node) disconnect() {
	n.stop.Store(true)
	if w := n.wire.Load(); w != nil {
		w.close(fmt.Errorf("disconnected"))
	}
}

// run keeps the node connected.
func (n *node) run() {
	defer close(n.ended)
	for n.swarm.ctx.Err() == nil && !n.stop.Load() {
		wait := rand.N(100 * time.Millisecond)
		if later := n.session(); later > 0 {
			wait = later + rand.N(later/2+1)
		}
		if n.stop.Load() {
			return
		}
		select {
		case <-n.swarm.ctx.Done():
		case <-time.After(wait):
		}
	}
}

// session is one stream. It gives the time after which the node is to come
// again, if the control plane has said one.
func (n *node) session() (later time.Duration) {
	w, err := dial(n.swarm.ctx, n.swarm.address, feedv1.FeedService_Subscribe_FullMethodName, n.whilePaused)
	if err != nil {
		return 0
	}
	n.wire.Store(w)
	defer w.close(fmt.Errorf("ended"))
	if n.stop.Load() { // it was not there yet
		return 0
	}
	n.snapshot = nil
	held := n.state
	hello := &feedv1.Hello{Node: fmt.Sprintf("sim-%d", n.index), Region: fmt.Sprintf("r%d", n.index%4), Boot: uint64(n.index), Build: "swarm", ListenAddress: "-"}
	if held != (state{}) {
		hello.Version, hello.SetHash = held.version(), held.setHash()
	}
	if err := w.send(mustMarshal(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: hello}})); err != nil {
		return 0
	}
	var message []byte
	for {
		if message, err = w.receive(message); err != nil {
			return 0
		}
		n.swarm.bytes.Add(int64(len(message)))
		into := int64(0)
		if n.snapshot != nil {
			into = n.snapshot.begin.GetVersion().GetRevision()
		}
		verdict := n.swarm.ledger.judge(n.state, into, message)
		if verdict.later != nil {
			return *verdict.later
		}
		if err := n.take(w, verdict); err != nil {
			n.swarm.fail(fmt.Errorf("node %d: %w", n.index, err))
			return 0
		}
	}
}

// whilePaused returns when the node is not stalled.
func (n *node) whilePaused() {
	n.pause.Lock()
	defer n.pause.Unlock()
}

// take acts on a message. An error is one that must not happen.
func (n *node) take(w *wire, v *verdict) error {
	var answer []byte
	switch s := n.snapshot; {
	case v.err != nil:
		return v.err
	case v.behind != nil:
		return nil // the stream ends, and the node comes again
	case v.applied != nil:
		n.swarm.deltas.Add(1)
		n.swarm.reached(n, v.after)
		answer = v.applied
	case v.takeDown != nil:
		n.swarm.takeDowns.Add(1)
		answer = v.takeDown
	case v.begin != nil:
		if v.begin.GetVersion().GetRevision() < n.state.revision {
			return fmt.Errorf("a snapshot of revision %d for a node at %d", v.begin.GetVersion().GetRevision(), n.state.revision)
		}
		n.snapshot = &snapshot{begin: v.begin}
	case v.chunk != nil && s != nil:
		s.sum, s.entries = s.sum.Add(v.chunk.sum), s.entries+v.chunk.entries
	case v.end != nil && s != nil:
		n.snapshot = nil
		after := stateOf(v.end.GetVersion(), v.end.GetSetHash())
		if s.sum != after.hash || s.entries != v.end.GetEntries() {
			return fmt.Errorf("a snapshot of revision %d does not verify", after.revision)
		}
		n.swarm.snapshots.Add(1)
		n.swarm.reached(n, after)
		answer = appliedMessage(after, s.entries)
	case v.chunk != nil || v.end != nil:
		return fmt.Errorf("a part of a snapshot that did not begin")
	}
	if n.state.epoch != 0 {
		n.once.Do(func() { close(n.greeted) })
	}
	if answer != nil {
		_ = w.send(answer) // receiving says what is wrong
	}
	return nil
}

// sayStatus says the node's status, if it is connected and not stalled.
func (n *node) sayStatus() {
	w := n.wire.Load()
	n.swarm.mu.Lock()
	held, away := n.state, n.away
	n.swarm.mu.Unlock()
	if w == nil || away || held.epoch == 0 {
		return
	}
	_ = w.send(mustMarshal(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Status{
		Status: &feedv1.Status{Version: held.version(), SetHash: held.setHash()},
	}}))
}
