package caps

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	"github.com/affleet/affleet/proto/link"
)

// ledger is a CapService in memory. What it promises, the control plane's tests
// check of the real one; both together are tested in deploy/local.
type ledger struct {
	feedv1.UnimplementedCapServiceServer
	mu    sync.Mutex
	limit uint64
	used  map[string]uint64
	anew  int64 // how often all links were made anew
	err   error

	arrived atomic.Int64 // calls, also those that wait for mu
}

func (l *ledger) Lease(_ context.Context, req *feedv1.LeaseRequest) (*feedv1.LeaseResponse, error) {
	l.arrived.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil, l.err
	}
	resp := &feedv1.LeaseResponse{}
	for _, c := range req.Claims {
		key := fmt.Sprintf("%s %v %d", c.Link, c.Period, c.Number)
		used, creation := l.used[key], 1+l.anew
		if c.Creation == 0 || c.Creation == creation {
			used += c.Owed
			if c.Returned > used {
				panic("more was given back than leased")
			}
			used -= c.Returned
		}
		var grant uint64
		if used < l.limit {
			grant = min(c.Wanted, max(1, (l.limit-used)/4))
		}
		l.used[key] = used + grant
		resp.Grants = append(resp.Grants, &feedv1.CapGrant{Granted: grant, Creation: creation})
	}
	return resp, nil
}

func (l *ledger) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// remake deletes all links and makes them anew.
func (l *ledger) remake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.anew++
	clear(l.used)
}

func (l *ledger) total() (n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, used := range l.used {
		n += used
	}
	return n
}

// serve serves a ledger and gives its address.
func serve(t *testing.T, limit uint64) (*ledger, string) {
	t.Helper()
	l := &ledger{limit: limit, used: map[string]uint64{}}
	_, addr := l.serve(t)
	return l, addr
}

// serve serves the ledger at one more address.
func (l *ledger) serve(t *testing.T) (server *grpc.Server, addr string) {
	t.Helper()
	server = grpc.NewServer()
	feedv1.RegisterCapServiceServer(server, l)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ln) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return server, ln.Addr().String()
}

// start runs the leases of a node; stop ends them.
func start(t *testing.T, name string, targets ...string) (l *Leases, stop func()) {
	t.Helper()
	l, err := New(Config{
		Targets: targets, Node: name, Registerer: prometheus.NewRegistry(),
		Dial: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return l, stop
}

// await waits until something holds, and fails after a while.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !holds(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not in time", what)
		}
		time.Sleep(time.Millisecond)
	}
}

var host = []byte("go.example.com")

func now() int64 { return time.Now().UnixMicro() }

func TestNodesTogetherSendOnAsManyClicksAsTheCapAllows(t *testing.T) {
	const clicks, nodes = 5000, 4
	l, addr := serve(t, clicks)
	limit := link.Cap{Clicks: clicks, Period: link.PerDay}
	var sent, refused atomic.Int64
	var running sync.WaitGroup
	stops := make([]func(), nodes)
	for i := range nodes {
		node, stop := start(t, fmt.Sprint(i), addr)
		stops[i] = stop
		for range 2 {
			running.Go(func() {
				for range 3000 {
					if node.Take(host, []byte("/a"), limit, now(), true) {
						sent.Add(1)
					} else {
						refused.Add(1)
						time.Sleep(100 * time.Microsecond)
					}
				}
			})
		}
	}
	running.Wait()
	for _, stop := range stops {
		stop()
	}
	over := nodes * aheadOf(clicks)
	if n := sent.Load(); n > clicks+over {
		t.Errorf("%d clicks were sent on: the cap is %d, and %d more are allowed", n, clicks, over)
	}
	// All is settled and given back: the ledger knows what was sent on.
	if got := l.total(); got != uint64(sent.Load()) {
		t.Errorf("the ledger says %d, and %d were sent on", got, sent.Load())
	}
	if refused.Load() == 0 || sent.Load() < clicks*9/10 {
		t.Errorf("%d were sent on, %d refused", sent.Load(), refused.Load())
	}
}

