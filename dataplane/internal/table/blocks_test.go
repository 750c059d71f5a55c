package table

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// blockedPrefixes are some of which many are within others, of every length at
// which the strides of the trie end or begin.
var blockedPrefixes = func() (all []string) {
	for _, of := range []string{"10.1.2.3", "10.1.130.200", "203.0.113.9", "2001:db8:1:2::3", "2001:db8:1:8000::1"} {
		addr := netip.MustParseAddr(of)
		for _, bits := range []int{1, 7, 8, 9, 12, 15, 16, 17, 23, 24, 25, 31, 32, 33, 48, 63, 64, 65, 127, 128} {
			if bits <= addr.BitLen() {
				p, _ := addr.Prefix(bits)
				all = append(all, p.String())
			}
		}
	}
	return all
}()

var blockedAgents = []string{"bad/1.0", "bad/2.0", "Mozilla/5.0 (bad)"}

// aBlock makes a block out of a small world.
func aBlock(tb testing.TB, r *rand.Rand) (key, value string) {
	b := &linkv1.Block{Id: fmt.Sprintf("b%d", r.IntN(60)), Reason: fmt.Sprint("why ", r.IntN(3)), Action: linkv1.BlockAction(r.IntN(5))}
	switch r.IntN(4) {
	case 0:
		b.Match = &linkv1.Block_UserAgent{UserAgent: blockedAgents[r.IntN(len(blockedAgents))]}
	case 1:
		b.Match = &linkv1.Block_Affiliate{Affiliate: fmt.Sprintf("aff_%d", r.IntN(3))}
	default:
		b.Match = &linkv1.Block_Prefix{Prefix: blockedPrefixes[r.IntN(len(blockedPrefixes))]}
	}
	if r.IntN(2) == 0 {
		b.Ttl, b.ExpireTime = durationpb.New(time.Hour), timestamppb.New(time.Unix(1e9, 0))
	}
	return marshal(tb, &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: b}})
}

func aPolicy(tb testing.TB, r *rand.Rand) (key, value string) {
	scope := []string{"*", "domains/*", "domains/a.example", "domains/b.example", "affiliates/aff_1", "affiliates/aff_2"}[r.IntN(6)]
	p := &linkv1.Policy{Scope: scope, Off: scope == "*" && r.IntN(2) == 0}
	for i := range link.NumLabels {
		if r.IntN(3) == 0 {
			p.Labels = append(p.Labels, &linkv1.LabelPolicy{Label: i.String(), Action: linkv1.BlockAction(1 + r.IntN(4))})
		}
	}
	return marshal(tb, &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: p}})
}

// checkBlocks compares what a table finds of blocks and policies with what the
// model has, one by one.
func (m model) checkBlocks(tb testing.TB, t *Table) {
	tb.Helper()
	var all []*link.Block
	scopes := map[string]bool{}
	for key := range m {
		value, ok := m.served(key)
		if !ok {
			continue
		}
		switch kind, id, _ := link.ParseName(key); kind {
		case link.Blocks:
			b, err := link.CompileBlock([]byte(value))
			if err != nil {
				tb.Fatal(err)
			}
			all = append(all, b)
		case link.Policies:
			scopes[id] = true
		}
	}
	if t.Blocks() != len(all) {
		tb.Fatalf("%d blocks, want %d", t.Blocks(), len(all))
	}
	for _, address := range append([]string{"10.1.2.4", "203.0.113.1", "192.0.2.1", "2001:db8:1:2::4", "::1", "2001:db8::"}, blockedPrefixes...) {
		var addr netip.Addr
		if p, err := netip.ParsePrefix(address); err == nil {
			addr = p.Addr()
		} else {
			addr = netip.MustParseAddr(address)
		}
		checkFound(tb, all, t, addr, "", "")
	}
	for _, agent := range append([]string{"", "bad/3.0"}, blockedAgents...) {
		checkFound(tb, all, t, netip.Addr{}, agent, "aff_1")
		checkFound(tb, all, t, netip.MustParseAddr("10.1.2.3"), agent, "nobody")
	}
	for _, host := range []string{"a.example", "b.example", "c.example"} {
		for _, affiliate := range []string{"", "aff_1", "aff_2", "aff_3"} {
			in := t.Policies([]byte(host), []byte(affiliate))
			domain := "domains/" + host
			if !scopes[domain] {
				domain = "domains/*"
			}
			checkScope(tb, scopes, in.Any, "*")
			checkScope(tb, scopes, in.Domain, domain)
			checkScope(tb, scopes, in.Affiliate, "affiliates/"+affiliate)
		}
	}
}

func checkScope(tb testing.TB, scopes map[string]bool, got *link.LabelPolicies, scope string) {
	tb.Helper()
	if (got != nil) != scopes[scope] || got != nil && got.Scope != scope {
		tb.Fatalf("the policy of %s is %+v", scope, got)
	}
}

