package cli

import (
	"strings"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func TestBlocksOfOneMatchHaveOneID(t *testing.T) {
	seen := map[string]string{}
	for _, text := range []string{"10.0.0.1", "10.0.0.0/31", "10.0.0.0/8", "2001:db8::", "2001:db8::/32", "2001:db8:0:1::/64", "2001:db8::1"} {
		b := &linkv1.Block{Reason: "r"}
		if err := setPrefix(b, text); err != nil {
			t.Fatal(err)
		}
		b.Id = matchID(b)
		if err := link.Validate(&linkv1.Resource{Kind: &linkv1.Resource_Block{Block: b}}); err != nil {
			t.Error(err)
		}
		if other := seen[b.GetId()]; other != "" {
			t.Errorf("%s and %s have the id %s", text, other, b.GetId())
		}
		seen[b.GetId()] = text
	}
	one, same := &linkv1.Block{}, &linkv1.Block{}
	if setPrefix(one, "10.0.0.1") != nil || setPrefix(same, "10.0.0.1/32") != nil || matchID(one) != matchID(same) || !sameMatch(one, same) {
		t.Errorf("%v and %v are two", one, same)
	}
	long := &linkv1.Block{Match: &linkv1.Block_Affiliate{Affiliate: strings.Repeat("a", link.MaxIdentifier)}}
	if id := matchID(long); len(id) > link.MaxIdentifier || id == "" {
		t.Errorf("id %q", id)
	}
}

// FuzzBlockList reads any list: each line becomes a valid block, or nothing is
// written and a line is named.
func FuzzBlockList(f *testing.F) {
	for _, text := range []string{"10.0.0.0/8\n", "\ufeff2001:db8::/32 # a\r\n\r\n#b", "10.0.0.1/8\n0.0.0.0/0", strings.Repeat("1", 5000), "\x00\n10.0.0.1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b := &blocking{block: &linkv1.Block{Reason: "r"}}
		rows, err := b.read(strings.NewReader(text), "list")
		if (err == nil) != (len(rows) > 0) {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		seen := map[string]bool{}
		for _, r := range rows {
			if err := link.Validate(r.resource); err != nil || seen[r.resource.GetBlock().GetId()] {
				t.Fatalf("line %d: %v, %v", r.place.line, r.resource, err)
			}
			seen[r.resource.GetBlock().GetId()] = true
		}
	})
}

// FuzzDetectorSettings reads any settings: those that are taken are valid, but for
// what contradicts itself, which the control plane says.
func FuzzDetectorSettings(f *testing.F) {
	for _, text := range []string{"flood=refuse,min-confidence=0.99,ttl=2h", "timing=findings-only", "entropy=", "flood=label,affiliates", "flood=min-confidence=NaN", "flood=ttl=-1d"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		g := &linkv1.GuardPolicy{}
		if setDetector(g, text) != nil {
			return
		}
		for _, d := range g.GetDetectors() {
			d.MayBlockAffiliates = d.GetMayBlockAffiliates() && !d.GetFindingsOnly()
		}
		p := &linkv1.Policy{Scope: "*", Guard: g}
		if err := link.Validate(&linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: p}}); err != nil {
			t.Fatalf("%q is taken: %v", text, err)
		}
	})
}
