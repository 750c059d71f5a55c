package feed

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// contents are entries by key: what the model says that a version holds.
type contents map[string]string

func (c contents) hash() (h link.SetHash) {
	for key, value := range c {
		h = h.Add(link.HashEntry([]byte(key), []byte(value)))
	}
	return h
}

// keys is how many different resources there may be, the last of which are blocks
// and a policy; floor is the number of links from which on the guard looks.
const keys, firstBlock, floor = 16, 13, 6

func keyOf(i int) string {
	switch {
	case i == keys-1:
		return "policies/*"
	case i >= firstBlock:
		return fmt.Sprintf("blocks/%d", i)
	}
	return fmt.Sprintf("links/go.test/%d", i)
}

// fraudValue is a block or a policy.
func fraudValue(i int, reason string) string {
	r := &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{Scope: "*", Guard: &linkv1.GuardPolicy{AllowAffiliates: []string{reason}}}}}
	if i < keys-1 {
		r = &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{
			Id: fmt.Sprint(i), Match: &linkv1.Block_Prefix{Prefix: "192.0.2.1"}, Reason: reason,
		}}}
	}
	value, err := link.Marshal(r)
	if err != nil {
		panic(err)
	}
	return string(value)
}

// valueOf is a link's value; a disabled one is what a take-down shows.
func valueOf(i int, to string, disabled bool) string {
	value, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
		Domain: "go.test", Path: fmt.Sprintf("/%d", i), Destination: "https://x.test/" + to, Disabled: disabled,
	}}})
	if err != nil {
		panic(err)
	}
	return string(value)
}

// world is the store and the replicas as a schedule has made them. What nodes are
// told is taken from it, and what they hold is compared with it.
type world struct {
	mu   sync.Mutex
	rng  *rand.Rand
	fail func(format string, args ...any)

	states   map[int64]contents // by revision; that of a revision without a change is not there
	history  []int64            // the revisions of states, in order
	written  map[string]map[string]bool
	downs    []takenDown // in order
	released int64       // versions up to this one pass the guards
	healed   bool        // nothing bad happens any more

	replicas []*modelReplica
	serving  sync.WaitGroup
	floor    int64 // the least revision that the node may serve
	crashes  int
	refuses  map[int64]bool           // the revisions of take-downs that it has acknowledged
	files    func() map[string][]byte // those of the node
	kept     moment                   // when the node last acknowledged a snapshot in place of a state

	applied, rejected, guarded, poisoned, refused, overtook int
}

// moment is what a crash leaves of a node: its files, and what they must lead to.
type moment struct {
	files   map[string][]byte // nil: there was none
	floor   int64
	refuses map[int64]bool
}

// now is this moment. w.mu is held.
func (w *world) now() moment { return moment{w.files(), w.floor, maps.Clone(w.refuses)} }

// takenDown is a link that a write has disabled or deleted, or a block or policy
// that one has changed.
type takenDown struct {
	revision int64
	key      string
	value    string // "": deleted
}

// modelReplica is a replica that knows the history up to head, and can make
// deltas from base on.
type modelReplica struct {
	down       bool
	head, base int64
	busy       bool // has no room
	streams    map[*pipe]bool
}

func newWorld(seed uint64, fail func(string, ...any)) *world {
	w := &world{
		rng: rand.New(rand.NewPCG(seed, 1)), fail: fail,
		states: map[int64]contents{1: {}}, history: []int64{1}, written: map[string]map[string]bool{},
		refuses: map[int64]bool{},
	}
	for range 2 {
		w.replicas = append(w.replicas, &modelReplica{head: 1, streams: map[*pipe]bool{}})
	}
	return w
}

func (w *world) head() int64 { return w.history[len(w.history)-1] }

// write makes a revision of some changes; takeDown: one that only takes down.
func (w *world) write(takeDown bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := maps.Clone(w.states[w.head()])
	revision := w.head() + 1 + int64(w.rng.IntN(3))
	put := func(key, value string) {
		next[key] = value
		if w.written[key] == nil {
			w.written[key] = map[string]bool{}
		}
		w.written[key][value] = true
	}
	for n := range 1 + w.rng.IntN(4) {
		i := w.rng.IntN(keys)
		key := keyOf(i)
		_, there := next[key]
		switch {
		case i >= firstBlock:
			delete(next, key)
			if w.rng.IntN(3) > 0 {
				put(key, fraudValue(i, fmt.Sprint(revision, "-", n)))
			}
			w.downs = append(w.downs, takenDown{revision, key, next[key]})
		case takeDown && !there:
		case takeDown && w.rng.IntN(2) == 0, !takeDown && there && w.rng.IntN(3) == 0:
			delete(next, key)
			w.downs = append(w.downs, takenDown{revision: revision, key: key})
		case takeDown:
			put(key, valueOf(i, fmt.Sprint("was-", revision), true))
			w.downs = append(w.downs, takenDown{revision, key, next[key]})
		default:
			put(key, valueOf(i, fmt.Sprint(revision, "-", n), false))
		}
	}
	w.states[revision] = next
	w.history = append(w.history, revision)
}

