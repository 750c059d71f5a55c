package controlplane

import (
	"context"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/controlplane/internal/snapshot"
)

const (
	// paceEach is the time between two rounds of a busy feed, for each stream: a
	// frame and its answer cost a third of it, and the rest is left for writes.
	paceEach = 75 * time.Microsecond
	// minPace is the least time between two rounds of a busy feed.
	minPace = 10 * time.Millisecond
	// bulkPace is the same after a large round: a node copies what it shares with
	// the state before, once for each frame.
	bulkPace = 30 * time.Millisecond
	// How many revisions since the last round make a feed busy, and about how
	// many bytes of them: an import comes in large ones.
	busyRevisions = 2
	busyBytes     = 16 << 10
	// chunk is how many streams are served before what that has woken runs, and
	// what answers have woken: it finds in the cache what has just been there.
	chunk = 16
	// Where others have so much to do that this takes longer than busyTurn, the
	// rest of a round goes on without, and less often lets others run at all.
	busyTurn  = 4 * time.Millisecond
	busyChunk = 64
	// A send that does not wait for its node may take so many turns of guard.
	stuckTurns = 20
	guardTurn  = 50 * time.Millisecond
)

// fanout tells streams of what is new. One goroutine serves all that have nothing
// under way, round by round, rather than one of each stream's that it wakes.
//
// A change is sent at once. When several have come since the last round, or a
// large one, the feed is busy: rounds then keep a distance that grows with the number of
// streams, changes coalesce in between, and a node gets no other frame before
// the next round. Take-downs wait for none.
//
// join, leave and busy may be used from any goroutine.
type fanout struct {
	log       *snapshot.Log
	heartbeat time.Duration
	guardTurn time.Duration
	busy      atomic.Bool // what is acknowledged is followed by the next round

	mu      sync.Mutex
	streams map[*subscription]struct{}

	// Of run.
	queue    func()                       // lets others run
	all      []*subscription              // of a round
	at       atomic.Pointer[subscription] // where it is; nil: between two
	steps    atomic.Uint64                // that were made
	last     time.Time                    // when the last one began
	bulk     bool                         // it was a large one
	head     snapshot.Version             // that it told of
	released int64                        // likewise
	down     *snapshot.TakeDown           // likewise
	beat     heartbeat
}

// heartbeat is one, encoded.
type heartbeat struct {
	head    snapshot.Version
	message rawMessage
}

func newFanout(log *snapshot.Log, every time.Duration) *fanout {
	return &fanout{log: log, heartbeat: every, guardTurn: guardTurn, streams: make(map[*subscription]struct{})}
}

// join adds a stream. It is to be served after that, for a change before.
func (f *fanout) join(s *subscription) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams[s] = struct{}{}
}

func (f *fanout) leave(s *subscription) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.streams, s)
}

// run serves the streams until ctx ends. It waits for:
//
//   - something else to send;
//   - the next round, in a busy feed;
//   - a take-down;
//   - the time to look which streams are due for a heartbeat.
func (f *fanout) run(ctx context.Context) {
	var guarding sync.WaitGroup
	defer guarding.Wait()
	guarding.Go(func() { f.guard(ctx) })
	var end func()
	f.queue, end = newQueue()
	defer end()
	beats := time.NewTicker(max(f.heartbeat/8, time.Millisecond))
	defer beats.Stop()
	f.head = f.log.Head() // what is older is no news: each stream begins with a look of its own
	round := time.NewTimer(time.Hour)
	defer round.Stop()
	for ctx.Err() == nil {
		view := f.log.View()
		changed := view.Changed()
		if wait := f.turn(view); wait > 0 {
			changed = nil
			round.Reset(wait)
		}
		if down := view.LastTakeDown(); down != f.down {
			f.down = down
			f.each((*subscription).takesDown)
		}
		select {
		case <-changed:
		case <-round.C:
		case <-view.Downed():
		case now := <-beats.C:
			m := f.heartbeatOf(view.Head())
			f.each(func(s *subscription) { s.beats(now, m) })
		case <-ctx.Done():
		}
	}
}

// turn makes a round if it is time for one. Otherwise it gives the time until
// then; 0: there is nothing to tell.
func (f *fanout) turn(view *snapshot.View) (wait time.Duration) {
	head, released := view.Head(), view.Released()
	if head == f.head && released == f.released && !f.busy.Load() {
		return 0
	}
	revisions, bytes := view.Since(f.head)
	busy := revisions >= busyRevisions || bytes >= busyBytes
	if now := time.Now(); busy || f.busy.Load() {
		if wait := f.last.Add(f.pace()).Sub(now); wait > 0 {
			// What is acknowledged waits for that, too.
			f.busy.Store(true)
			return wait
		}
	}
	// Before the streams are looked at: who finds that the feed is busy, and
	// leaves its stream to the next round, comes before that.
	f.busy.Store(busy)
	f.bulk = bytes >= busyBytes
	f.last, f.head, f.released, f.down = time.Now(), head, released, view.LastTakeDown()
	f.each(func(s *subscription) { s.serve(f.last) })
	if busy {
		return f.pace()
	}
	return 0
}

// pace is the time between two rounds of a busy feed.
func (f *fanout) pace() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	least := minPace
	if f.bulk {
		least = bulkPace
	}
	return max(time.Duration(len(f.streams))*paceEach, least)
}

// heartbeatOf gives a heartbeat with a head.
func (f *fanout) heartbeatOf(head snapshot.Version) rawMessage {
	if f.beat.message == nil || f.beat.head != head {
		f.beat = heartbeat{head, encodeHeartbeat(head, f.heartbeat)}
	}
	return f.beat.message
}

// each does something with every stream.
func (f *fanout) each(do func(s *subscription)) {
	f.mu.Lock()
	f.all = slices.AppendSeq(f.all[:0], maps.Keys(f.streams))
	f.mu.Unlock()
	crowded := false
	for i, s := range f.all {
		f.steps.Add(1)
		f.at.Store(s)
		do(s)
		f.at.Store(nil)
		switch n := i + 1; {
		case !crowded && n%chunk == 0:
			begin := time.Now()
			f.queue()
			crowded = time.Since(begin) > busyTurn
		case n%busyChunk == 0:
			runtime.Gosched()
		}
	}
	clear(f.all)
}

// guard ends, until ctx ends, a stream in whose send a round gets stuck: its node
// has answered what it cannot have read.
//
// Its own turns tell, and not the time: where a process gets little of its machine,
// a round may stand still for seconds in a send that waits for nobody. At each turn
// guard lets all others go first, so that a round that can go on does.
func (f *fanout) guard(ctx context.Context) {
	tick := time.NewTicker(f.guardTurn)
	defer tick.Stop()
	var was uint64
	turns := 0 // in a row that found the same step
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		runtime.Gosched()                        // whom a timer wakes goes before all others
		at, steps := f.at.Load(), f.steps.Load() // in this order: at is of this step
		if turns++; at == nil || steps != was {
			turns = 0
		}
		if was = steps; turns == stuckTurns {
			at.fail(status.Error(codes.Aborted, "the stream is full, and the node has answered all that is in it"))
		}
	}
}
