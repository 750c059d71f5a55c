package controlplane

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/affleet/affleet/controlplane/internal/store"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// timeline is a store as a schedule makes it: all that was ever written, by
// revision.
type timeline struct {
	mu        sync.Mutex
	rng       *rand.Rand
	revision  int64
	compacted int64
	history   []store.Batch
	states    map[int64]map[string]string // at every revision
	release   store.Release
	held      int64
	moved     chan struct{} // closed when anything changed
}

const scheduleEpoch = 7

func newTimeline(seed uint64) *timeline {
	return &timeline{
		rng: rand.New(rand.NewPCG(seed, 1)), revision: 1, states: map[int64]map[string]string{1: {}}, moved: make(chan struct{}),
	}
}

// draw gives a random number below n.
func (l *timeline) draw(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rng.IntN(n)
}

// change changes the store, and wakes who watches it.
func (l *timeline) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.moved)
	l.moved = make(chan struct{})
}

// next makes a revision. l.mu is held.
func (l *timeline) next(b store.Batch) map[string]string {
	l.revision++
	b.Revision = l.revision
	state := maps.Clone(l.states[l.revision-1])
	for i, c := range b.Changes {
		b.Changes[i].Revision = l.revision
		if c.Value == nil {
			delete(state, c.Name)
		} else {
			state[c.Name] = string(c.Value)
		}
	}
	l.history = append(l.history, b)
	l.states[l.revision] = state
	return state
}

// keyCount is how many different resources there may be: the last are blocks and
// a policy.
const keyCount = 16

const firstBlock = 13

func scheduleKey(i int) string {
	switch {
	case i == keyCount-1:
		return "policies/*"
	case i >= firstBlock:
		return fmt.Sprintf("blocks/%d", i)
	}
	return fmt.Sprintf("links/go.test/%d", i)
}

// write makes a revision of some changes; takeDown: links are deleted or disabled,
// and anything is done to blocks and policies.
func (l *timeline) write(takeDown bool) {
	l.change(func() {
		var b store.Batch
		seen := map[string]bool{}
		for n := range 1 + l.rng.IntN(4) {
			i := l.rng.IntN(keyCount)
			key := scheduleKey(i)
			if seen[key] {
				continue
			}
			seen[key] = true
			_, there := l.states[l.revision][key]
			c := store.Change{Name: key}
			switch {
			case takeDown && !there && i < firstBlock:
				continue
			case takeDown && l.rng.IntN(2) == 0, !takeDown && there && l.rng.IntN(3) == 0:
			case i >= firstBlock:
				c.Value = fraudValue(i, fmt.Sprintf("%d-%d", l.revision+1, n), l.rng.IntN(3))
			default:
				c.Value = linkValue(i, fmt.Sprintf("%d-%d", l.revision+1, n), takeDown)
			}
			b.Changes = append(b.Changes, c)
		}
		l.next(b)
	})
}

func linkValue(i int, to string, disabled bool) []byte {
	value, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
		Domain: "go.test", Path: fmt.Sprintf("/%d", i), Destination: "https://x.test/" + to, Disabled: disabled,
	}}})
	if err != nil {
		panic(err)
	}
	return value
}

// fraudValue is a block or a policy, that one written often differs.
func fraudValue(i int, reason string, n int) []byte {
	r := &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{
		Scope: "*", Off: n == 0, Guard: &linkv1.GuardPolicy{AllowAffiliates: []string{reason}},
	}}}
	if i < keyCount-1 {
		b := &linkv1.Block{Id: fmt.Sprint(i), Match: &linkv1.Block_Prefix{Prefix: "192.0.2.1"}, Reason: reason}
		if n > 0 { // one of these has ended when it is written
			b.Ttl, b.ExpireTime = durationpb.New(time.Hour), &timestamppb.Timestamp{Seconds: 1 << (30 + n)}
		}
		r = &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: b}}
	}
	value, err := link.Marshal(r)
	if err != nil {
		panic(err)
	}
	return value
}

// free releases everything that is written, as an operator does.
func (l *timeline) free() {
	l.change(func() {
		l.release = store.Release{Epoch: scheduleEpoch, UpTo: l.revision}
		l.held = 0
		l.next(store.Batch{Release: l.release})
	})
}

// source is the store as one replica reaches it.
type source struct {
	*timeline
	broken   bool  // nothing answers
	limit    int64 // the member that it reads from lags: it has no later revision; 0: it does not
	progress bool  // the next watch that has nothing else to give says so, once
}

var errBroken = errors.New("the store does not answer")

// visible is the newest revision that is seen. A member that lags has not
// compacted either what it has not seen. mu is held.
func (s *source) visible() int64 {
	if s.limit != 0 {
		return min(max(s.limit, s.compacted), s.revision)
	}
	return s.revision
}

func (s *source) ask(context.Context) error {
	s.change(func() { s.progress = true })
	return nil
}

func (s *source) Epochs(context.Context) (store.Epochs, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return store.Epochs{}, errBroken
	}
	return store.Epochs{Current: scheduleEpoch}, nil
}

func (s *source) Load(_ context.Context, opts store.LoadOptions, each func(store.Object) error) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	revision := s.visible()
	switch {
	case s.broken:
		return 0, errBroken
	case opts.At != 0 && opts.At < s.compacted:
		return 0, store.ErrCompacted
	case opts.At != 0:
		revision = opts.At
	}
	for key, value := range s.states[revision] {
		if err := each(store.Object{Name: key, Value: []byte(value)}); err != nil {
			return 0, err
		}
	}
	return revision, nil
}

func (s *source) Watch(ctx context.Context, after int64) iter.Seq2[store.Batch, error] {
	return func(yield func(store.Batch, error) bool) {
		for {
			s.mu.Lock()
			moved, broken, compacted, visible := s.moved, s.broken, after < s.compacted, s.visible()
			var next *store.Batch
			for i := range s.history {
				if r := s.history[i].Revision; r > after && r <= visible {
					next = &s.history[i]
					break
				}
			}
			progress := next == nil && s.progress
			if progress {
				s.progress = false
			}
			s.mu.Unlock()
			switch {
			case broken:
				yield(store.Batch{}, errBroken)
				return
			case compacted:
				yield(store.Batch{}, store.ErrCompacted)
				return
			case next != nil:
				if !yield(*next, nil) {
					return
				}
				after = next.Revision
				continue
			case progress:
				if !yield(store.Batch{Revision: visible}, nil) {
					return
				}
			}
			select {
			case <-ctx.Done():
				yield(store.Batch{}, ctx.Err())
				return
			case <-moved:
			}
		}
	}
}

func (s *source) ReleasedAt(context.Context, uint64, int64) (store.Release, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.release, nil
}

func (s *source) Hold(_ context.Context, _ uint64, revision int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == 0 && revision > s.release.UpTo {
		s.held = revision
	}
	return nil
}

func (s *source) Held(context.Context, uint64) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held, nil
}

// Revision is what a quorum says, however far the member lags.
func (s *source) Revision(context.Context) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return 0, errBroken
	}
	return s.revision, nil
}

func (s *source) Rewind(context.Context, store.Rewind) error {
	panic("BUG: the timeline never goes back")
}

func (s *source) Rewound(context.Context, uint64) (store.Rewind, error) { return store.Rewind{}, nil }

func (s *source) Touch(context.Context) error {
	s.change(func() { s.next(store.Batch{}) })
	return nil
}
