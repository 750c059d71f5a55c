package visitor

import (
	"math/rand/v2"
	"sync/atomic"

	"github.com/zeebo/xxh3"
)

// cache keeps what was computed from strings of clients. It has a fixed number
// of places, two for each string to be in; what comes when both are taken
// replaces one of them. There is no lock: a lost race is one more computation.
type cache[V any] struct {
	seed  uint64 // keeps clients from choosing strings that have the same places
	slots []atomic.Pointer[cached[V]]
}

type cached[V any] struct {
	hash  uint64
	key   string
	value V
}

// newCache makes a cache of a number of places, which is a power of two.
func newCache[V any](slots int) *cache[V] {
	return &cache[V]{seed: rand.Uint64(), slots: make([]atomic.Pointer[cached[V]], slots)}
}

// get gives what was computed from a key, which stays the caller's. The value is
// shared and never changes.
func (c *cache[V]) get(key []byte, compute func(string) V) *V {
	hash := xxh3.HashSeed(key, c.seed)
	mask := uint64(len(c.slots) - 1)
	first, second := &c.slots[hash&mask], &c.slots[hash>>32&mask]
	a := first.Load()
	if a != nil && a.hash == hash && a.key == string(key) {
		return &a.value
	}
	b := second.Load()
	if b != nil && b.hash == hash && b.key == string(key) {
		return &b.value
	}
	e := &cached[V]{hash: hash, key: string(key)}
	e.value = compute(e.key)
	switch {
	case a == nil:
		first.Store(e)
	case b == nil:
		second.Store(e)
	default: // which one, nobody can foresee
		if hash>>16&1 == 0 {
			first.Store(e)
		} else {
			second.Store(e)
		}
	}
	return &e.value
}