func checkFound(tb testing.TB, all []*link.Block, t *Table, addr netip.Addr, agent, affiliate string) {
	tb.Helper()
	want, got := map[string]bool{}, map[string]bool{}
	for _, b := range all {
		if b.Prefix.IsValid() && b.Prefix.Contains(addr) || b.UserAgent != "" && b.UserAgent == agent || b.Affiliate != "" && b.Affiliate == affiliate {
			want[b.ID] = true
		}
	}
	found := t.AppendBlocks(nil, addr, []byte(agent), []byte(affiliate))
	longest := 129
	for _, b := range found {
		if b.Prefix.IsValid() {
			if b.Prefix.Bits() > longest {
				tb.Fatalf("%v comes behind a shorter one", b.Prefix)
			}
			longest = b.Prefix.Bits()
		}
		got[b.ID] = true
	}
	if len(found) != len(got) || fmt.Sprint(want) != fmt.Sprint(got) {
		tb.Fatalf("blocks for %v, %q, %q are %v, want %v", addr, agent, affiliate, got, want)
	}
}

func TestBlocksAreFoundByWhatTheyMatchInEveryVersion(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	table, m := NewBuilder(0).Build(Version{}), model{}
	type version struct {
		table *Table
		model model
	}
	var kept []version
	for i := range 300 {
		b := table.Edit()
		for range 1 + r.IntN(8) {
			key, value := aBlock(t, r)
			switch n := r.IntN(10); {
			case n < 3:
				b.Delete([]byte(key))
				delete(m, key)
				continue
			case n == 3:
				value = broken
			case n == 4:
				key, value = aPolicy(t, r)
			}
			m.put(t, b, []byte(key), []byte(value))
			m[key] = value
		}
		table = b.Build(Version{})
		m.checkBlocks(t, table)
		if i%30 == 0 {
			kept = append(kept, version{table, maps.Clone(m)})
		}
	}
	for _, v := range kept { // no later version has changed an older one
		v.model.check(t, v.table)
	}
	b := table.Edit()
	for key := range m {
		if !b.Delete([]byte(key)) || b.Delete([]byte(key)) {
			t.Fatalf("%s was not deleted once", key)
		}
	}
	model{}.check(t, b.Build(Version{}))
	m.check(t, table)
}

func TestFindingBlocksAllocatesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	b := NewBuilder(0)
	for range 300 {
		for _, make := range []func(testing.TB, *rand.Rand) (string, string){aBlock, aPolicy} {
			key, value := make(t, r)
			if err := b.Put([]byte(key), []byte(value)); err != nil {
				t.Fatal(err)
			}
		}
	}
	table := b.Build(Version{})
	dst := make([]*link.Block, 0, 64)
	addr, agent, affiliate, host := netip.MustParseAddr("10.1.2.3"), []byte(blockedAgents[0]), []byte("aff_1"), []byte("a.example")
	if len(table.AppendBlocks(dst, addr, agent, affiliate)) < 5 {
		t.Fatal("hardly a block matches")
	}
	if allocs := testing.AllocsPerRun(100, func() {
		dst = table.AppendBlocks(dst[:0], addr, agent, affiliate)
		table.Policies(host, affiliate)
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// datacenter gives prefixes as lists of data centres have them: of all lengths.
func datacenter(i int) string {
	addr := netip.AddrFrom4([4]byte{byte(1 + i%200), byte(i / 200), byte(i / 51200 * 16), byte(i * 37)})
	p, _ := addr.Prefix([]int{20, 22, 24, 24, 24, 28, 32}[i%7])
	return p.String()
}

// BenchmarkBlocks is about 300,000 blocks of prefixes.
func BenchmarkBlocks(b *testing.B) {
	const n = 300_000
	keys, values := make([][]byte, n), make([][]byte, n)
	for i := range n {
		key, value := marshal(b, &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{
			Id: fmt.Sprintf("dc.%d", i), Match: &linkv1.Block_Prefix{Prefix: datacenter(i)}, Reason: "example cloud", Label: "datacenter",
		}}})
		keys[i], values[i] = []byte(key), []byte(value)
	}
	build := func() *Table {
		builder := NewBuilder(0)
		builder.PutAll(n, func(i int) ([]byte, []byte) { return keys[i], values[i] }, func(_ int, err error) { b.Fatal(err) })
		return builder.Build(Version{})
	}
	b.Run("build", func(b *testing.B) {
		for b.Loop() {
			build()
		}
	})
	before := heapInUse()
	table := build()
	perBlock := float64(heapInUse()-before) / n
	b.Run("memory", func(b *testing.B) {
		for b.Loop() {
			runtime.KeepAlive(table)
		}
		b.ReportMetric(perBlock, "B/block")
		b.ReportMetric(0, "ns/op")
	})
	b.Run("delta", func(b *testing.B) {
		at := table
		for i := 0; b.Loop(); i++ {
			edit := at.Edit()
			key := keys[i%n]
			edit.Delete(key)
			if err := edit.Put(key, values[i%n]); err != nil {
				b.Fatal(err)
			}
			at = edit.Build(Version{})
		}
	})
	for _, kind := range []string{"one address", "addresses at random"} {
		b.Run("lookup/"+kind, func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 2))
			addrs := make([]netip.Addr, 1<<16)
			for i := range addrs {
				addrs[i] = netip.AddrFrom4([4]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
			}
			if kind == "one address" {
				addrs = addrs[:1]
			}
			var dst []*link.Block
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				dst = table.AppendBlocks(dst[:0], addrs[i%len(addrs)], nil, nil)
			}
		})
	}
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
