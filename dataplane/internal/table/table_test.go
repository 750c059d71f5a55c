package table

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// small is a table with one of everything.
func small(tb testing.TB) (*Table, model) {
	m := model{}
	add := func(key, value string) { m[key] = value }
	add(aLink(tb, "a.example", "/x", "https://shop.example/a", "aff_1"))
	add(aLink(tb, "a.example", "/fallen", "https://shop.example/f", "nobody"))
	add(aLink(tb, "*", "/x", "https://shop.example/any", ""))
	add(aLink(tb, "*", "/only", "https://shop.example/only", ""))
	add(aDomain(tb, "*", "https://shop.example/"))
	add(aLink(tb, "*", "/p/*", "https://shop.example/p", ""))
	add(aLink(tb, "b.example", "/X", "https://shop.example/X", ""))
	add(aLink(tb, "b.example", "/p/Q/*", "https://shop.example/q", "aff_1"))
	add(marshal(tb, &linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{
		Host: "b.example", NotFound: "https://b.example/", CasePolicy: linkv1.CasePolicy_CASE_POLICY_IGNORE,
		TrailingSlash: linkv1.TrailingSlashPolicy_TRAILING_SLASH_POLICY_IGNORE,
	}}}))
	add(anAffiliate(tb, "aff_1", "One"))
	add(unknownKind+"/x", "\xff\x00not to be read")
	b := NewBuilder(len(m))
	for key, value := range m {
		if err := b.Put([]byte(key), []byte(value)); err != nil {
			tb.Fatal(err)
		}
	}
	return b.Build(Version{1, 2}), m
}

func TestLookupFollowsTheOrderOfCandidates(t *testing.T) {
	table, m := small(t)
	m.check(t, table)
	for _, host := range []string{"a.example", "b.example", "c.example", "*", "", "A.EXAMPLE", strings.Repeat("x", 4000)} {
		for _, path := range []string{"/x", "/only", "/fallen", "/", "", "x", "/x/", "\x00", strings.Repeat("/x", 9000)} {
			m.checkLookup(t, table, m.fold(), host, path)
		}
	}
}

func TestLinkOfAnUnknownAffiliateIsServed(t *testing.T) {
	table, _ := small(t)
	var m link.Match
	table.Lookup([]byte("a.example"), []byte("/fallen"), &m)
	if m.Value == nil || m.Affiliate != nil {
		t.Fatalf("got %+v", m)
	}
	b := table.Edit()
	if err := b.Put(bytesOf(anAffiliate(t, "nobody", "Somebody"))); err != nil {
		t.Fatal(err)
	}
	next := b.Build(Version{})
	next.Lookup([]byte("a.example"), []byte("/fallen"), &m)
	if m.Affiliate == nil || m.Affiliate.ID != "nobody" {
		t.Fatalf("affiliate is %+v after it came", m.Affiliate)
	}
	table.Lookup([]byte("a.example"), []byte("/fallen"), &m)
	if m.Affiliate != nil {
		t.Fatalf("the older table knows %+v", m.Affiliate)
	}
}

func bytesOf(key, value string) ([]byte, []byte) { return []byte(key), []byte(value) }

