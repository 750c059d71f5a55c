package caps

import (
	"iter"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/affleet/affleet/proto/link"
)

// key is what tells the accounts of a link apart, and the hash of both.
type key struct {
	hash   uint64
	period link.CapPeriod
	number int64 // of the hour or day, from 1970, by UTC; 0 for the life of the link
}

// numberOf gives which period a time is in.
func numberOf(p link.CapPeriod, unixMicro int64) int64 {
	switch p {
	case link.PerHour:
		return unixMicro / 3_600_000_000
	case link.PerDay:
		return unixMicro / 86_400_000_000
	}
	return 0
}

func hashOf(domain, path []byte, k *key) uint64 {
	return xxh3.HashSeed(path, xxh3.HashSeed(domain, uint64(k.number)<<8|uint64(k.period)))
}

// index finds accounts without a lock: its lists only grow. It is replaced when
// it has become too small, or when accounts are closed.
type index struct {
	buckets []atomic.Pointer[node]
	n       atomic.Int64
}

// node is a place in a list; it never changes.
type node struct {
	*account
	next *node
}

func newIndex(buckets int) *index { return &index{buckets: make([]atomic.Pointer[node], buckets)} }

func (x *index) bucket(hash uint64) *atomic.Pointer[node] {
	return &x.buckets[hash&uint64(len(x.buckets)-1)]
}

// find gives an account, nil if there is none.
func (x *index) find(k *key, domain, path []byte) *account {
	for n := x.bucket(k.hash).Load(); n != nil; n = n.next {
		if n.key == *k && n.path == string(path) && n.domain == string(domain) {
			return n.account
		}
	}
	return nil
}

// add adds an account. The caller holds Leases.mu.
func (x *index) add(a *account) {
	b := x.bucket(a.hash)
	b.Store(&node{account: a, next: b.Load()})
	x.n.Add(1)
}

// all gives every account.
func (x *index) all() iter.Seq[*account] {
	return func(yield func(*account) bool) {
		for i := range x.buckets {
			for n := x.buckets[i].Load(); n != nil; n = n.next {
				if !yield(n.account) {
					return
				}
			}
		}
	}
}

// open gives the account of a link in a period, made if there is none; nil when
// there are too many. A new one is due at once.
func (l *Leases) open(k key, domain, path []byte, clicks uint64) *account {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.index.Load()
	if a := x.find(&k, domain, path); a != nil {
		return a
	}
	n := int(x.n.Load())
	if n >= maxAccounts {
		return nil
	}
	if n >= len(x.buckets) {
		wide := newIndex(2 * len(x.buckets))
		for a := range x.all() {
			wide.add(a)
		}
		x = wide
	}
	a := newAccount(k, domain, path, clicks)
	x.add(a)
	l.index.Store(x)
	l.ask(a, 0)
	return a
}

// look counts how often links with a cap for life were not there. An account of
// which that is enough is not due, and never will be: what it leased of a link
// that is made anew would be lost.
func (l *Leases) look(now time.Time) {
	if l.cfg.Has == nil || now.Sub(l.looked) < lookEvery {
		return
	}
	l.looked = now
	var name []byte
	for a := range l.index.Load().all() {
		if a.period != link.PerLife {
			continue
		}
		name = append(append(append(name[:0], link.Links.Prefix()...), a.domain...), a.path...)
		switch {
		case l.cfg.Has(name):
			a.missing = 0
		case a.missing == 0 || a.queued.CompareAndSwap(false, true):
			a.missing++
		}
	}
}

// forget closes the accounts of periods that are over, and of links that are gone.
// What they have cannot be used any more, and nobody else can use it either.
func (l *Leases) forget(now time.Time) {
	l.look(now)
	over := 0
	for a := range l.index.Load().all() {
		if a.over(now) {
			over++
		}
	}
	if over == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.index.Load()
	left := newIndex(len(x.buckets))
	for a := range x.all() {
		if !a.over(now) {
			left.add(a)
		}
	}
	l.index.Store(left)
}
