package controlplane

import (
	"context"
	"io"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/controlplane/internal/snapshot"
	"github.com/affleet/affleet/controlplane/internal/store"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// fakeReplica is a log and a feed over a timeline, in a synctest bubble.
type fakeReplica struct {
	t *testing.T
	*timeline
	feed *feed
	ctx  context.Context
}

func startFake(t *testing.T, cfg feedConfig) *fakeReplica {
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	r := &fakeReplica{t: t, timeline: newTimeline(1)}
	log := snapshot.New(&source{timeline: r.timeline}, snapshot.Config{AuditInterval: -1, Logger: quiet})
	cfg.Logger, cfg.Heartbeat = quiet, time.Hour
	r.feed = newFeed(log, newFleet(log, fleetConfig{Logger: quiet}), cfg)
	var cancel context.CancelFunc
	r.ctx, cancel = context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = log.Run(r.ctx) })
	running.Go(func() { r.feed.run(r.ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	<-log.Ready()
	return r
}

// rawNode is the node's end of a stream.
type rawNode struct {
	*pipe
	t     *testing.T
	ended chan error // holds one
	held  *linkv1.Version
}

// open opens a stream of a node. Its first message, a heartbeat, is read.
func (r *fakeReplica) open(name string) *rawNode {
	n := &rawNode{pipe: newPipe(r.ctx, r.feed), t: r.t, ended: make(chan error, 1)}
	n.say(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: &feedv1.Hello{Node: name, Region: "r"}}})
	go func() {
		err := r.feed.Subscribe(n.pipe)
		n.cancel()
		n.ended <- err
	}()
	if n.next().GetHeartbeat() == nil {
		r.t.Error("a stream does not begin with a heartbeat")
	}
	return n
}

// ready opens a stream and takes its snapshot.
func (r *fakeReplica) ready(name string) *rawNode {
	n := r.open(name)
	for n.held == nil {
		if end := n.next().GetSnapshotEnd(); end != nil {
			n.applied(end.GetVersion(), end.GetSetHash())
		}
	}
	synctest.Wait()
	return n
}

// next reads the next message.
func (n *rawNode) next() *feedv1.SubscribeResponse {
	b := <-n.down
	n.read(b)
	m := new(feedv1.SubscribeResponse)
	if err := proto.Unmarshal(b, m); err != nil {
		n.t.Error(err)
	}
	return m
}

// delta reads the next delta, past take-downs, and says whether it took no time.
func (n *rawNode) delta() (d *feedv1.Delta, atOnce bool) {
	start := time.Now()
	for {
		m := n.next()
		if m.GetTakeDown() == nil {
			return m.GetDelta(), time.Since(start) == 0
		}
	}
}

func (n *rawNode) applied(v *linkv1.Version, hash *feedv1.SetHash) {
	n.held = v
	n.say(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Applied{Applied: &feedv1.Applied{Version: v, SetHash: hash}}})
}

func (r *fakeReplica) writes(n int) (revision int64) {
	for range n {
		r.write(false)
	}
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.revision
}

// large makes a revision that makes a feed busy.
func (r *fakeReplica) large(i int) {
	r.change(func() {
		r.next(store.Batch{Changes: []store.Change{{Name: "links/go.test/1", Value: linkValue(1, strings.Repeat("x", busyBytes)+strconv.Itoa(i), false)}}})
	})
	synctest.Wait()
}

func TestBusyFeedLeavesNoNodeBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFake(t, feedConfig{})
		n := r.ready("n")
		time.Sleep(time.Second)
		start := time.Now()
		r.large(1)
		first, atOnce := n.delta()
		if first == nil || !atOnce {
			t.Fatalf("a change of an idle fleet comes after %s: %v", time.Since(start), first)
		}
		r.large(2)
		head := r.writes(1)
		// A round passes the node by, for the first is still under way.
		time.Sleep(bulkPace + bulkPace/2)
		if !r.feed.fan.busy.Load() {
			t.Fatal("the feed is not busy")
		}
		n.applied(first.GetTo(), first.GetSetHash())
		rest, _ := n.delta()
		if rest.GetTo().GetRevision() != head || time.Since(start) > 2*bulkPace {
			t.Fatalf("after %s the node is sent revision %d, and %d is written", time.Since(start), rest.GetTo().GetRevision(), head)
		}
		n.applied(rest.GetTo(), rest.GetSetHash())
		time.Sleep(time.Second) // the feed is idle again
		r.writes(1)
		if last, atOnce := n.delta(); last == nil || !atOnce {
			t.Error("after a busy time, a change does not come at once")
		}
	})
}