func TestPutRefusesWhatIsWrongAndChangesNothing(t *testing.T) {
	linkKey, linkValue := aLink(t, "a.example", "/new", "https://shop.example/", "")
	_, domainValue := aDomain(t, "c.example", "")
	_, affiliateValue := anAffiliate(t, "aff_9", "")
	_, badRule := marshal(t, &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
		Domain: "a.example", Path: "/new", Destination: "https://shop.example/",
		Rules: []*linkv1.Rule{{When: "contry == 'DE'", Outcome: &linkv1.Rule_Destination{Destination: "https://shop.example/"}}},
	}}})
	for name, c := range map[string]struct{ key, value string }{
		"empty key":              {"", linkValue},
		"no kind":                {"/new", linkValue},
		"no id":                  {unknownKind + "/", linkValue},
		"kind alone":             {"links", linkValue},
		"key of another link":    {"links/a.example/old", linkValue},
		"key cut short":          {linkKey[:len(linkKey)-1], linkValue},
		"key too long":           {linkKey + "x", linkValue},
		"key of another kind":    {"domains/a.example", linkValue},
		"link for an affiliate":  {"affiliates/a.example", linkValue},
		"domain for a link":      {linkKey, domainValue},
		"another domain":         {"domains/d.example", domainValue},
		"another affiliate":      {"affiliates/aff_8", affiliateValue},
		"affiliate for a block":  {"blocks/aff_9", affiliateValue},
		"block without id":       {"blocks/", affiliateValue},
		"empty value":            {linkKey, ""},
		"torn value":             {linkKey, linkValue[:len(linkValue)-3]},
		"noise":                  {linkKey, "\xff\xfe\xfd"},
		"noise for a domain":     {"domains/c.example", "\xff\xfe\xfd"},
		"noise for an affiliate": {"affiliates/aff_9", "\xff\xfe\xfd"},
		"noise for a block":      {"blocks/b", "\xff\xfe\xfd"},
		"affiliate for a policy": {"policies/*", affiliateValue},
		"policy of no scope":     {"policies/everybody", affiliateValue},
		"rule of unknown names":  {linkKey, badRule},
		"too long":               {unknownKind + "/y", strings.Repeat("x", link.MaxValue+1)},
		"opaque key too long":    {unknownKind + "/" + strings.Repeat("y", maxOpaqueKey), "x"},
	} {
		t.Run(name, func(t *testing.T) {
			table, m := small(t)
			b := table.Edit()
			err := b.Put([]byte(c.key), []byte(c.value))
			if err == nil {
				t.Fatal("it was put")
			}
			if len(c.key) < 200 && !strings.Contains(err.Error(), fmt.Sprintf("%q", c.key)) {
				t.Errorf("error does not name the key: %v", err)
			}
			m.check(t, b.Build(Version{}))
			m.check(t, table)
		})
	}
}

func TestPutAllLeavesOutWhatIsWrongAndNamesIt(t *testing.T) {
	for _, n := range []int{30, 3 * serialEntries} {
		const wrong = 20
		b := NewBuilder(n)
		var left []int
		b.PutAll(n, func(i int) ([]byte, []byte) {
			key, value := bytesOf(aLink(t, "a.example", fmt.Sprintf("/%d", i), "https://shop.example/", ""))
			if i < wrong {
				value = value[:len(value)-1]
			}
			return key, value
		}, func(i int, err error) {
			if !strings.Contains(err.Error(), fmt.Sprintf("%q", fmt.Sprintf("links/a.example/%d", i))) {
				t.Errorf("entry %d: %v", i, err)
			}
			left = append(left, i)
		})
		if b.Len() != n-wrong || len(left) != wrong || !slices.IsSorted(left) || left[0] != 0 {
			t.Errorf("%d entries, want %d; left out were %v", b.Len(), n-wrong, left)
		}
	}
}

func TestHeldEntryBelongsToTheStateAndIsNotServed(t *testing.T) {
	table, m := small(t)
	var match link.Match
	change := func(key, value string) {
		t.Helper()
		b := table.Edit()
		m.put(t, b, []byte(key), []byte(value))
		m[key] = value
		table = b.Build(Version{})
		m.check(t, table)
	}
	// A link that a newer release has changed, and one that it has made.
	change("links/a.example/x", broken+"newer")
	if table.Lookup([]byte("a.example"), []byte("/x"), &match); string(match.Link.Domain(match.Value)) != "*" {
		t.Errorf("the link that is held hides the one of every host: %+v", match)
	}
	change("links/a.example/new", broken+"newer")
	change("links/a.example/new", broken+"still")
	change("affiliates/aff_1", broken)
	change("domains/b.example", broken)
	change("domains/*", broken)
	// And back.
	change(aLink(t, "a.example", "/x", "https://shop.example/again", ""))
	change(anAffiliate(t, "aff_1", "One"))
	change(aDomain(t, "*", ""))
	b := table.Edit()
	if !b.Delete([]byte("links/a.example/new")) || b.Delete([]byte("links/a.example/new")) {
		t.Fatal("what is held was not deleted once")
	}
	delete(m, "links/a.example/new")
	m.check(t, b.Build(Version{}))
}

func TestHoldRefusesWhatIsNoName(t *testing.T) {
	for _, key := range []string{"", "links", "links/", "/x", strings.Repeat("x", maxOpaqueKey) + "/y"} {
		table, m := small(t)
		b := table.Edit()
		if err := b.Hold([]byte(key), nil); err == nil {
			t.Errorf("%.20q is held", key)
		}
		m.check(t, b.Build(Version{}))
	}
	if err := NewBuilder(0).Hold([]byte("links/a.example/x"), make([]byte, MaxHeld+1)); err == nil {
		t.Error("a value that is too long is held")
	}
}

