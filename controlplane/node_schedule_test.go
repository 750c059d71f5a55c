package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/s2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// pipe is one stream between a node and a replica, at both ends.
type pipe struct {
	ctx    context.Context
	cancel context.CancelFunc
	down   chan []byte // to the node; has room for all that there is room for
	// Of bytes that are not read. As with gRPC, a message may be sent while
	// there is any left, and may take more than that.
	room  atomic.Int64
	freed chan struct{} // holds one
	// From the node. Its window of 1 MB has room for the answers to all that a
	// replica sends before it takes in another answer: with less, both ends
	// would wait for each other.
	up chan *feedv1.SubscribeRequest
}

// window is how many answers a schedule's network holds: more take-downs than
// a schedule has.
const window = 1024

func (p *pipe) SetHeader(metadata.MD) error  { return nil }
func (p *pipe) SendHeader(metadata.MD) error { return nil }
func (p *pipe) SetTrailer(metadata.MD)       {}
func (p *pipe) Context() context.Context     { return p.ctx }
func (p *pipe) RecvMsg(any) error            { return io.EOF }

func (p *pipe) Send(m *feedv1.SubscribeResponse) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return p.SendMsg(rawMessage(b))
}

func (p *pipe) SendMsg(m any) error {
	for p.room.Load() <= 0 {
		select {
		case <-p.freed:
		case <-p.ctx.Done():
			return status.FromContextError(p.ctx.Err()).Err()
		}
	}
	b := m.(rawMessage)
	p.room.Add(-int64(len(b)))
	p.down <- b // one message is at least a byte
	return nil
}

// read notes that a message has been read.
func (p *pipe) read(b []byte) {
	p.room.Add(int64(len(b)))
	poke(p.freed)
}

// newPipe makes a pipe with room for more than a feed sends without care.
func newPipe(ctx context.Context, f *feed) *pipe {
	p := &pipe{down: make(chan []byte, f.cfg.MaxUnread+1), up: make(chan *feedv1.SubscribeRequest, window), freed: make(chan struct{}, 1)}
	p.room.Store(int64(f.cfg.MaxUnread + 1))
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

func (p *pipe) Recv() (*feedv1.SubscribeRequest, error) {
	select {
	case m := <-p.up:
		return m, nil
	case <-p.ctx.Done():
		return nil, status.FromContextError(p.ctx.Err()).Err()
	}
}

// say sends what the node says.
func (p *pipe) say(m *feedv1.SubscribeRequest) {
	select {
	case p.up <- m:
	case <-p.ctx.Done():
	}
}

// modelNode is a node as the protocol describes one. It checks everything that it
// is sent against what was written.
type modelNode struct {
	*schedule
	name string

	mu      sync.Mutex
	held    *linkv1.Version
	entries map[string]string
	cut     context.CancelFunc // of the stream; nil: there is none

	savedHeld    *linkv1.Version
	savedEntries map[string]string

	// Of the stream.
	at       *runningReplica // nil: there is none
	snapshot map[string]string
	told     map[int64]bool // the revisions of take-downs
}

func hashEntries(entries map[string]string) *feedv1.SetHash {
	var h link.SetHash
	for key, value := range entries {
		h = h.Add(link.HashEntry([]byte(key), []byte(value)))
	}
	return &feedv1.SetHash{Hi: h.Hi, Lo: h.Lo}
}

// run keeps the node connected to one replica after the other until ctx ends.
func (n *modelNode) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := time.Duration(1+n.draw(10)) * time.Millisecond
		if f := n.replica(n.draw(len(n.replicas))); f != nil {
			if later := n.session(ctx, f); later > 0 {
				wait = later + later/2
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// session follows a replica until the stream ends.
func (n *modelNode) session(ctx context.Context, f *runningReplica) (later time.Duration) {
	p := newPipe(ctx, f.feed)
	defer p.cancel()
	defer context.AfterFunc(f.ctx, p.cancel)() // it is killed
	n.mu.Lock()
	n.cut, n.at, n.snapshot, n.told = p.cancel, f, nil, map[int64]bool{}
	hello := &feedv1.Hello{Node: n.name, Region: "r", Version: n.held}
	if n.held != nil {
		hello.SetHash = hashEntries(n.entries)
	}
	n.mu.Unlock()
	p.say(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: hello}})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := f.feed.Subscribe(p)
		if c := status.Code(err); err != nil && !errors.Is(err, context.Canceled) && c != codes.Canceled && c != codes.Aborted {
			n.fail("node %s: the stream ended with %v", n.name, err)
		}
	}()
	defer func() {
		p.cancel()
		<-ended
		n.mu.Lock()
		defer n.mu.Unlock()
		n.at = nil
	}()
	for {
		if n.draw(8) == 0 { // reads slowly
			time.Sleep(time.Duration(n.draw(60)) * time.Millisecond)
		}
		var b []byte
		select {
		case b = <-p.down:
		case <-ended:
			select {
			case b = <-p.down:
			default:
				return later
			}
		case <-p.ctx.Done():
			return 0
		}
		p.read(b)
		var m feedv1.SubscribeResponse
		if err := proto.Unmarshal(b, &m); err != nil {
			n.fail("node %s: %v", n.name, err)
			return 0
		}
		if l := m.GetRetryLater(); l != nil {
			later = max(l.GetAfter().AsDuration(), time.Millisecond)
		}
		if answer := n.take(p.ctx, &m); answer != nil {
			p.say(answer)
		}
	}
}