func TestBusyFeedLetsChangesGatherBetweenItsRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFake(t, feedConfig{})
		n := r.ready("n")
		done := make(chan int)
		go func() {
			frames := 0
			for last := int64(0); last < 200; frames++ {
				d, _ := n.delta()
				last = d.GetTo().GetRevision()
				n.applied(d.GetTo(), d.GetSetHash())
			}
			done <- frames
		}()
		for i := range 200 { // with one revision before
			r.large(i)
			time.Sleep(time.Millisecond)
		}
		if frames, most := <-done, 200/int(bulkPace/time.Millisecond)+5; frames > most {
			t.Errorf("%d frames in 200 ms, at most %d are to be", frames, most)
		}
	})
}

func TestStreamThatWaitsInASendIsSuperseded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFake(t, feedConfig{MaxUnread: 1})
		old := r.open("n") // it does not read its snapshot
		synctest.Wait()
		start := time.Now()
		fresh := r.ready("n")
		if err := <-old.ended; status.Code(err) != codes.Aborted || time.Since(start) > 0 {
			t.Errorf("after %s the old stream ends with %v", time.Since(start), err)
		}
		r.writes(1)
		if d, _ := fresh.delta(); d == nil {
			t.Error("the new stream is not served")
		}
	})
}

func TestNodeThatAnswersAndDoesNotReadStopsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFake(t, feedConfig{MaxUnread: 400})
		liar, honest := r.ready("liar"), r.ready("honest")
		liar.room.Store(0) // as if what it has answered were still on its way
		start := time.Now()
		r.writes(1)
		if d, _ := honest.delta(); d == nil || time.Since(start) > 2*stuckTurns*guardTurn {
			t.Errorf("the other node is served after %s", time.Since(start))
		}
		if err := <-liar.ended; status.Code(err) != codes.Aborted && err != nil {
			t.Errorf("the stream ends with %v", err)
		}
	})
}

// The process has one core, and others use all of it: the round stands still in the
// middle of a send for much longer than one that waits for its node may.
func TestRoundThatIsKeptFromRunningEndsNoStream(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	f := newFanout(nil, time.Hour)
	f.guardTurn = time.Millisecond
	s := &subscription{over: make(chan error, 1)}
	f.join(s)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { f.guard(ctx) })
	for range 4 {
		running.Go(func() {
			for ctx.Err() == nil {
			}
		})
	}
	start := time.Now()
	f.each(func(*subscription) {
		for range 12 {
			runtime.Gosched() // as if its time were up
		}
	})
	if stood, most := time.Since(start), stuckTurns*f.guardTurn; stood < 2*most {
		t.Fatalf("the round stood still for %s, which is to be more than %s", stood, 2*most)
	}
	select {
	case err := <-s.over:
		t.Errorf("the stream is ended: %v", err)
	default:
	}
}

func TestMessageOfANewerReleaseIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFake(t, feedConfig{})
		n := r.ready("n")
		newer := &feedv1.SubscribeRequest{}
		if err := proto.Unmarshal([]byte{0xfa, 0x01, 0x03, 'n', 'e', 'w'}, newer); err != nil { // field 31
			t.Fatal(err)
		}
		n.say(newer)
		r.writes(1)
		if d, _ := n.delta(); d == nil {
			t.Error("the stream of a node of a newer release is not served")
		}
	})
}

func TestRoundGoesOnWhereOthersHaveMuchToDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFanout(nil, time.Hour)
		const streams = 10*chunk + 1
		for range streams {
			f.join(new(subscription))
		}
		for _, c := range []struct {
			takes time.Duration // that others run for
			want  int           // times that they are let
		}{{0, 10}, {busyTurn, 10}, {busyTurn + 1, 1}} {
			queued, served := 0, map[*subscription]bool{}
			f.queue = func() {
				queued++
				time.Sleep(c.takes)
			}
			f.each(func(s *subscription) { served[s] = true })
			if queued != c.want || len(served) != streams {
				t.Errorf("others are let run %d times for %s, not %d times; %d streams are served", queued, c.takes, c.want, len(served))
			}
		}
	})
}