func TestTableOfBuildOverShowsOneThingAndVerifiesAnother(t *testing.T) {
	verified, m := small(t)
	if verified.Verified() != verified {
		t.Fatal("a table is shown instead of another")
	}
	b := verified.Edit()
	b.Delete([]byte("links/a.example/x"))
	shown := b.BuildOver(verified)
	if shown.Verified() != verified || shown.Version() != verified.Version() {
		t.Fatalf("version %v, want %v", shown.Version(), verified.Version())
	}
	m.check(t, shown.Verified())
	delete(m, "links/a.example/x")
	m.check(t, shown)
	// What is edited is what is verified: nothing of the other gets in.
	next := shown.Verified().Edit().Build(Version{1, 3})
	_, m = small(t)
	m.check(t, next)
	if next.Verified() != next {
		t.Fatal("the next version still shows something else")
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

func TestHostWithoutLinksCostsNoLookup(t *testing.T) {
	table, _ := small(t)
	b := table.Edit()
	b.Delete([]byte("links/a.example/x"))
	b.Delete([]byte("links/a.example/fallen"))
	table = b.Build(Version{})
	host := []byte("a.example")
	if it := table.contents.hosts.get(nameHash(host), host); it != nil {
		t.Fatalf("host without anything is known: %+v", it)
	}
}

func TestUsingABuilderAfterBuildPanics(t *testing.T) {
	b := NewBuilder(0)
	b.Build(Version{})
	defer func() {
		if s, _ := recover().(string); !strings.HasPrefix(s, "BUG:") {
			t.Fatalf("recovered %q", s)
		}
	}()
	b.Delete([]byte("links/a.example/x"))
}

func TestHostileHintCostsLittle(t *testing.T) {
	b := NewBuilder(1 << 62)
	if len(b.shards) > 1<<17 {
		t.Fatalf("%d shards", len(b.shards))
	}
}

func TestPolicyOfADomainChangesWithoutItsLinks(t *testing.T) {
	m := model{}
	b := NewBuilder(0)
	put := func(key, value string) {
		m[key] = value
		if err := b.Put([]byte(key), []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range foldedPaths {
		for _, host := range []string{"*", "a.example"} {
			put(aLink(t, host, path, "https://shop.example/", ""))
		}
	}
	table := b.Build(Version{})
	for _, host := range []string{"a.example", "*", "a.example"} {
		for folds := range int32(9) {
			b = table.Edit()
			put(marshal(t, &linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{
				Host: host, CasePolicy: linkv1.CasePolicy(folds % 3), TrailingSlash: linkv1.TrailingSlashPolicy(folds / 3),
			}}}))
			table = b.Build(Version{})
			m.check(t, table)
		}
		b = table.Edit()
		if !b.Delete([]byte("domains/" + host)) {
			t.Fatal("there was no domain")
		}
		delete(m, "domains/"+host)
		table = b.Build(Version{})
		m.check(t, table)
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

func TestHostilePathCostsAtMost33Probes(t *testing.T) {
	b := NewBuilder(0)
	for depth := range link.MaxPrefixDepth + 1 {
		for _, host := range []string{"*", "a.example"} {
			if err := b.Put(bytesOf(aLink(t, host, strings.Repeat("/a", depth)+"/*", "https://shop.example/", ""))); err != nil {
				t.Fatal(err)
			}
		}
	}
	table := b.Build(Version{})
	host := []byte("a.example")
	it := table.contents.hosts.get(nameHash(host), host)
	if it.v.depths != 1<<33-1 {
		t.Fatalf("depths are %b", it.v.depths)
	}
	var p link.Prefixes
	p.Find([]byte(strings.Repeat("/a", 8000)), 0)
	if p.Depths != it.v.depths {
		t.Fatalf("%b depths are looked at", p.Depths)
	}
	b = table.Edit()
	for depth := range link.MaxPrefixDepth + 1 {
		b.Delete([]byte("links/a.example" + strings.Repeat("/a", depth) + "/*"))
	}
	table = b.Build(Version{})
	if it := table.contents.hosts.get(nameHash(host), host); it != nil {
		t.Fatalf("a host without anything is known: %+v", it)
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	table, _ := small(t)
	b := table.Edit()
	for _, entry := range []*linkv1.Resource{
		{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: "a.example", Path: "/go/*", Destination: "https://shop.example/"}}},
		{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: "*", Path: "/*", Destination: "https://shop.example/"}}},
		{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{Host: "f.example", CasePolicy: 2, TrailingSlash: 2}}},
	} {
		if err := b.Put(bytesOf(marshal(t, entry))); err != nil {
			t.Fatal(err)
		}
	}
	table = b.Build(Version{})
	var m link.Match
	for _, c := range []struct{ host, path string }{
		{"a.example", "/x"},
		{"b.example", "/only"},
		{"c.example", "/none"},
		{"a.example", "/go/a/b"},
		{"a.example", "/else/a"},
		{"f.example", "/ONLY/"},
		{"f.example", "/Else/" + strings.Repeat("a/", 100)},
	} {
		host, path := bytesOf(c.host, c.path)
		if n := testing.AllocsPerRun(100, func() { table.Lookup(host, path, &m) }); n != 0 {
			t.Errorf("Lookup(%s%s) allocates %v times", host, path, n)
		}
	}
}

