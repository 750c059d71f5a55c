package table

import (
	"bytes"
	"fmt"
	"math/bits"
	"strings"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// checkShape checks what shards and registries rely on.
func checkShape(tb testing.TB, t *Table) {
	tb.Helper()
	c := &t.contents
	if len(c.shards) != 1<<c.bits {
		tb.Fatalf("%d shards with %d bits", len(c.shards), c.bits)
	}
	hosts := map[string]int{}
	depths := map[string]*depthCounts{}
	links := 0
	plans := map[uint64]int{}
	for i := 0; i < len(c.shards); {
		s, span := c.shards[i], 1<<(c.bits-c.shards[i].depth)
		for _, same := range c.shards[i : i+span] {
			if same != s {
				tb.Fatalf("shard %d does not have its %d places", i, span)
			}
		}
		n, live := 0, 0
		s.each(func(_, size uint32, l *link.Compiled, value []byte) bool {
			h := link.HashKey(nameHash(l.Domain(value)), l.Path(value))
			var again link.Compiled
			if _, found := s.find(h, l.Domain(value), l.Path(value), &again); c.shard(h) != s || !bytes.Equal(found, value) {
				tb.Fatalf("link %s%s is not where it should be", l.Domain(value), l.Path(value))
			}
			hosts[string(l.Domain(value))]++
			if l.IsBare() {
				plans[l.PlanKey(value)]++
			}
			if path := l.Path(value); link.IsPrefix(path) {
				p := depths[string(l.Domain(value))]
				if p == nil {
					p = new(depthCounts)
					depths[string(l.Domain(value))] = p
				}
				p.n[link.Depth(path)]++
			}
			n, live = n+1, live+int(size)
			return true
		})
		if n != s.n || live != s.live() || bits.Len(uint(len(s.arena))) > int(s.offBits) && s.n > 0 || n > 0 && n >= len(s.index) {
			tb.Fatalf("shard %d: %d links of %d bytes, says %d of %d; %d offset bits, %d slots", i, n, live, s.n, s.live(), s.offBits, len(s.index))
		}
		if s.n > max(maxLinks, s.most) {
			tb.Fatalf("shard %d has %d links", i, s.n)
		}
		links += n
		i += span
	}
	if links != c.links {
		tb.Fatalf("%d links, says %d", links, c.links)
	}
	if len(plans) != c.plans.n {
		tb.Fatalf("%d plans, and links have %d", c.plans.n, len(plans))
	}
	c.plans.each(func(it *item[plan]) bool {
		if it.v.links != plans[it.hash] || it.v.compiled == nil {
			tb.Fatalf("plan %x has %d links, says %d", it.hash, plans[it.hash], it.v.links)
		}
		return true
	})
	items := 0
	c.hosts.each(func(it *item[host]) bool {
		items++
		if it.v.links != hosts[it.name] || it.v.links == 0 && it.v.domain == nil {
			tb.Fatalf("host %s has %d links, says %d", it.name, hosts[it.name], it.v.links)
		}
		got, want := it.v.counts, depths[it.name]
		if (got == nil) != (want == nil) || got != nil && got.n != want.n {
			tb.Fatalf("host %s has prefix links %+v, says %+v", it.name, want, got)
		}
		for d := range link.MaxPrefixDepth + 1 {
			if (want != nil && want.n[d] > 0) != (it.v.depths>>d&1 > 0) {
				tb.Fatalf("host %s has prefix links %+v, says %b", it.name, want, it.v.depths)
			}
		}
		delete(hosts, it.name)
		return true
	})
	if len(hosts) > 0 || items != c.hosts.n {
		tb.Fatalf("hosts are missing: %v", hosts)
	}
}

func TestHugeValuesSplitShardsByBytes(t *testing.T) {
	m := model{}
	b := NewBuilder(0)
	for i := range 300 {
		to := "https://shop.example/" + strings.Repeat("x", 8000)
		key, value := marshal(t, &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
			Domain: "a.example", Path: fmt.Sprintf("/%d", i), Destination: to, Fallback: to,
		}}})
		if err := b.Put([]byte(key), []byte(value)); err != nil {
			t.Fatal(err)
		}
		m[key] = value
	}
	table := b.Build(Version{})
	m.check(t, table)
	for _, s := range table.contents.shards {
		if s.n > minLinks && s.live() > maxLinks*linkBytes {
			t.Fatalf("a shard has %d links of %d bytes", s.n, s.live())
		}
	}
}

func TestLinksThatDifferOnlyInCaseDoNotSplitShardsForEver(t *testing.T) {
	const n = 1 << 13
	m := model{}
	b := NewBuilder(0)
	path := []byte("/abcdefghijklm")
	for i := range n {
		for j := range 13 {
			path[1+j] = 'a' + byte(j) - byte(i>>j&1)*0x20
		}
		key, value := aLink(t, "a.example", string(path), "https://shop.example/", "")
		m[key] = value
		if err := b.Put([]byte(key), []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		key, value := aLink(t, "a.example", fmt.Sprint("/", i), "https://shop.example/", "")
		m[key] = value
		if err := b.Put([]byte(key), []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	table := b.Build(Version{})
	if n := len(table.contents.shards); n > 8 {
		t.Errorf("%d shards", n)
	}
	checkShape(t, table)
	for _, asked := range []string{"/abcdefghijklm", "/ABCDEFGHIJKLM", "/aBcDefghijklm", "/7"} {
		m.checkLookup(t, table, m.fold(), "a.example", asked)
	}
}

func TestHostileHintCostsLittle(t *testing.T) {
	b := NewBuilder(1 << 62)
	if len(b.shards) > 1<<17 {
		t.Fatalf("%d shards", len(b.shards))
	}
}
