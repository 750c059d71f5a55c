package caps

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/affleet/affleet/proto/link"
)

// served is the state of a node, which has links by name: each with how often it
// was made. A request holds the state with which it began.
type served struct {
	mu    sync.RWMutex
	links map[string]int
}

func (s *served) has(name []byte) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.links[string(name)] > 0
}

func (s *served) set(name string, made int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links[name] = made
}

// settle brings what is due to the control plane.
func settle(t *testing.T, l *Leases) {
	t.Helper()
	for len(l.due) > 0 {
		if !l.lease(t.Context(), l.gather(<-l.due)) {
			t.Fatal("the control plane does not answer")
		}
	}
}

func TestAccountsOfLinksThatAreGoneAreForgotten(t *testing.T) {
	_, addr := serve(t, 1000)
	node, state, limit := newIdle(t, addr), served{links: map[string]int{}}, link.Cap{Clicks: 1000, Period: link.PerLife}
	node.cfg.Has = state.has
	account := make(map[string]*account)
	for _, path := range []string{"/stays", "/gone", "/anew", "/due"} {
		state.set("links/go.example.com"+path, 1)
		if !node.Take(host, []byte(path), limit, now(), true) {
			t.Fatal("refused")
		}
		k := key{period: link.PerLife}
		k.hash = hashOf(host, []byte(path), &k)
		account[path] = node.index.Load().find(&k, host, []byte(path))
	}
	settle(t, node)
	at := time.Now()
	forget := func(step string, after time.Duration, want int64) {
		t.Helper()
		node.forget(at.Add(after))
		if got := node.index.Load().n.Load(); got != want {
			t.Errorf("%s: %d accounts, want %d", step, got, want)
		}
	}
	forget("all are there", 0, 4)
	for _, path := range []string{"/gone", "/anew", "/due"} {
		state.set("links/go.example.com"+path, 0)
	}
	forget("before they are looked for", lookEvery-1, 4)
	forget("they are gone", lookEvery, 4)
	forget("a moment later", lookEvery+time.Second, 4)
	state.set("links/go.example.com/anew", 2)
	node.ask(account["/due"], now())
	forget("after a minute", 2*lookEvery, 3)
	settle(t, node)
	forget("what was due is not any more", 3*lookEvery, 2)
	state.set("links/go.example.com/anew", 0)
	forget("it is gone again", 4*lookEvery, 2)
	forget("for a minute, too", 5*lookEvery, 1)
	// Nothing makes an account due that is closed: nobody would have its clicks.
	if node.ask(account["/gone"], now()); len(node.due) != 0 {
		t.Error("an account that is closed is due")
	}
}

// TestNoClickIsOverACapWhenAccountsAreForgotten: requests go on meanwhile, for a
// link that stays, whose cap is used up, and for one that is deleted and made anew.
func TestNoClickIsOverACapWhenAccountsAreForgotten(t *testing.T) {
	const clicks, times = 400, 8
	l, addr := serve(t, clicks)
	node, limit := newIdle(t, addr), link.Cap{Clicks: clicks, Period: link.PerLife}
	state := served{links: map[string]int{"links/go.example.com/stays": 1}}
	node.cfg.Has = state.has
	var stays atomic.Int64
	var anew [times + 1]atomic.Int64
	send := func() {
		state.mu.RLock()
		defer state.mu.RUnlock()
		if node.Take(host, []byte("/stays"), limit, now(), true) {
			stays.Add(1)
		}
		if made := state.links["links/go.example.com/anew"]; made > 0 && node.Take(host, []byte("/anew"), limit, now(), true) {
			anew[made].Add(1)
		}
	}
	stop := make(chan struct{})
	var requests sync.WaitGroup
	for range 2 {
		requests.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					send()
					time.Sleep(10 * time.Microsecond) // the others need the core as well
				}
			}
		})
	}
	at := time.Now()
	later := func() {
		at = at.Add(lookEvery)
		node.forget(at)
	}
	for made := 1; made <= times; made++ {
		state.set("links/go.example.com/anew", made)
		for end := time.Now().Add(30 * time.Second); stays.Load() < clicks || anew[made].Load() < clicks; settle(t, node) {
			if time.Now().After(end) {
				t.Fatalf("%d and %d clicks are sent on after a while", stays.Load(), anew[made].Load())
			}
			later()
		}
		state.set("links/go.example.com/anew", 0)
		settle(t, node)
		l.mu.Lock()
		delete(l.used, "go.example.com/anew CAP_PERIOD_TOTAL 0")
		l.mu.Unlock()
		for range 3 {
			settle(t, node)
			later()
		}
		if got := node.index.Load().n.Load(); got != 1 {
			t.Fatalf("%d accounts are left, want that of the link that stays", got)
		}
	}
	close(stop)
	requests.Wait()
	if got := stays.Load(); got != clicks {
		t.Errorf("%d clicks of the link that stays were sent on, and its cap is %d", got, clicks)
	}
	for made := 1; made <= times; made++ {
		if got := anew[made].Load(); got != clicks {
			t.Errorf("%d clicks of link %d were sent on, and its cap is %d", got, made, clicks)
		}
	}
}
