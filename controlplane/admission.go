package controlplane

import (
	"context"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/peer"
)

// admission bounds what a replica does for nodes at once. All of it may be used
// from any goroutine.
//
// Streams are counted; a snapshot is sent only with a token. Tokens go to nodes
// that serve something already before those that are new: the former wait for
// one, the latter are told to come back when their turn is likely to be.
type admission struct {
	maxStreams, maxPerAddress int
	tokens                    chan struct{} // full: no snapshot is being sent
	tokenTime                 time.Duration

	mu      sync.Mutex
	streams int
	byPeer  map[string]int
	took    time.Duration // that a snapshot holds a token, on average
	next    time.Time     // when the turn of the next node is that is sent away
}

func newAdmission(cfg *feedConfig) *admission {
	a := &admission{
		maxStreams: cfg.MaxStreams, maxPerAddress: cfg.MaxStreamsPerAddress, tokenTime: cfg.SnapshotTime,
		tokens: make(chan struct{}, cfg.Snapshots), byPeer: make(map[string]int), took: time.Second,
	}
	for range cfg.Snapshots {
		a.tokens <- struct{}{}
	}
	return a
}

// enter counts a stream until leave is called. It gives a reason when there are
// too many.
func (a *admission) enter(ctx context.Context) (leave func(), full string) {
	host := ""
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		if h, _, err := net.SplitHostPort(p.Addr.String()); err == nil {
			host = h
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.streams >= a.maxStreams:
		return nil, "this replica has as many nodes as it takes"
	case a.byPeer[host] >= a.maxPerAddress:
		return nil, "this replica has as many nodes of one address as it takes"
	}
	a.streams++
	a.byPeer[host]++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.streams--
		if a.byPeer[host]--; a.byPeer[host] == 0 {
			delete(a.byPeer, host)
		}
	}, ""
}

// token is a place among the snapshots that are being sent.
type token struct {
	a       *admission
	taken   time.Time
	once    sync.Once
	expires *time.Timer
}

// take makes what was received from tokens a token. A stream that does not
// read gives it back after a while: it costs nothing but memory then.
func (a *admission) take() *token {
	t := &token{a: a, taken: time.Now()}
	t.expires = time.AfterFunc(a.tokenTime, t.put)
	return t
}

// giveBack may be called more than once, and on nil.
func (t *token) giveBack() {
	if t != nil {
		t.expires.Stop()
		t.put()
	}
}

// put puts it back, once: the stream is done, or was too slow.
func (t *token) put() {
	t.once.Do(func() {
		t.a.mu.Lock()
		t.a.took += (time.Since(t.taken) - t.a.took) / 8
		t.a.mu.Unlock()
		t.a.tokens <- struct{}{} // has room: it was taken from there
	})
}

// Bounds of how long a node is sent away.
const (
	minRetry = 200 * time.Millisecond
	maxRetry = 30 * time.Second
)

// turn gives the time until a node that is sent away is likely to get a token:
// each one that is sent away has a later turn.
func (a *admission) turn(now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.next.Before(now) {
		a.next = now
	}
	a.next = a.next.Add(a.took / time.Duration(cap(a.tokens)))
	if latest := now.Add(maxRetry); a.next.After(latest) {
		a.next = now.Add(maxRetry / 2) // the herd begins anew, spread over the other half
	}
	return max(a.next.Sub(now), minRetry)
}
