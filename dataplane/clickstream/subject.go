package clickstream

import (
	"fmt"
	"strings"
)

// Where clicks are.
const (
	StreamName = "AFF_CLICKS"
	Subjects   = "aff.clicks.v1.>" // of all nodes
	prefix     = "aff.clicks.v1."
)

// Subject is where one node publishes: "aff.clicks.v1.<region>.<node>". A byte
// of a name that is not a letter, digit, "-" or "_" stands as "=" and two hex
// digits, and an empty name as "=".
func Subject(region, node string) string { return prefix + token(region) + "." + token(node) }

// RegionSubjects matches the subjects of one region's nodes.
func RegionSubjects(region string) string { return prefix + token(region) + ".*" }

func token(name string) string {
	plain := func(c byte) bool {
		return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
	}
	if name == "" {
		return "="
	}
	var b strings.Builder
	for i := range len(name) {
		if plain(name[i]) {
			b.WriteByte(name[i])
		} else {
			fmt.Fprintf(&b, "=%02X", name[i])
		}
	}
	return b.String()
}
