package feed

import (
	"fmt"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/encoding/protowire"
)

// changes are the entries of a delta, aliasing it. They are used for one after
// the other: what an import allocates is what the collector runs for, and at a
// node it runs often.
type changes struct {
	puts    []pair
	deletes [][]byte
	seen    map[xxh3.Uint128]struct{}
}

// keptChanges is how many entries there is room for between deltas.
const keptChanges = 4096

// read reads the entries of a Delta.
func (c *changes) read(delta []byte) error {
	return eachField(delta, func(num protowire.Number, _ uint64, b []byte) error {
		switch num {
		case fieldDeltaPuts:
			key, value, err := decodeEntry(b)
			c.puts = append(c.puts, pair{key, value})
			return err
		case fieldDeltaDeletes:
			c.deletes = append(c.deletes, b)
		}
		return nil
	})
}

// unique says which key is there twice.
func (c *changes) unique() error {
	n := len(c.puts) + len(c.deletes)
	if n == 1 {
		return nil
	}
	if c.seen == nil {
		c.seen = make(map[xxh3.Uint128]struct{}, n)
	}
	for _, e := range c.puts {
		if err := c.see(e.key); err != nil {
			return err
		}
	}
	for _, key := range c.deletes {
		if err := c.see(key); err != nil {
			return err
		}
	}
	return nil
}

func (c *changes) see(key []byte) error {
	n := len(c.seen)
	if c.seen[xxh3.Hash128(key)] = struct{}{}; len(c.seen) == n {
		return fmt.Errorf("%.300q is there twice", key)
	}
	return nil
}

// forget lets go of the delta.
func (c *changes) forget() {
	if cap(c.puts) > keptChanges || cap(c.deletes) > keptChanges || len(c.seen) > keptChanges {
		*c = changes{}
		return
	}
	clear(c.puts)
	clear(c.deletes)
	c.puts, c.deletes = c.puts[:0], c.deletes[:0]
	if len(c.seen) > 0 {
		clear(c.seen)
	}
}
