package visitor

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/gaissmai/bart"
	"github.com/zeebo/xxh3"

	"github.com/affleet/affleet/proto/link"
)

// Limits of a list of networks.
const (
	maxNetworksBytes = 64 << 20
	maxNetworks      = 1 << 20
)

// networks are the prefixes of one list.
type networks struct {
	name     string // with its version
	prefixes []netip.Prefix
}

// parseNetworks reads a list: an address or a prefix in CIDR form per line, in
// its canonical form. Empty lines, and what follows a "#", are passed over. It
// fails with every line that cannot be read.
func parseNetworks(name string, text []byte) (*networks, error) {
	n := &networks{name: listName(name, text)}
	var problems []error
	line := 0
	for entry := range bytes.Lines(text) {
		line++
		entry, _, _ = bytes.Cut(entry, []byte("#"))
		if entry = bytes.TrimSpace(entry); len(entry) == 0 {
			continue
		}
		if len(n.prefixes) == maxNetworks {
			problems = append(problems, fmt.Errorf("%s:%d: is more than %d prefixes", name, line, maxNetworks))
			break
		}
		prefix, err := link.ParsePrefix(string(entry))
		if err != nil {
			if e := (*link.Error)(nil); errors.As(err, &e) && e.Hint != "" {
				err = fmt.Errorf("%w: %s", err, e.Hint)
			}
			problems = append(problems, fmt.Errorf("%s:%d: %w", name, line, err))
			if len(problems) == maxProblems {
				break
			}
			continue
		}
		n.prefixes = append(n.prefixes, prefix)
	}
	if problems != nil {
		return nil, errors.Join(problems...)
	}
	if len(n.prefixes) == 0 {
		return nil, fmt.Errorf("%s: has no network: write one prefix per line, such as 192.0.2.0/24", name)
	}
	return n, nil
}

// listName is what a list that an operator has made is called in the reason of a
// label: its file and the hash of what that holds.
func listName(path string, text []byte) string {
	base := strings.Map(func(r rune) rune {
		if r <= ' ' || r == 0x7f {
			return '_'
		}
		return r
	}, filepath.Base(path))
	return fmt.Sprintf("%.64s %016x", base, xxh3.Hash(text))
}

// centres are the networks of all lists: which list has them.
type centres struct {
	byPrefix bart.Table[uint8]
	names    [][]byte
}

// joinNetworks makes one of all lists. Of several that have a prefix, the first
// counts, and the longest prefix before any other.
func joinNetworks(lists []*source[networks]) *centres {
	c := new(centres)
	for _, l := range lists {
		n := l.current.Load()
		if n == nil {
			continue
		}
		i := uint8(len(c.names)) // New sees to it that there are no more
		c.names = append(c.names, []byte(n.name))
		for _, p := range n.prefixes {
			c.byPrefix.Modify(p, func(was uint8, ok bool) (uint8, bool) {
				if ok {
					return was, false
				}
				return i, false
			})
		}
	}
	return c
}

// MaxDatacenters is how many lists of data centres there may be.
const MaxDatacenters = 64

// Datacenter gives the list, with its version, that has the network of an
// address; nil if none has. It does not allocate.
func (s *Sources) Datacenter(addr netip.Addr) []byte {
	c := s.centres.Load()
	if c == nil || !addr.IsValid() {
		return nil
	}
	i, ok := c.byPrefix.Lookup(addr.Unmap().WithZone(""))
	if !ok {
		return nil
	}
	return c.names[i]
}
