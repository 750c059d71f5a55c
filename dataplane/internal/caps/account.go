package caps

import (
	"sync/atomic"
	"time"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// account is what a node may send on of one link in one period. Takers change
// left; what has no atomic type belongs to the goroutine of Run.
type account struct {
	key
	domain, path string
	ahead        int64 // clicks that may be sent on before a lease

	left   atomic.Int64 // clicks that may be sent on
	low    atomic.Int64 // at which more are wanted
	retry  atomic.Int64 // until then, in µs since 1970, it is no use to ask
	queued atomic.Bool  // Run knows that it is due

	creation int64 // of the link, by the last grant; 0: not known

	allowed int64 // all that was ever put into left, less what was taken back
	granted int64 // all that was leased or settled, less what was given back
	goal    int64 // clicks that it should have after a lease
	before  int64 // used when it was leased last
	at      time.Time
	vain    uint // leases that gave nothing, one after the other
	swept   int64
	still   int // sweeps at which nothing had been used
	missing int // times in a row that its link was looked for and not there
}

// aheadOf is how many clicks may be sent on before the first lease.
func aheadOf(clicks uint64) int64 { return int64(min(max(clicks/200, 1), 32)) }

func newAccount(k key, domain, path []byte, clicks uint64) *account {
	a := &account{key: k, domain: string(domain), path: string(path), ahead: aheadOf(clicks)}
	a.allowed, a.goal = a.ahead, 2*a.ahead
	a.left.Store(a.ahead)
	a.low.Store(a.ahead)
	return a
}

// claim is what an account asks for once.
type claim struct {
	*account
	owed, returned, wanted int64
	used                   int64
	anew                   bool // the answer said that the link was made anew
}

func (a *account) used() int64 { return a.allowed - a.left.Load() }

// owes is what was sent on beyond what was leased.
func (a *account) owes(used int64) int64 { return max(0, used-a.granted) }

// claim asks for as many clicks as are sent on in a second, going by the last
// time.
func (a *account) claim(now time.Time) *claim {
	c := &claim{account: a, used: a.used()}
	c.owed = a.owes(c.used)
	if !a.at.IsZero() {
		passed := max(now.Sub(a.at).Seconds(), 0.01)
		a.goal = max(2*a.ahead, int64(min(float64(c.used-a.before)/passed, 1e6)))
	}
	a.at, a.before = now, c.used
	if numberOf(a.period, now.UnixMicro()) == a.number {
		c.wanted = max(1, a.goal-max(0, a.granted-c.used))
	}
	return c
}

// giveBack takes a surplus out of the account, as far as it was leased; nil if
// there is nothing to give back and nothing is owed.
func (a *account) giveBack(surplus int64) *claim {
	c := &claim{account: a}
	surplus = min(surplus, a.granted-a.used())
	for surplus > 0 {
		n := a.left.Load()
		if surplus = min(surplus, n); surplus > 0 && a.left.CompareAndSwap(n, n-surplus) {
			c.returned = surplus
			a.allowed -= surplus
			break
		}
	}
	c.used = a.used()
	if c.owed = a.owes(c.used); c.owed == 0 && c.returned == 0 {
		return nil
	}
	return c
}

// message is the claim as it travels.
func (c *claim) message() *feedv1.CapClaim {
	return &feedv1.CapClaim{
		Link: c.domain + c.path, Period: linkv1.CapPeriod(c.period), Number: c.number,
		Owed: uint64(c.owed), Returned: uint64(c.returned), Wanted: uint64(c.wanted), Creation: c.creation,
	}
}

// apply puts a grant into the account, and gives it. From then on only what was
// leased may be sent on, less than a moment ago if the cap is used up.
func (c *claim) apply(grant *feedv1.CapGrant, now time.Time) uint64 {
	a := c.account
	n := int64(min(grant.GetGranted(), uint64(c.wanted)))
	if creation := grant.GetCreation(); creation != 0 {
		c.anew = a.creation != 0 && a.creation != creation
		a.creation = creation
	}
	if c.anew {
		c.beginAnew()
	}
	a.granted += c.owed + n - c.returned
	a.left.Add(a.granted - a.allowed)
	a.allowed = a.granted
	a.low.Store(max(a.granted-c.used, 0) / 2)
	switch {
	case c.wanted == 0:
	case n == 0:
		a.vain++
		a.retry.Store(now.Add(time.Second << min(a.vain-1, 4)).UnixMicro())
	default:
		a.vain = 0
		a.retry.Store(0)
	}
	a.queued.Store(false)
	return uint64(n)
}

// beginAnew makes the account that of the link that was made anew: it has used
// what was sent on since the claim, and nothing of it is leased.
func (c *claim) beginAnew() {
	a := c.account
	a.allowed -= c.used
	a.swept -= c.used
	a.granted, a.before, a.vain = 0, 0, 0
	a.retry.Store(0)
	c.owed, c.returned, c.used = 0, 0, 0
}

// fail leaves the account as it is. What was to be given back is lost: the
// control plane may have it.
func (c *claim) fail(now time.Time) {
	c.granted -= c.returned
	c.retry.Store(now.Add(100 * time.Millisecond).UnixMicro())
	c.queued.Store(false)
}

// idle says whether nothing has been used since some sweeps.
func (a *account) idle() bool {
	used := a.used()
	if used != a.swept {
		a.swept, a.still = used, 0
		return false
	}
	a.still++
	return a.still >= idleSweeps
}

// over says whether the account's period, or its link's life, has been over for a
// while.
func (a *account) over(now time.Time) bool {
	if a.period == link.PerLife {
		return a.missing > 1
	}
	return numberOf(a.period, now.Add(-time.Minute).UnixMicro()) > a.number
}