// What is written to disk after each change must not be garbage to collect.
func TestListingAllEntriesDoesNotAllocateForEach(t *testing.T) {
	table, seen := benchTable(t, 5000), 0
	if n := testing.AllocsPerRun(10, func() {
		for range table.All() {
			seen++
		}
	}); n > 100 || seen < 5000 {
		t.Errorf("%v allocations for %d entries", n, seen)
	}
}

func TestReadersSeeWholeVersionsWhileAWriterEdits(t *testing.T) {
	const links, versions, readers = 3000, 300, 3
	// Every version sets the same time on all links that it touches: no link may
	// be newer than its table, and the first is always as new as that.
	at := func(i int, revision int64) ([]byte, []byte) {
		return bytesOf(marshal(t, &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
			Domain: "a.example", Path: fmt.Sprintf("/%d", i), Destination: "https://shop.example/",
			ExpiresAt: &timestamppb.Timestamp{Seconds: revision},
		}}}))
	}
	b := NewBuilder(links)
	for i := range links {
		if err := b.Put(at(i, 1)); err != nil {
			t.Fatal(err)
		}
	}
	var live Live
	if live.Load() != nil {
		t.Fatal("there is a table before the first")
	}
	live.Store(b.Build(Version{1, 1}))
	var wg sync.WaitGroup
	for r := range readers {
		wg.Go(func() {
			var m link.Match
			for i := r; ; i++ {
				table := live.Load()
				rev := table.Version().Revision
				n := i % links
				if i%3 == 0 {
					n = 0
				}
				table.Lookup([]byte("a.example"), fmt.Appendf(nil, "/%d", n), &m)
				res, err := link.Unmarshal(fmt.Sprintf("links/a.example/%d", n), m.Value)
				if err != nil {
					t.Error(err)
					return
				}
				got := res.GetLink().GetExpiresAt().GetSeconds()
				if got > rev || n == 0 && got != rev || n == 0 && rev == versions {
					if got != rev {
						t.Errorf("link %d of version %d is of version %d", n, rev, got)
					}
					return
				}
			}
		})
	}
	for rev := int64(2); rev <= versions; rev++ {
		b := live.Load().Edit()
		for _, i := range []int{0, int(rev) % links, int(rev*7) % links} {
			if err := b.Put(at(i, rev)); err != nil {
				t.Fatal(err)
			}
		}
		live.Store(b.Build(Version{1, rev}))
	}
	wg.Wait()
}

