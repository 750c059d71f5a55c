//go:build race

package redirect

// Under the race detector a sync.Pool drops one in four of what it is given,
// so a request costs a quarter of the allocations of a new work.
const allowedAllocs = 1