func TestTheFirstClickOfALinkIsSentOnWithoutALease(t *testing.T) {
	_, addr := serve(t, 10)
	node, err := New(Config{Targets: []string{addr}, Node: "n"}) // nobody runs it
	if err != nil {
		t.Fatal(err)
	}
	for clicks, want := range map[uint64]int{1: 1, 399: 1, 400: 2, 1000: 5, 1 << 40: 32} {
		path, n := fmt.Appendf(nil, "/%d", clicks), 0
		limit := link.Cap{Clicks: clicks, Period: link.PerLife}
		if !node.Take(host, path, limit, now(), false) {
			t.Errorf("a cap of %d: one who does not count was refused", clicks)
		}
		for node.Take(host, path, limit, now(), true) {
			n++
		}
		if n != want {
			t.Errorf("a cap of %d: %d clicks without a lease, want %d", clicks, n, want)
		}
		if node.Take(host, path, limit, now(), false) {
			t.Errorf("a cap of %d: one who does not count was let through", clicks)
		}
	}
}

func TestAUsedUpCapRefusesAndTheNextPeriodBeginsAnew(t *testing.T) {
	_, addr := serve(t, 3)
	node, _ := start(t, "n", addr)
	limit := link.Cap{Clicks: 3, Period: link.PerHour}
	for _, at := range []time.Time{time.Now(), time.Now().Add(time.Hour)} {
		sent := 0
		await(t, "the cap is used up", func() bool {
			if node.Take(host, []byte("/a"), limit, at.UnixMicro(), true) {
				sent++
			}
			k := key{period: link.PerHour, number: numberOf(link.PerHour, at.UnixMicro())}
			k.hash = hashOf(host, []byte("/a"), &k)
			return node.index.Load().find(&k, host, []byte("/a")).retry.Load() > at.UnixMicro() || at.After(time.Now()) && sent > 0
		})
		if sent > 3 || sent == 0 {
			t.Errorf("%d were sent on, want 1 to 3", sent)
		}
	}
}

func TestWithoutAControlPlaneANodeUsesUpWhatItHas(t *testing.T) {
	l, addr := serve(t, 1000)
	node, _ := start(t, "n", addr)
	limit := link.Cap{Clicks: 1000, Period: link.PerDay}
	take := func() bool { return node.Take(host, []byte("/a"), limit, now(), true) }
	sent := 0
	if take() {
		sent++
	}
	await(t, "a lease", func() bool { return node.leased.Load() > 0 })
	l.set(errors.New("away"))
	held := int(node.leased.Load())
	for take() {
		sent++
	}
	if sent < held || sent > held+int(aheadOf(1000)) {
		t.Errorf("%d were sent on, and %d were leased", sent, held)
	}
	await(t, "an error", func() bool { take(); return node.errors.Load() > 0 })
	l.set(nil)
	await(t, "a lease when it is back", take)
}

func TestANodeGoesToAnotherControlPlane(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := ln.Addr().String()
	_ = ln.Close()
	_, addr := serve(t, 1000)
	node, _ := start(t, "n", dead, addr)
	await(t, "a lease", func() bool {
		node.Take(host, []byte("/a"), link.Cap{Clicks: 1000, Period: link.PerLife}, now(), true)
		return node.leased.Load() > 0
	})
}

func TestAnIdleAccountGivesBackAndAnotherNodeUsesIt(t *testing.T) {
	const clicks = 400
	l, addr := serve(t, clicks)
	limit := link.Cap{Clicks: clicks, Period: link.PerLife}
	first, _ := start(t, "first", addr)
	first.Take(host, []byte("/a"), limit, now(), true)
	await(t, "a lease", func() bool { return first.leased.Load() > 0 })
	second, _ := start(t, "second", addr)
	sent := int64(1)
	await(t, "nearly all of the cap at the second node", func() bool {
		if second.Take(host, []byte("/a"), limit, now(), true) {
			sent++
		}
		return sent >= clicks-aheadOf(clicks)
	})
	if l.total() > clicks+uint64(aheadOf(clicks)) {
		t.Errorf("the ledger says %d", l.total())
	}
}

