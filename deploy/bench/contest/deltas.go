package contest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/affleet/affleet/deploy/bench/feedserver"
	"github.com/affleet/affleet/deploy/bench/linkset"
	"github.com/affleet/affleet/deploy/processes"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

const (
	deltaLinks = 10_000
	// beatEvery is between two heartbeats.
	beatEvery = time.Second
	// longWait is for what a node does at once.
	longWait = 10 * time.Second
)

// deltas is a control plane that sends one node delta after delta, each of one
// link and one revision, at the pace that is set: etcd takes more than a core
// for 1000 revisions a second with a million keys. It takes over where the real
// one has ended, at its address.
type deltas struct {
	feedv1.UnimplementedFeedServiceServer
	node    string
	links   int   // that are edited in turn; at first they are added
	entries int64 // that the node holds

	mu      sync.Mutex
	rate    float64   // per second; 0: none are sent
	since   time.Time // when the rate was set
	planned float64   // deltas that are due, beside those since
	sent    int64
	applied int64
	failed  error

	hash   link.SetHash
	values map[string][]byte
	wake   chan struct{}
}

func newDeltas(node string, links int, entries int64) *deltas {
	return &deltas{node: node, links: links, entries: entries, values: map[string][]byte{}, wake: make(chan struct{}, 1)}
}

// set changes the pace, and gives how many deltas were applied so far.
func (d *deltas) set(rate float64) (applied int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rate, d.since, d.planned = rate, time.Now(), float64(d.sent)
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return d.applied, d.failed
}

// next says how long it is until the next delta is due.
func (d *deltas) next() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rate == 0 {
		return beatEvery
	}
	due := (float64(d.sent) - d.planned) / d.rate
	return min(beatEvery, time.Duration(due*float64(time.Second))-time.Since(d.since))
}

// Subscribe serves a node's stream. There is one delta under way at a time.
func (d *deltas) Subscribe(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := m.GetHello()
	if hello.GetNode() != d.node || hello.GetVersion() == nil {
		return fmt.Errorf("this is for %s only, with what it holds", d.node)
	}
	d.hash = link.SetHash{Hi: hello.GetSetHash().GetHi(), Lo: hello.GetSetHash().GetLo()}
	err = d.feed(stream, hello.GetVersion())
	if stream.Context().Err() == nil {
		d.mu.Lock()
		d.failed = err
		d.mu.Unlock()
	}
	return err
}

func (d *deltas) feed(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse], held *linkv1.Version) error {
	answers := make(chan error)
	go func() { // ends with the stream
		for {
			m, err := stream.Recv()
			switch {
			case err != nil:
			case m.GetApplied() != nil:
			case m.GetRejected() != nil:
				err = fmt.Errorf("the node rejects a delta: %s", m.GetRejected().GetReason())
			default:
				continue
			}
			select {
			case answers <- err:
			case <-stream.Context().Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		head := &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Heartbeat{Heartbeat: &feedv1.Heartbeat{Head: held, Interval: durationpb.New(beatEvery)}}}
		if err := stream.Send(head); err != nil {
			return err
		}
		timer.Reset(beatEvery)
		for beat := false; !beat; {
			wait := d.next()
			if wait <= 0 {
				var err error
				if held, err = d.one(stream, held, answers); err != nil {
					return err
				}
				continue
			}
			pause := time.NewTimer(wait)
			select {
			case <-stream.Context().Done():
				return stream.Context().Err()
			case err := <-answers: // to what came before the first delta
				if err != nil {
					return err
				}
			case <-d.wake:
			case <-timer.C:
				beat = true
			case <-pause.C:
			}
			pause.Stop()
		}
	}
}

// one sends the next delta and waits until the node has applied it.
func (d *deltas) one(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse], held *linkv1.Version, answers <-chan error) (*linkv1.Version, error) {
	i := d.sent
	l := set.Link(int(i % int64(d.links)))
	l.Path = "/delta" + l.GetPath()
	l.Campaign = "edited-" + strconv.FormatInt(i, 10)
	value, err := link.Encode(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}})
	if err != nil {
		return nil, err
	}
	key := link.Links.Prefix() + linkset.Domain + l.GetPath()
	if old, ok := d.values[key]; ok {
		d.hash = d.hash.Sub(link.HashEntry([]byte(key), old))
	} else {
		d.entries++
	}
	d.hash = d.hash.Add(link.HashEntry([]byte(key), value))
	d.values[key] = value
	to := &linkv1.Version{Epoch: held.GetEpoch(), Revision: held.GetRevision() + 1}
	if err := stream.Send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Delta{Delta: &feedv1.Delta{
		From: held, To: to, Puts: []*feedv1.Entry{{Key: key, Value: value}},
		SetHash: &feedv1.SetHash{Hi: d.hash.Hi, Lo: d.hash.Lo}, Entries: d.entries,
	}}}); err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.sent++
	d.mu.Unlock()
	select {
	case err = <-answers:
	case <-stream.Context().Done():
		err = stream.Context().Err()
	}
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.applied++
	d.mu.Unlock()
	return to, nil
}

// listen serves at an address that somebody may just have left.
func (d *deltas) listen(addr string) (stop func(), err error) {
	var ln net.Listener
	if !processes.Eventually(func() bool { ln, err = net.Listen("tcp", addr); return err == nil }) {
		return nil, err
	}
	return feedserver.Start(ln, d), nil
}

// startDeltas sends the node deltas at an even pace. The first time, the control
// plane ends, and what sends them takes its place.
func (s *stage) startDeltas(ctx context.Context, b *beside) (stop func() error, err error) {
	if s.deltas == nil {
		s.fleet.Control[0].Kill()
		s.deltas = newDeltas("node-0", deltaLinks, int64(s.cfg.Links+linkset.Affiliates))
		if s.stopDeltas, err = s.deltas.listen(s.fleet.ControlAddr[0]); err != nil {
			return nil, err
		}
	}
	before, err := s.deltas.set(deltaRate)
	if err != nil {
		return nil, fmt.Errorf("deltas: %w", err)
	}
	now := before
	for deadline := time.Now().Add(longWait); now == before && err == nil; now, err = s.deltas.set(deltaRate) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return nil, errors.New("deltas: the node does not come back to the control plane")
		}
	}
	begin, first := time.Now(), now
	return func() error {
		last, err := s.deltas.set(0)
		b.pace = append(b.pace, float64(last-first)/time.Since(begin).Seconds())
		return err
	}, nil
}
