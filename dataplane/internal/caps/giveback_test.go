package caps

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/proto/link"
)

// newIdle is a node that nobody runs yet.
func newIdle(t *testing.T, targets ...string) *Leases {
	t.Helper()
	l, err := New(Config{Targets: targets, Node: "n", Dial: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l.conn != nil {
			_ = l.conn.Close()
		}
	})
	return l
}

func TestANodeThatEndsWhileItLeasesGivesBackWhatItGets(t *testing.T) {
	l, addr := serve(t, 1000)
	node := newIdle(t, addr)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- node.Run(ctx) }()
	l.mu.Lock()
	sent := node.Take(host, []byte("/a"), link.Cap{Clicks: 1000, Period: link.PerLife}, now(), true)
	await(t, "a call", func() bool { return l.arrived.Load() > 0 })
	cancel()
	l.mu.Unlock()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := l.total(); !sent || got != 1 {
		t.Errorf("the ledger says %d, and one click was sent on: %v", got, sent)
	}
}

func TestANodeThatEndsGivesBackAlsoWhatIsOfAccountsThatAreDue(t *testing.T) {
	const clicks = 1000
	l, addr := serve(t, clicks)
	limit := link.Cap{Clicks: clicks, Period: link.PerLife}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 20 { // Run may see first that it has ended, or what is due
		node, path, sent := newIdle(t, addr), fmt.Appendf(nil, "/%d", i), uint64(0)
		before := l.total()
		take := func() {
			if node.Take(host, path, limit, now(), true) {
				sent++
			}
		}
		take()
		if !node.lease(t.Context(), node.gather(<-node.due)) {
			t.Fatal("nothing was leased")
		}
		for len(node.due) == 0 {
			take()
		}
		if err := node.Run(ended); err != nil {
			t.Fatal(err)
		}
		if got := l.total() - before; got != sent {
			t.Errorf("node %d: the ledger says %d, and %d were sent on", i, got, sent)
		}
	}
}

// TestANodeLosesNothingByAControlPlaneThatIsGone: it gives back to another one,
// and until there is one keeps what it has.
func TestANodeLosesNothingByAControlPlaneThatIsGone(t *testing.T) {
	for what, giveBack := range map[string]func(*Leases){
		"idle": func(node *Leases) {
			for range idleSweeps + 1 {
				node.sweep(t.Context(), t.Context(), time.Now())
			}
			node.failed = time.Time{} // ten seconds later
			node.sweep(t.Context(), t.Context(), time.Now())
		},
		"ends": func(node *Leases) {
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			if err := node.Run(ended); err != nil {
				t.Error(err)
			}
		},
	} {
		l, other := serve(t, 1000)
		server, addr := l.serve(t)
		node := newIdle(t, addr, other)
		sent := node.Take(host, []byte("/a"), link.Cap{Clicks: 1000, Period: link.PerLife}, now(), true)
		if !node.lease(t.Context(), node.gather(<-node.due)) || !sent {
			t.Fatal("nothing was leased")
		}
		// The state follows what calls see.
		await(t, "the connection", func() bool { return node.conn.GetState() == connectivity.Ready })
		server.Stop()
		await(t, "the connection's end", func() bool { return node.conn.GetState() != connectivity.Ready })
		giveBack(node)
		var held uint64
		for a := range node.index.Load().all() {
			held += uint64(a.left.Load())
		}
		if what == "idle" && held != uint64(aheadOf(1000)) {
			t.Errorf("%s: %d clicks are held", what, held)
		}
		if got := l.total(); got != held+1 {
			t.Errorf("%s: the ledger says %d; one click was sent on and %d are held", what, got, held)
		}
	}
}

func TestANodeStopsGivingBackWhenTheControlPlaneIsAway(t *testing.T) {
	const accounts, clicks = 3 * maxClaims, 1000
	l, addr := serve(t, clicks)
	node := newIdle(t, addr)
	for i := range accounts {
		if !node.Take(host, fmt.Appendf(nil, "/%d", i), link.Cap{Clicks: clicks, Period: link.PerLife}, now(), true) {
			t.Fatal("refused")
		}
	}
	for len(node.due) > 0 {
		if !node.lease(t.Context(), node.gather(<-node.due)) {
			t.Fatal("nothing was leased")
		}
	}
	held := func() (n int64) {
		for a := range node.index.Load().all() {
			n += a.left.Load()
		}
		return n
	}
	had := held()
	l.set(errors.New("away"))
	for range idleSweeps + 2 {
		node.sweep(t.Context(), t.Context(), time.Now())
	}
	each := had / accounts
	if lost := had - held(); lost == 0 || lost > maxClaims*each {
		t.Errorf("%d of %d clicks are lost, and one call gives back at most %d", lost, had, maxClaims*each)
	}
}