// TestAKilledNodeTakesOnlyItsLeaseAlong: what it held is not used by anybody,
// and the cap is not exceeded.
func TestAKilledNodeTakesOnlyItsLeaseAlong(t *testing.T) {
	const clicks = 300
	l, addr := serve(t, clicks)
	limit := link.Cap{Clicks: clicks, Period: link.PerLife}
	first, stop := start(t, "first", addr)
	sent := int64(0)
	await(t, "a lease", func() bool {
		if first.Take(host, []byte("/a"), limit, now(), true) {
			sent++
		}
		return first.leased.Load() > 0
	})
	l.set(errors.New("killed")) // it gives nothing back
	stop()
	l.set(nil)
	lost := int64(l.total()) - sent
	second, _ := start(t, "second", addr)
	await(t, "all that is left at the second node", func() bool {
		if second.Take(host, []byte("/a"), limit, now(), true) {
			sent++
		}
		return sent >= clicks-max(lost, 0)-aheadOf(clicks)
	})
	if sent > clicks+2*aheadOf(clicks) || lost > clicks/4 {
		t.Errorf("%d were sent on and %d lost: the cap is %d", sent, lost, clicks)
	}
}

func TestAccountsOfPastPeriodsAreForgotten(t *testing.T) {
	_, addr := serve(t, 1000)
	node, err := New(Config{Targets: []string{addr}, Node: "n"})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_700_000_000/86400*86400, 0)
	for i := range 1000 {
		for _, period := range []link.CapPeriod{link.PerHour, link.PerDay, link.PerLife} {
			if !node.Take(host, fmt.Appendf(nil, "/%d", i), link.Cap{Clicks: 1000, Period: period}, at.UnixMicro(), true) {
				t.Fatal("refused")
			}
		}
	}
	for _, step := range []struct {
		after time.Duration
		want  int64
	}{{0, 3000}, {2 * time.Hour, 2000}, {48 * time.Hour, 1000}, {10_000 * time.Hour, 1000}} {
		node.forget(at.Add(step.after))
		if got := node.index.Load().n.Load(); got != step.want {
			t.Errorf("after %v: %d accounts, want %d", step.after, got, step.want)
		}
	}
}

func TestTakeDoesNotAllocate(t *testing.T) {
	node, err := New(Config{Targets: []string{"127.0.0.1:1"}, Node: "n"}) // nobody runs it
	if err != nil {
		t.Fatal(err)
	}
	path, limit, at := []byte("/a"), link.Cap{Clicks: 1 << 40, Period: link.PerHour}, now()
	node.Take(host, path, limit, at, true)
	if n := testing.AllocsPerRun(1, func() {
		for range 1000 { // of one run: what one in two allocates is rounded down to nothing
			node.Take(host, path, limit, at, true)
		}
	}); n > 100 { // some may be the runtime's, or of connections of the tests before
		t.Errorf("%v allocations by 1000 clicks", n)
	}
}

func BenchmarkTake(b *testing.B) {
	node, err := New(Config{Targets: []string{"127.0.0.1:1"}, Node: "n"})
	if err != nil {
		b.Fatal(err)
	}
	limit, at := link.Cap{Clicks: 1 << 40, Period: link.PerHour}, now()
	paths := make([][]byte, 1000)
	for i := range paths {
		paths[i] = fmt.Appendf(nil, "/go/%d", i)
		node.Take(host, paths[i], limit, at, true)
	}
	for x := range node.index.Load().all() {
		x.left.Store(1 << 60)
		x.low.Store(0)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		i := rand.IntN(1000)
		for pb.Next() {
			i++
			node.Take(host, paths[i%len(paths)], limit, at, true)
		}
	})
}
