package snapshot

import (
	"strings"
	"time"

	"github.com/affleet/affleet/proto/link"
)

// Version is a state of the fleet. The zero value is no state.
type Version struct {
	Epoch    uint64
	Revision int64
}

// mark is a state that the log knows: its revision and what is in it.
type mark struct {
	revision int64
	hash     link.SetHash
	entries  int64
	links    int64
	bytes    int64     // of keys and values
	at       time.Time // when this replica reached it
}

// record is what one revision changed. It never changes.
type record struct {
	mark           // the state after it
	from     int64 // the revision before it
	since    int64 // the changes came after this one: less than the revision before it where several were read at once
	changes  []change
	released bool   // by an operator or by who wrote it: nodes' guards let it pass
	frame    *Frame // nil: too large to be sent as a delta
	memory   int64  // bytes
	cum      int64  // memory of this record and all before it, since the start
}

// change is one key of a record.
type change struct {
	key   string
	entry entry // "": deleted
	had   bool  // the key was there before
}

// deleted counts the links that were there before the record and are not behind it.
func (r *record) deleted() (n int64) {
	for i := range r.changes {
		if c := &r.changes[i]; c.had && c.entry == "" && strings.HasPrefix(c.key, linkPrefix) {
			n++
		}
	}
	return n
}

// payload is what the change adds to a delta.
func (c *change) payload() string {
	if c.entry != "" {
		return c.entry.wire()
	}
	return c.key
}

// changesMemory is about what changes take in memory, in bytes, without frame.
func changesMemory(changes []change) int64 {
	n := int64(256)
	for i := range changes {
		n += 64 + int64(len(changes[i].payload()))
	}
	return n
}

// coalesce gives the latest value of each key that records change. A key that
// was not there before and is not after does not appear. It stops, after at
// least one record, where the result would pass limit bytes (0: no limit), and
// returns how many records are in it.
func coalesce(records []*record, limit int64) (changes []change, used int, bytes int64) {
	index := make(map[string]int)
	for _, r := range records {
		size := bytes
		for i := range r.changes {
			size += int64(len(r.changes[i].payload()))
		}
		if limit > 0 && size > limit && used > 0 {
			break
		}
		for i := range r.changes {
			c := &r.changes[i]
			at, ok := index[c.key]
			if !ok {
				index[c.key] = len(changes)
				changes = append(changes, *c)
			} else {
				bytes -= int64(len(changes[at].payload()))
				changes[at].entry = c.entry
				changes[at].key = c.key
			}
			bytes += int64(len(c.payload()))
		}
		used++
	}
	kept := changes[:0]
	for _, c := range changes {
		if c.entry != "" || c.had {
			kept = append(kept, c)
		}
	}
	return kept, used, bytes
}
