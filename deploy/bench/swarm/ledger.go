package swarm

import (
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/proto"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// state is what a node holds: the zero value is nothing.
type state struct {
	epoch    uint64
	revision int64
	hash     link.SetHash
}

func stateOf(v *linkv1.Version, h *feedv1.SetHash) state {
	return state{v.GetEpoch(), v.GetRevision(), link.SetHash{Hi: h.GetHi(), Lo: h.GetLo()}}
}

func (s state) version() *linkv1.Version {
	return &linkv1.Version{Epoch: s.epoch, Revision: s.revision}
}

func (s state) setHash() *feedv1.SetHash { return &feedv1.SetHash{Hi: s.hash.Hi, Lo: s.hash.Lo} }

// ledger is what the nodes of a swarm share: the hash of every entry at every
// version that one of them has reached, and what became of each message. The
// first node that is sent a message verifies it entry by entry; another one that
// holds the same state and is sent the same bytes (by their XXH3-128) comes to
// the same result.
//
// It may be used by any number of goroutines.
type ledger struct {
	mu      sync.Mutex
	entries map[uint64]history // by the XXH3-64 of the key
	known   map[memo]*verdict
	order   []memo // of known, oldest first
}

// history is the hash of an entry, or zero where it was deleted, by revision,
// oldest first.
type history struct {
	revision int64
	hash     link.SetHash
	later    []mark
}

type mark struct {
	revision int64
	hash     link.SetHash
}

// memo is a message to a node in a state.
type memo struct {
	held    state
	message xxh3.Uint128
}

// verdict is what a message is. At most one of the pointers is set.
type verdict struct {
	after   state  // after a delta that verifies
	applied []byte // the answer to it

	begin     *feedv1.SnapshotBegin
	chunk     *chunk
	end       *feedv1.SnapshotEnd
	heartbeat bool
	behind    *feedv1.Behind
	takeDown  []byte // the answer to it
	later     *time.Duration
	err       error // it does not verify
}

// chunk is a part of a snapshot.
type chunk struct {
	sum     link.SetHash
	entries int64
}

// keep is how many messages are remembered.
const keep = 1 << 12

func newLedger() *ledger {
	return &ledger{entries: make(map[uint64]history), known: make(map[memo]*verdict)}
}

// judge says what a message is to a node. Into is the revision that a snapshot
// under way leads to.
func (l *ledger) judge(held state, into int64, message []byte) *verdict {
	m := memo{held, xxh3.Hash128(message)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.known[m]; v != nil {
		return v
	}
	v := l.decide(held, into, message)
	if len(l.order) == keep {
		delete(l.known, l.order[0])
		l.order = l.order[1:]
	}
	l.known[m] = v
	l.order = append(l.order, m)
	return v
}

func (l *ledger) decide(held state, into int64, message []byte) *verdict {
	var m feedv1.SubscribeResponse
	if err := proto.Unmarshal(message, &m); err != nil {
		return &verdict{err: err}
	}
	switch f := m.GetFrame().(type) {
	case *feedv1.SubscribeResponse_Delta:
		return l.delta(held, f.Delta)
	case *feedv1.SubscribeResponse_SnapshotBegin:
		return &verdict{begin: f.SnapshotBegin}
	case *feedv1.SubscribeResponse_SnapshotChunk:
		return l.chunk(into, f.SnapshotChunk)
	case *feedv1.SubscribeResponse_SnapshotEnd:
		return &verdict{end: f.SnapshotEnd}
	case *feedv1.SubscribeResponse_Behind:
		return &verdict{behind: f.Behind}
	case *feedv1.SubscribeResponse_RetryLater:
		d := f.RetryLater.GetAfter().AsDuration()
		return &verdict{later: &d}
	case *feedv1.SubscribeResponse_TakeDown:
		return &verdict{takeDown: mustMarshal(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_TakenDown{
			TakenDown: &feedv1.TakenDown{Version: f.TakeDown.GetVersion()},
		}})}
	}
	return &verdict{heartbeat: m.GetHeartbeat() != nil}
}

// delta verifies a delta against the entries as they are at the version held.
func (l *ledger) delta(held state, d *feedv1.Delta) *verdict {
	if d.GetFrom().GetEpoch() != held.epoch || d.GetFrom().GetRevision() != held.revision || d.GetTo().GetRevision() <= held.revision {
		return &verdict{err: fmt.Errorf("a delta from %v to %v for a node at %d", d.GetFrom(), d.GetTo(), held.revision)}
	}
	after := stateOf(d.GetTo(), d.GetSetHash())
	hash := held.hash
	change := func(key string, value []byte, deleted bool) {
		id, now := xxh3.HashString(key), link.SetHash{}
		if !deleted {
			now = link.HashEntry([]byte(key), value)
		}
		hash = hash.Sub(l.entries[id].at(held.revision)).Add(now)
		l.entries[id] = l.entries[id].with(after.revision, now)
	}
	for _, key := range d.GetDeletes() {
		change(key, nil, true)
	}
	for _, e := range d.GetPuts() {
		change(e.GetKey(), e.GetValue(), false)
	}
	if hash != after.hash {
		return &verdict{err: fmt.Errorf("after the delta to revision %d the set hash is %x, not %x", after.revision, hash, after.hash)}
	}
	return &verdict{after: after, applied: appliedMessage(after, d.GetEntries())}
}

func (l *ledger) chunk(into int64, c *feedv1.SnapshotChunk) *verdict {
	if c.GetCompression() == feedv1.Compression_COMPRESSION_S2 {
		plain, err := s2.Decode(nil, c.GetCompressed())
		if err != nil {
			return &verdict{err: err}
		}
		c = new(feedv1.SnapshotChunk)
		if err := proto.Unmarshal(plain, c); err != nil {
			return &verdict{err: err}
		}
	}
	v := &verdict{chunk: &chunk{entries: int64(len(c.GetEntries()))}}
	for _, e := range c.GetEntries() {
		id, hash := xxh3.HashString(e.GetKey()), link.HashEntry([]byte(e.GetKey()), e.GetValue())
		v.chunk.sum = v.chunk.sum.Add(hash)
		l.entries[id] = l.entries[id].with(into, hash)
	}
	return v
}

// at is the entry's hash at a revision.
func (h history) at(revision int64) link.SetHash {
	i := sort.Search(len(h.later), func(i int) bool { return h.later[i].revision > revision })
	switch {
	case i > 0:
		return h.later[i-1].hash
	case h.revision <= revision:
		return h.hash
	}
	return link.SetHash{}
}

// with notes the entry's hash at a revision.
func (h history) with(revision int64, hash link.SetHash) history {
	if h.revision == 0 || h.revision == revision {
		h.revision, h.hash = revision, hash
		return h
	}
	if revision < h.revision {
		h.revision, h.hash, revision, hash = revision, hash, h.revision, h.hash
	}
	i := sort.Search(len(h.later), func(i int) bool { return h.later[i].revision >= revision })
	if i < len(h.later) && h.later[i].revision == revision {
		h.later[i].hash = hash
		return h
	}
	h.later = append(h.later, mark{})
	copy(h.later[i+1:], h.later[i:])
	h.later[i] = mark{revision, hash}
	return h
}

func appliedMessage(s state, entries int64) []byte {
	return mustMarshal(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Applied{
		Applied: &feedv1.Applied{Version: s.version(), SetHash: s.setHash(), Links: entries},
	}})
}

func mustMarshal(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic("BUG: marshal: " + err.Error())
	}
	return b
}
