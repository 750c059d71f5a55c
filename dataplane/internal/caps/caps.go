// Package caps keeps the clicks of links that have a cap within it, over all
// nodes, without a redirect that waits: a node has an account for each such link
// and period, from which a click takes, and one goroutine leases more from the
// control plane ahead of need.
//
// # How exact it is
//
// Leases are never over-granted: what all nodes have leased is within the cap.
// Three things make the number of clicks differ from it:
//
//   - An account that is new in a period may send some clicks on before the
//     first lease answers: a 200th of the cap, at least 1 and at most 32. They
//     count, but where the cap was used up already they are beyond it. So a cap
//     is exceeded by at most that many clicks for each node, and only by nodes
//     that had not seen the link in the period.
//   - What a node holds and does not use is missing elsewhere. An account that
//     nobody takes from for two seconds gives back all but as many clicks as
//     above, and a node that ends gives back all. What a node held that was
//     killed is lost until the period is over, and for good where the cap is for
//     the link's life; it holds about as many clicks as it sends on in a second,
//     and never more than a quarter of what was left.
//   - A node learns that a link was deleted and made anew when it leases next.
//     What it had leased of the old one is void from then on, and does not count
//     for the new one; what it has sent on of it until then is beyond the cap.
//
// Without a control plane the node uses up what it has; then the link is as if
// its cap were reached. So is one that finds no account free: a node has about a
// million. It closes those of periods that are over, and those of caps for the
// life of a link when the state that it serves has not had the link for a minute:
// no request comes for that one any more, and one that is made anew has a cap of
// its own. A link that still is served keeps its account, also where it is deleted
// in etcd: one that is opened again has clicks ahead again.
//
// # When not to use it
//
// Clicks that one must not lose or repeat are counted from the click stream,
// which says for each whether it was sent on. A cap is a valve.
//
// # Concurrency
//
// Take may be called from any number of goroutines; it takes no lock, but once
// for each account to open it. Run is called once.
package caps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	"github.com/affleet/affleet/proto/link"
)

// Config says who leases, and from whom.
type Config struct {
	Targets []string          // control planes, "host:port" each. At least one
	Node    string            // required
	Dial    []grpc.DialOption // transport credentials included. Required
	// Has says whether the state that the node serves has a resource of this name,
	// which it does not keep. Default: accounts for life stay open.
	Has func(name []byte) bool

	Log        *slog.Logger          // default: slog.Default()
	Registerer prometheus.Registerer // default: none
}

// Leases are a node's accounts.
type Leases struct {
	cfg   Config
	index atomic.Pointer[index]
	mu    sync.Mutex // of opening and closing accounts
	due   chan *account

	conn   *grpc.ClientConn // of Run
	target int              // of Run: which one conn is to
	failed time.Time        // of Run: when a call failed last
	told   time.Time        // of Run: when the log was told that nothing can be leased
	looked time.Time        // of Run: when links were last looked for

	leased, returned, errors, refused atomic.Uint64
}

const (
	maxClaims   = 256
	maxAccounts = 1 << 20
	callTimeout = 2 * time.Second
	endFor      = time.Second          // half of it for a call that is under way
	gatherFor   = 2 * time.Millisecond // so that links that come up together are leased together
	sweepEvery  = time.Second
	lookEvery   = time.Minute      // for links that are gone
	idleSweeps  = 2                // without a click, and an account gives back
	keepAfter   = 10 * time.Second // a failed call, and nothing is given back
	tellEvery   = time.Minute
)

