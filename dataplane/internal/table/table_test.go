package table

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

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
