package table

import (
	"bytes"
	"fmt"
)

// Entries that cannot be served, because they do not compile or this release
// does not know what they ask for, are held: they belong to the state like the
// others, so that its hash and its count stay what everybody says they are, and
// a later release finds them in the file that this one has written.

// MaxHeld bounds the value of an entry that is held, in bytes. It is more than
// link.MaxValue, because a later release may allow more.
const MaxHeld = 1 << 20

// Hold puts an entry that is not served, in place of the one with this key. Both
// are copied. It is an error, and changes nothing, if the key has not the shape
// of a name or the value is too long.
func (b *Builder) Hold(key, value []byte) error {
	b.check()
	switch {
	case !hasShape(key):
		return putError(key, errNoName)
	case len(value) > MaxHeld:
		return putError(key, fmt.Errorf("takes %d bytes, and at most %d are held", len(value), MaxHeld))
	}
	b.Delete(key)
	it := b.held.edit(b.id, nameHash(key), key)
	it.v = append([]byte{}, value...)
	if isLinkKey(key) {
		b.heldLinks++
	}
	b.account(key, nil, false, value)
	return nil
}

// unhold deletes an entry that is held, and says whether there was one.
func (b *Builder) unhold(key []byte) bool {
	if b.held.n == 0 {
		return false
	}
	it := b.held.get(nameHash(key), key)
	if it == nil {
		return false
	}
	b.discount(key, it.v)
	b.held.remove(b.id, it.hash, key)
	if isLinkKey(key) {
		b.heldLinks--
	}
	return true
}

// Has says whether there is an entry with a key, held or served.
func (b *Builder) Has(key []byte) bool { return b.has(key) }

// Has says whether there is an entry with a key, held or served.
func (t *Table) Has(key []byte) bool { return t.contents.has(key) }

func isLinkKey(key []byte) bool { return bytes.HasPrefix(key, []byte(linksPrefix)) }

// hasShape says that a key has the shape of a name: a kind and an id.
func hasShape(key []byte) bool {
	kind, id, ok := bytes.Cut(key, []byte{'/'})
	return ok && len(kind) > 0 && len(id) > 0 && len(key) <= maxOpaqueKey
}