// at is a random revision from least to most that has a state.
func (w *world) at(least, most int64) int64 {
	var in []int64
	for _, r := range w.history {
		if least <= r && r <= most {
			in = append(in, r)
		}
	}
	if len(in) == 0 {
		return most
	}
	return in[w.rng.IntN(len(in))]
}

// holdsBack says whether the guard stops a change.
func holdsBack(before, after contents) bool {
	links, removed := 0, 0
	for key := range before {
		if !strings.HasPrefix(key, "links/") {
			continue
		}
		links++
		if _, ok := after[key]; !ok {
			removed++
		}
	}
	return links >= floor && removed > links*20/100
}

// pipe is one stream between the node and a replica: messages in flight, and what
// ended it.
type pipe struct {
	ctx     context.Context
	down    chan []byte // to the node
	up      chan *feedv1.SubscribeRequest
	cut     chan struct{}
	cutOnce sync.Once
	err     error
	early   *feedv1.SubscribeRequest // an answer that came before it was asked for
}

// close ends the stream. What is in flight may be lost.
func (p *pipe) close(err error) {
	p.cutOnce.Do(func() {
		p.err = err
		close(p.cut)
	})
}

// errCut is what a node sees when a connection is lost.
var errCut = status.Error(codes.Unavailable, "the connection is lost")

func (p *pipe) Header() (metadata.MD, error) { return nil, nil }
func (p *pipe) Trailer() metadata.MD         { return nil }
func (p *pipe) CloseSend() error             { return nil }
func (p *pipe) Context() context.Context     { return p.ctx }

// SendMsg never waits for the replica: the session holds a lock meanwhile, and
// time in a bubble stands still while a goroutine waits for a lock.
func (p *pipe) SendMsg(m any) error {
	said := proto.Clone(m.(proto.Message)).(*feedv1.SubscribeRequest)
	if said.GetStatus() != nil && len(p.up) > cap(p.up)/2 {
		return nil
	}
	select {
	case p.up <- said:
		return nil
	case <-p.cut:
		return io.EOF
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *pipe) RecvMsg(m any) error {
	select {
	case b := <-p.down:
		raw := m.(*rawFrame)
		*raw = append((*raw)[:0], b...)
		return nil
	case <-p.cut:
		return p.err
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

// send gives a message to the network.
func (p *pipe) send(b []byte) bool {
	select {
	case p.down <- b:
		return true
	case <-p.cut:
	case <-p.ctx.Done():
	}
	return false
}

func (p *pipe) say(f *feedv1.SubscribeResponse) bool {
	b, err := proto.Marshal(f)
	if err != nil {
		panic(err)
	}
	return p.send(b)
}

// answer gives the node's next message that is not a status.
func (p *pipe) answer() *feedv1.SubscribeRequest {
	for {
		select {
		case m := <-p.up:
			if m.GetStatus() == nil {
				return m
			}
		case <-p.cut:
			return nil
		case <-p.ctx.Done():
			return nil
		}
	}
}

// dial is the network: an interceptor that connects a stream to the replica that
// the target names.
func (w *world) dial() grpc.DialOption {
	return grpc.WithStreamInterceptor(func(ctx context.Context, _ *grpc.StreamDesc, cc *grpc.ClientConn, _ string, _ grpc.Streamer, _ ...grpc.CallOption) (grpc.ClientStream, error) {
		r := w.replicas[0]
		if strings.HasSuffix(cc.Target(), "1") {
			r = w.replicas[1]
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if r.down {
			return nil, status.Error(codes.Unavailable, "connection refused")
		}
		p := &pipe{ctx: ctx, down: make(chan []byte, w.rng.IntN(3)), up: make(chan *feedv1.SubscribeRequest, 16), cut: make(chan struct{})}
		r.streams[p] = true
		w.serving.Go(func() {
			w.serve(r, p)
			p.close(io.EOF)
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(r.streams, p)
		})
		return p, nil
	})
}

// cutStreams cuts the streams of a replica. w.mu is held.
func (r *modelReplica) cutStreams() {
	for p := range r.streams {
		p.close(errCut)
	}
}

// heal ends all that is bad.
func (w *world) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.healed, w.released = true, w.head()
	for _, r := range w.replicas {
		r.down, r.busy, r.head = false, false, w.head()
	}
}

// check compares the state that the node says to hold with the model, and its
// version with what it held before. w.mu is held.
func (w *world) check(what string, v *linkv1.Version, h *feedv1.SetHash) {
	if v == nil && w.floor == 0 {
		return
	}
	known, ok := w.states[v.GetRevision()]
	switch {
	case v.GetEpoch() != epoch || !ok:
		w.fail("%s: the node holds %v, which never was", what, v)
	case v.GetRevision() < w.floor:
		w.fail("%s: the node holds revision %d after %d", what, v.GetRevision(), w.floor)
	case hashOf(h) != known.hash():
		w.fail("%s: the node holds another state at revision %d than was written", what, v.GetRevision())
	}
	w.floor = max(w.floor, v.GetRevision())
}

// pause is how long a replica takes between messages.
func (w *world) pause() {
	time.Sleep(time.Duration(w.draw(3)) * time.Millisecond)
}

// draw gives a random number below n.
func (w *world) draw(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

// sortedKeys makes frames depend on the seed alone.
func sortedKeys(c contents) []string { return slices.Sorted(maps.Keys(c)) }