// TestReadersOfOldVersionsDoNotSeeWhatIsAdded: versions of a line share indexes,
// to which links are added while others read.
func TestReadersOfOldVersionsDoNotSeeWhatIsAdded(t *testing.T) {
	const first, versions, each = 500, 200, 10
	number := func(i int) ([]byte, []byte) {
		return bytesOf(marshal(t, &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
			Domain: "a.example", Path: fmt.Sprintf("/%d", i), Destination: "https://shop.example/",
		}}}))
	}
	b := NewBuilder(0)
	for i := range first {
		if err := b.Put(number(i)); err != nil {
			t.Fatal(err)
		}
	}
	tables := make([]atomic.Pointer[Table], versions)
	tables[0].Store(b.Build(Version{1, 1}))
	var wg sync.WaitGroup
	for r := range 3 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(5, uint64(r)))
			var m link.Match
			for v := 0; v < versions; {
				table := tables[v].Load()
				if table == nil {
					runtime.Gosched()
					continue
				}
				older := tables[random.IntN(v+1)].Load()
				for _, table := range []*Table{table, older} {
					n := table.Links()
					for _, i := range []int{random.IntN(n), n - 1, n, n + random.IntN(each)} {
						table.Lookup([]byte("a.example"), fmt.Appendf(nil, "/%d", i), &m)
						if found := m.Value != nil; found != (i < n) {
							t.Errorf("link %d is found: %v, and version %d has %d", i, found, table.Version().Revision, n)
							return
						}
					}
				}
				v++
			}
		})
	}
	for v := 1; v < versions; v++ {
		before := tables[v-1].Load()
		b := before.Edit()
		if v%7 == 0 { // given up: what it has added is nobody's
			for i := range each {
				if err := b.Put(number(1e6 + before.Links() + i)); err != nil {
					t.Error(err)
				}
			}
			b = before.Edit()
		}
		for i := range each {
			if err := b.Put(number(before.Links() + i)); err != nil {
				t.Error(err)
			}
		}
		tables[v].Store(b.Build(Version{1, int64(v + 1)}))
	}
	wg.Wait()
	for v := range tables {
		n := 0
		for range tables[v].Load().All() {
			n++
		}
		if n != first+v*each {
			t.Errorf("version %d gives %d entries", v+1, n)
		}
	}
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

func TestLinkTakesAtMost145Bytes(t *testing.T) {
	const n = 100_000
	set := newBenchSet(t)
	table := set.build(t, n)
	check := func(when string) {
		size := 8 * len(table.contents.shards)
		for i := 0; i < len(table.contents.shards); {
			s := table.contents.shards[i]
			size += 80 + cap(s.arena) + 4*cap(s.index)
			i += 1 << (table.contents.bits - s.depth)
		}
		if size > 145*n {
			t.Errorf("%s: %.1f bytes per link", when, float64(size)/n)
		}
	}
	check("built")
	for first := 0; first < n; first += 100 {
		b := table.Edit()
		for i := first; i < first+100; i++ {
			key, value := set.set(i)
			value[set.dest-17] = 'x'
			if err := b.Put(key, value); err != nil {
				t.Fatal(err)
			}
		}
		table = b.Build(Version{})
	}
	check("every link replaced")
}

func FuzzPut(f *testing.F) {
	_, m := small(f)
	for key, value := range m {
		f.Add([]byte(key), []byte(value))
	}
	f.Add([]byte("blocks/x"), []byte{0x22, 0x03, 0x0a, 0x01, 'x'})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		table, m := small(t)
		b := table.Edit()
		if err := b.Put(key, value); err == nil || b.Hold(key, value) == nil {
			m[string(key)] = string(value)
		}
		hash := m.hash()
		if b.Hash() != hash || b.Len() != len(m) {
			t.Fatalf("%d entries with hash %x, want %d with %x", b.Len(), b.Hash(), len(m), hash)
		}
		next := b.Build(Version{})
		checkShape(t, next)
		for k, v := range next.All() {
			if want, ok := m[string(k)]; !ok || !bytes.Equal(v, []byte(want)) {
				t.Fatalf("All gives %q = %q, want %q", k, v, want)
			}
		}
		b = next.Edit()
		_, had := m[string(key)]
		if b.Delete(key) != had || b.Delete(key) {
			t.Fatalf("%q was not deleted once", key)
		}
		delete(m, string(key))
		if b.Hash() != m.hash() || b.Len() != len(m) {
			t.Fatalf("after deleting: %d entries with hash %x, want %d with %x", b.Len(), b.Hash(), len(m), m.hash())
		}
		checkShape(t, b.Build(Version{}))
	})
}

func FuzzLookup(f *testing.F) {
	table, m := small(f)
	f.Add([]byte("a.example"), []byte("/x"))
	f.Add([]byte("*"), []byte("/only"))
	f.Add([]byte("b.example"), []byte("/P/q/r%2F../s/"))
	f.Add([]byte(""), []byte(""))
	f.Fuzz(func(t *testing.T, host, path []byte) {
		if bytes.IndexByte(host, '/') >= 0 || !bytes.HasPrefix(path, []byte("/")) {
			// Not a host, or no path: "a/b" and "/c" would read as "a" and
			// "/b/c" in a name.
			var m link.Match
			if table.Lookup(host, path, &m); m.Value != nil && string(m.Link.Domain(m.Value)) != "*" {
				t.Fatalf("Lookup(%q, %q) finds %q", host, path, m.Value)
			}
			return
		}
		m.checkLookup(t, table, m.fold(), string(host), string(path))
	})
}