// take takes in a message, and gives the answer. What a stream brings after its
// end is nothing.
func (n *modelNode) take(stream context.Context, m *feedv1.SubscribeResponse) *feedv1.SubscribeRequest {
	n.mu.Lock()
	defer n.mu.Unlock()
	if stream.Err() != nil {
		return nil
	}
	switch f := m.GetFrame().(type) {
	case *feedv1.SubscribeResponse_TakeDown:
		n.checkTakeDown(f.TakeDown)
		n.told[f.TakeDown.GetVersion().GetRevision()] = true
		return &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_TakenDown{TakenDown: &feedv1.TakenDown{Version: f.TakeDown.GetVersion()}}}
	case *feedv1.SubscribeResponse_Delta:
		d := f.Delta
		if d.GetFrom().GetEpoch() != n.held.GetEpoch() || d.GetFrom().GetRevision() != n.held.GetRevision() || d.GetTo().GetRevision() <= n.held.GetRevision() {
			n.fail("node %s at %v is sent a delta from %v to %v", n.name, n.held, d.GetFrom(), d.GetTo())
		}
		next := maps.Clone(n.entries)
		for _, key := range d.GetDeletes() {
			if _, ok := next[key]; !ok {
				n.fail("node %s is sent a deletion of %s, which it does not hold", n.name, key)
			}
			delete(next, key)
		}
		for _, e := range d.GetPuts() {
			next[e.GetKey()] = string(e.GetValue())
		}
		return n.frame(d.GetTo(), next, d.GetSetHash(), d.GetEntries())
	case *feedv1.SubscribeResponse_SnapshotBegin:
		n.snapshot = map[string]string{}
	case *feedv1.SubscribeResponse_SnapshotChunk:
		n.chunk(f.SnapshotChunk)
	case *feedv1.SubscribeResponse_SnapshotEnd:
		next := n.snapshot
		n.snapshot = nil
		v := f.SnapshotEnd.GetVersion()
		if v.GetRevision() < n.held.GetRevision() {
			n.fail("node %s at %v is sent a snapshot of %v", n.name, n.held, v)
		}
		return n.frame(v, next, f.SnapshotEnd.GetSetHash(), f.SnapshotEnd.GetEntries())
	}
	return nil
}

func (n *modelNode) chunk(c *feedv1.SnapshotChunk) {
	plain, err := s2.Decode(nil, c.GetCompressed())
	if err != nil {
		n.fail("node %s: %v", n.name, err)
	}
	var all feedv1.SnapshotChunk
	if err := proto.Unmarshal(plain, &all); err != nil {
		n.fail("node %s: %v", n.name, err)
	}
	for _, e := range all.GetEntries() {
		if _, ok := n.snapshot[e.GetKey()]; ok {
			n.fail("node %s: %s is twice in a snapshot", n.name, e.GetKey())
		}
		n.snapshot[e.GetKey()] = string(e.GetValue())
	}
}