// New checks the configuration. Nothing is connected before Run.
func New(cfg Config) (*Leases, error) {
	switch {
	case len(cfg.Targets) == 0:
		return nil, errors.New("caps: no control plane to lease from")
	case cfg.Node == "":
		return nil, errors.New("caps: the node has no name")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	l := &Leases{cfg: cfg, due: make(chan *account, 4096)}
	l.index.Store(newIndex(1 << 8))
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(collector{l}); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return l, nil
}

// Take says whether a click of a link, at a time in µs since 1970, is within
// the link's cap, and takes it off if it counts.
func (l *Leases) Take(domain, path []byte, limit link.Cap, unixMicro int64, counts bool) bool {
	k := key{period: limit.Period, number: numberOf(limit.Period, unixMicro)}
	k.hash = hashOf(domain, path, &k)
	a := l.index.Load().find(&k, domain, path)
	if a == nil {
		if a = l.open(k, domain, path, limit.Clicks); a == nil {
			l.refused.Add(1)
			return false
		}
	}
	for {
		n := a.left.Load()
		switch {
		case n <= 0:
			l.ask(a, unixMicro)
			l.refused.Add(1)
			return false
		case !counts:
			return true
		case a.left.CompareAndSwap(n, n-1):
			if n-1 <= a.low.Load() {
				l.ask(a, unixMicro)
			}
			return true
		}
	}
}

// ask makes an account due, unless it is or has asked in vain a moment ago.
func (l *Leases) ask(a *account, unixMicro int64) {
	if unixMicro < a.retry.Load() || !a.queued.CompareAndSwap(false, true) {
		return
	}
	select {
	case l.due <- a:
	default: // the next click asks again
		a.queued.Store(false)
	}
}

// Run leases until ctx ends, and then gives back what is left. It waits for an
// account that is due, the time to look at all accounts, or the end. A call that
// is under way then is waited for, a moment: what it leases is given back, too.
func (l *Leases) Run(ctx context.Context) error {
	calls, done := outlive(ctx, endFor/2)
	defer done()
	end, done := outlive(ctx, endFor)
	defer done()
	defer func() {
		if l.conn != nil {
			_ = l.conn.Close()
		}
	}()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	failures := 0
	for ctx.Err() == nil {
		select {
		case a := <-l.due:
			if l.lease(calls, l.gather(a)) {
				failures = 0
				continue
			}
			failures++
			select { // accounts wait as well: they have what they have
			case <-time.After(min(50*time.Millisecond<<min(failures, 10), time.Second)):
			case <-ctx.Done():
			}
		case <-sweep.C:
			l.sweep(ctx, calls, time.Now())
		case <-ctx.Done():
		}
	}
	l.end(end)
	return nil
}

// outlive gives a context that ends a while after another one.
func outlive(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() { time.AfterFunc(d, cancel) })
	return longer, cancel
}

// end gives back what is left, to whoever can be reached.
func (l *Leases) end(ctx context.Context) {
	for len(l.due) > 0 {
		(<-l.due).queued.Store(false)
	}
	for range l.cfg.Targets {
		if l.giveBack(ctx, func(a *account) int64 { return a.left.Load() }) {
			return
		}
	}
}

// gather takes the accounts that are due, after a moment.
func (l *Leases) gather(first *account) []*claim {
	time.Sleep(gatherFor)
	claims := []*claim{first.claim(time.Now())}
	for len(claims) < maxClaims {
		select {
		case a := <-l.due:
			claims = append(claims, a.claim(time.Now()))
		default:
			return claims
		}
	}
	return claims
}

// sweep forgets the accounts of periods and links that are over, makes those due
// that owe something, and those give back that nobody takes from; not while control
// planes are away, because what cannot be given back is lost. When ctx ends, it
// ends as soon as what it has taken is given back, which calls bounds.
func (l *Leases) sweep(ctx, calls context.Context, now time.Time) {
	l.forget(now)
	for a := range l.index.Load().all() {
		if a.owes(a.used()) > 0 {
			l.ask(a, now.UnixMicro())
		}
	}
	if now.Sub(l.failed) > keepAfter {
		l.giveBack(calls, func(a *account) int64 {
			if !a.idle() || ctx.Err() != nil {
				return 0
			}
			return a.left.Load() - a.ahead
		})
	}
}

// giveBack gives back of each account what surplus says, until that fails. It
// says whether it did not.
func (l *Leases) giveBack(ctx context.Context, surplus func(*account) int64) bool {
	reached := false
	var claims []*claim
	for a := range l.index.Load().all() {
		if !a.queued.CompareAndSwap(false, true) {
			continue // it is due in any case
		}
		n := surplus(a)
		if !reached && (n > 0 || a.owes(a.used()) > 0) {
			if reached = l.reach(ctx); !reached {
				a.queued.Store(false)
				return false
			}
		}
		c := a.giveBack(n)
		if c == nil {
			a.queued.Store(false)
			continue
		}
		if claims = append(claims, c); len(claims) == maxClaims {
			if !l.lease(ctx, claims) {
				return false
			}
			claims = nil
		}
	}
	return len(claims) == 0 || l.lease(ctx, claims)
}

