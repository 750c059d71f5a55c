package feed

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	"github.com/affleet/affleet/proto/link"
)

// Guard is what a node does not take, whoever sends it. The zero value stands
// for the defaults.
type Guard struct {
	// Percent of the links that one frame may remove. Default: 20. 100: all.
	Shrink int
	// How many times as many links there may be after one frame. Default: 10.
	Grow int
	// A node that holds fewer links than this takes any change. Default: 1000.
	Floor int
	// Entries in all. Default: 268,435,456.
	MaxEntries int64
	// Bytes of keys and values in all. Default: 32 GiB.
	MaxBytes int64
	// Bytes of the key and the value of one link: what is larger is held, and not
	// served. Default and at most: 1 MiB; nothing that is larger than that can be
	// held, and a frame with it is rejected.
	MaxEntryBytes int
}

// Validate says what is wrong with a guard.
func (g Guard) Validate() error {
	switch {
	case g.Shrink < 0 || g.Shrink > 100:
		return fmt.Errorf("guard-shrink: %d is not 1 to 100 percent", g.Shrink)
	case g.Grow < 0 || g.Grow == 1:
		return fmt.Errorf("guard-grow: %d is not 2 or more times", g.Grow)
	case g.Floor < 0:
		return fmt.Errorf("guard-floor: %d must not be negative", g.Floor)
	case g.MaxEntries < 0:
		return fmt.Errorf("max-entries: %d must not be negative", g.MaxEntries)
	case g.MaxBytes < 0:
		return fmt.Errorf("max-state-bytes: %d must not be negative", g.MaxBytes)
	case g.MaxEntryBytes < 0 || g.MaxEntryBytes > table.MaxHeld:
		return fmt.Errorf("max-entry-bytes: %d is not 1 to %d bytes", g.MaxEntryBytes, table.MaxHeld)
	}
	return nil
}

func (g *Guard) setDefaults() {
	setDefault(&g.Shrink, 20)
	setDefault(&g.Grow, 10)
	setDefault(&g.Floor, 1000)
	setDefault(&g.MaxEntries, 1<<28)
	setDefault(&g.MaxBytes, 32<<30)
	setDefault(&g.MaxEntryBytes, table.MaxHeld)
}

// setDefault sets what is not set.
func setDefault[T ~int | ~int64](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// holdable says whether entries are small enough to be held.
func holdable(list []pair) error {
	for _, e := range list {
		if n := e.size(); n > table.MaxHeld {
			return fmt.Errorf("%.300q takes %d bytes, and at most %d can be held", e.key, n, table.MaxHeld)
		}
	}
	return nil
}

// size says what is wrong with the size of a state.
func (g *Guard) size(entries, bytes int64) error {
	switch {
	case entries < 0 || bytes < 0:
		return errors.New("a negative number of entries or bytes")
	case entries > g.MaxEntries:
		return fmt.Errorf("%d entries, and at most %d are taken; see --max-entries", entries, g.MaxEntries)
	case bytes > g.MaxBytes:
		return fmt.Errorf("%d bytes, and at most %d are taken; see --max-state-bytes", bytes, g.MaxBytes)
	}
	return nil
}

// change says what is wrong with a change from what is held to next, of which
// removed links are no more there. A negative number is not known yet: it is
// found out if need be.
func (g *Guard) change(held *table.Table, next *table.Builder, removed int) error {
	before, after := held.LinkEntries(), next.LinkEntries()
	if before < g.Floor {
		return nil
	}
	if after > before && after/g.Grow >= before && after > before*g.Grow {
		return fmt.Errorf("the links grow from %d to %d, more than %d times; if that is meant, %s", before, after, g.Grow, releaseIt)
	}
	if g.Shrink == 100 {
		return nil
	}
	most := before * g.Shrink / 100
	if removed < 0 && before-after <= most && held.Hash() != next.Hash() {
		removed = countRemoved(held, next, most)
	}
	if removed = max(removed, before-after); removed > most {
		return fmt.Errorf("%d or more of %d links would be removed, more than %d%%; if that is meant, %s", removed, before, g.Shrink, releaseIt)
	}
	return nil
}

// takeDown says what is wrong with links that are deleted ahead of the version
// that deletes them, beside those that already are.
func (g *Guard) takeDown(held *table.Table, already, more int) error {
	if held == nil || more == 0 || g.Shrink == 100 || held.LinkEntries() < g.Floor {
		return nil
	}
	if before := held.LinkEntries(); already+more > before*g.Shrink/100 {
		return fmt.Errorf("%d of %d links would be gone ahead of the version that removes them, more than %d%%: %d wait for it; if that is meant, %s",
			already+more, before, g.Shrink, more, releaseIt)
	}
	return nil
}

const releaseIt = "run: affctl fleet release --version V"

// countRemoved counts the links that are held and will not be, until there are
// more than most.
func countRemoved(held *table.Table, next *table.Builder, most int) (removed int) {
	for key := range held.All() {
		if isLink(key) && !next.Has(key) {
			if removed++; removed > most {
				break
			}
		}
	}
	return removed
}

var linksPrefix = []byte(link.Links.Prefix())

func isLink(key []byte) bool { return bytes.HasPrefix(key, linksPrefix) }

// guarded rejects a frame that the guard does not let pass.
func guarded(k kind, v table.Version, why error) outcome {
	return reject(k, v, feedv1.RejectCode_REJECT_CODE_GUARDED, "revision %d is held back: %v", v.Revision, why)
}