// frame answers a frame: mostly it is applied.
func (n *modelNode) frame(v *linkv1.Version, next map[string]string, hash *feedv1.SetHash, entries int64) *feedv1.SubscribeRequest {
	n.timeline.mu.Lock()
	written, known := n.states[v.GetRevision()]
	n.timeline.mu.Unlock()
	if v.GetEpoch() != scheduleEpoch || !known || !maps.Equal(next, written) {
		n.fail("node %s at %v is sent revision %d with other contents than were written: they are those of %v", n.name, n.held, v.GetRevision(), n.revisionsOf(next))
	}
	if !proto.Equal(hashEntries(next), hash) || int64(len(next)) != entries {
		n.fail("node %s: revision %d has another set hash or number of entries than its frame says", n.name, v.GetRevision())
	}
	if !n.isHealed() && n.draw(12) == 0 {
		n.count(func(c *counts) { c.rejected++ })
		code := []feedv1.RejectCode{feedv1.RejectCode_REJECT_CODE_BAD_ENTRY, feedv1.RejectCode_REJECT_CODE_HASH_MISMATCH, feedv1.RejectCode_REJECT_CODE_GUARDED}[n.draw(3)]
		return &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Rejected{Rejected: &feedv1.Rejected{Version: v, Code: code, Reason: "the schedule says so"}}}
	}
	n.held, n.entries = v, next
	n.count(func(c *counts) { c.applied++ })
	said := hash
	if !n.isHealed() && n.draw(30) == 0 { // as if its memory were damaged
		said = &feedv1.SetHash{Hi: hash.GetHi() + 1}
	}
	return &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Applied{Applied: &feedv1.Applied{Version: v, SetHash: said}}}
}

// revisionsOf are those at which the contents were these.
func (l *timeline) revisionsOf(contents map[string]string) (revisions []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := range l.revision + 1 {
		if state, ok := l.states[r]; ok && maps.Equal(state, contents) {
			revisions = append(revisions, r)
		}
	}
	return revisions
}

// checkTakeDown checks that what is taken down was taken down.
func (n *modelNode) checkTakeDown(d *feedv1.TakeDown) {
	n.count(func(c *counts) { c.takeDowns++ })
	n.timeline.mu.Lock()
	defer n.timeline.mu.Unlock()
	state, known := n.states[d.GetVersion().GetRevision()]
	for _, e := range d.GetEntries() {
		if now, there := state[e.GetKey()]; !known || there != (e.Value != nil) || now != string(e.GetValue()) {
			n.fail("node %s: %s is taken down at %v as %q, and was %q", n.name, e.GetKey(), d.GetVersion(), e.GetValue(), now)
		}
	}
}

// save keeps what the node holds, as its file does; load goes back to that, as a
// crash does.
func (n *modelNode) save() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.savedHeld, n.savedEntries = n.held, n.entries
}

// crash ends the stream, and the node goes on with what it saved.
func (n *modelNode) crash() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut != nil {
		n.cut()
	}
	n.held, n.entries = n.savedHeld, maps.Clone(n.savedEntries)
	if n.entries == nil {
		n.entries = map[string]string{}
	}
}

// disconnect ends the stream.
func (n *modelNode) disconnect() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut != nil {
		n.cut()
	}
}

// differs says how the node differs from what was written last.
func (n *modelNode) differs() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.timeline.mu.Lock()
	defer n.timeline.mu.Unlock()
	if want := n.states[n.revision]; !maps.Equal(n.entries, want) {
		return fmt.Errorf("node %s at %v holds %d entries, and %d are written", n.name, n.held, len(n.entries), len(want))
	}
	return nil
}

// untold says what was taken down and the node neither serves nor was told.
func (n *modelNode) untold() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.held == nil:
		return nil // it serves nothing
	case n.at == nil:
		return fmt.Errorf("node %s is not connected", n.name)
	}
	for _, d := range n.at.log.View().TakeDowns(n.held.GetRevision()) {
		if !n.told[d.Revision] {
			return fmt.Errorf("node %s at %v was not told what revision %d takes down", n.name, n.held, d.Revision)
		}
	}
	return nil
}