// lease brings claims to a control plane, and says whether it answered. A lease
// whose answer is lost is lost: it is never used twice.
func (l *Leases) lease(ctx context.Context, claims []*claim) bool {
	grants, err := l.call(ctx, claims)
	if err == nil && len(grants) != len(claims) {
		err = fmt.Errorf("%d answers to %d claims", len(grants), len(claims))
	}
	now := time.Now()
	for i, c := range claims {
		if err != nil {
			c.fail(now)
			continue
		}
		l.leased.Add(c.apply(grants[i], now))
		l.returned.Add(uint64(c.returned))
		if c.anew && c.wanted == 0 { // it holds nothing now
			l.ask(c.account, now.UnixMicro())
		}
	}
	if err == nil {
		l.told = time.Time{}
		return true
	}
	l.errors.Add(1)
	l.failed = now
	l.next()
	if ctx.Err() == nil && now.Sub(l.told) > tellEvery {
		l.told = now
		l.cfg.Log.Warn("clicks of links with a cap cannot be leased", "links", len(claims), "reason", err)
	}
	return false
}

// reach says whether there is a connection to a control plane, and else goes to
// another one: what is given back over none is lost.
func (l *Leases) reach(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if l.dial() == nil {
		l.conn.Connect()
		state := l.conn.GetState()
		for state != connectivity.Ready && state != connectivity.TransientFailure && l.conn.WaitForStateChange(ctx, state) {
			state = l.conn.GetState()
		}
		if state == connectivity.Ready {
			return true
		}
	}
	l.failed = time.Now()
	l.next()
	return false
}

// dial sees to it that there is a conn. It does not wait for it to connect.
func (l *Leases) dial() error {
	if l.conn != nil {
		return nil
	}
	conn, err := grpc.NewClient(l.cfg.Targets[l.target%len(l.cfg.Targets)], l.cfg.Dial...)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	l.conn = conn
	return nil
}

func (l *Leases) call(ctx context.Context, claims []*claim) ([]*feedv1.CapGrant, error) {
	if err := l.dial(); err != nil {
		return nil, err
	}
	req := &feedv1.LeaseRequest{Node: l.cfg.Node}
	for _, c := range claims {
		req.Claims = append(req.Claims, c.message())
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := feedv1.NewCapServiceClient(l.conn).Lease(ctx, req)
	return resp.GetGrants(), err
}

// next goes to another control plane.
func (l *Leases) next() {
	if l.conn != nil {
		_ = l.conn.Close()
		l.conn = nil
	}
	l.target++
}

var (
	accountsDesc = prometheus.NewDesc("aff_caps_accounts", "Links with a cap, and their periods, that this node has an account for.", nil, nil)
	leasedDesc   = prometheus.NewDesc("aff_caps_leased_clicks_total", "Clicks that were leased for links with a cap.", nil, nil)
	returnedDesc = prometheus.NewDesc("aff_caps_returned_clicks_total", "Clicks that were leased and given back.", nil, nil)
	errorsDesc   = prometheus.NewDesc("aff_caps_lease_errors_total", "Calls to the control plane that failed.", nil, nil)
	refusedDesc  = prometheus.NewDesc("aff_caps_refused_total", "Requests that a cap had no room for.", nil, nil)
)

// collector reports to Prometheus.
type collector struct{ l *Leases }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{accountsDesc, leasedDesc, returnedDesc, errorsDesc, refusedDesc} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(accountsDesc, prometheus.GaugeValue, float64(c.l.index.Load().n.Load()))
	for d, v := range map[*prometheus.Desc]*atomic.Uint64{leasedDesc: &c.l.leased, returnedDesc: &c.l.returned, errorsDesc: &c.l.errors, refusedDesc: &c.l.refused} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v.Load()))
	}
}

// Room says whether Take would let a click through, as far as the node knows. It
// takes nothing and leases nothing.
func (l *Leases) Room(domain, path []byte, limit link.Cap, unixMicro int64) bool {
	k := key{period: limit.Period, number: numberOf(limit.Period, unixMicro)}
	k.hash = hashOf(domain, path, &k)
	a := l.index.Load().find(&k, domain, path)
	return a == nil || a.left.Load() > 0
}
