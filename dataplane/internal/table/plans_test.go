package table

import (
	"fmt"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// withPlan makes a link that shares what it says about rules, splits and query
// with the others of the same number.
func withPlan(i int, l *linkv1.Link) *linkv1.Resource {
	l.Rules = []*linkv1.Rule{{When: fmt.Sprintf(`country == "D%c"`, 'A'+i), Outcome: &linkv1.Rule_Destination{Destination: "https://rule.example/"}}}
	if i%2 == 0 {
		l.Splits = []*linkv1.Split{{Name: "a", Weight: 70, Destination: "https://a.example/"}, {Name: "b", Weight: 30, Destination: "https://b.example/"}}
	}
	if i%3 == 0 {
		l.Query = &linkv1.QueryPolicy{Mode: linkv1.QueryMode_QUERY_MODE_KEEP}
	}
	return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}}
}

// TestALinkThatSharesItsRulesTakesLittleMoreThanAPlainOne: three rules and a
// split are kept once, whatever the number of links.
func TestALinkThatSharesItsRulesTakesLittleMoreThanAPlainOne(t *testing.T) {
	const n = 50_000
	size := func(rules bool) (bytes int) {
		b := NewBuilder(n)
		for i := range n {
			l := &linkv1.Link{Domain: "go.example.com", Path: fmt.Sprintf("/go/%016d", i), Destination: fmt.Sprintf("https://store.example.com/p/%016d", i), Affiliate: "aff_0001"}
			r := &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}}
			if rules {
				withPlan(0, l)
				withPlan(i%8, l)
			}
			key, value := marshal(t, r)
			if err := b.Put([]byte(key), []byte(value)); err != nil {
				t.Fatal(err)
			}
		}
		table := b.Build(Version{})
		for i := 0; i < len(table.contents.shards); {
			s := table.contents.shards[i]
			bytes += cap(s.arena) + 4*cap(s.index)
			i += 1 << (table.contents.bits - s.depth)
		}
		if want := map[bool]int{true: 8}[rules]; table.contents.plans.n != want {
			t.Errorf("%d plans, want %d", table.contents.plans.n, want)
		}
		return bytes
	}
	plain, ruled := size(false), size(true)
	t.Logf("%.1f and %.1f bytes per link", float64(plain)/n, float64(ruled)/n)
	if float64(ruled) > 1.3*float64(plain) {
		t.Errorf("%d bytes with rules, %d without", ruled, plain)
	}
}

func TestPlansWithOneHashAreToldApart(t *testing.T) {
	// Another plan stands where the hash of the first one points.
	b := NewBuilder(0)
	_, one := marshal(t, withPlan(0, &linkv1.Link{Domain: "a.example", Path: "/1", Destination: "https://shop.example/"}))
	_, two := marshal(t, withPlan(1, &linkv1.Link{Domain: "a.example", Path: "/2", Destination: "https://shop.example/"}))
	plan := func(value string) *link.Plan {
		c, err := link.Compile([]byte(value))
		if err != nil {
			t.Fatal(err)
		}
		p, err := link.NewPlan(c.Plan([]byte(value)))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first, second := plan(one), plan(two)
	key := nameHash(first.Bytes())
	name := nameOfPlan(key)
	it := b.plans.edit(b.id, key, name[:])
	it.v.compiled, it.v.links = second, 1

	if got := b.holdPlan(first.Bytes(), first); got != key+1 {
		t.Fatalf("key %x, want the one behind %x", got, key)
	}
	b.releasePlan(key) // the other one goes, and the first is found all the same
	if got, p := b.findPlan(first.Bytes()); got != key+1 || p != first {
		t.Fatalf("key %x, plan %p", got, p)
	}
	b.releasePlan(key + 1)
	if _, p := b.findPlan(first.Bytes()); p != nil {
		t.Error("the plan is still there")
	}
}
