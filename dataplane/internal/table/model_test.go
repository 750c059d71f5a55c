package table

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// model is what a table must behave like: a map from keys to values. A value
// that begins with broken does not compile, and is held.
type model map[string]string

const broken = "\xff"

// served gives the value of an entry that can be found.
func (m model) served(key string) (value string, ok bool) {
	value, ok = m[key]
	if !ok || strings.HasPrefix(value, broken) {
		return "", false
	}
	return value, true
}

func marshal(tb testing.TB, r *linkv1.Resource) (key, value string) {
	tb.Helper()
	key, err := link.Name(r)
	if err != nil {
		tb.Fatal(err)
	}
	b, err := link.Marshal(r)
	if err != nil {
		tb.Fatal(err)
	}
	return key, string(b)
}

func aLink(tb testing.TB, domain, path, destination, affiliate string) (key, value string) {
	return marshal(tb, &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
		Domain: domain, Path: path, Destination: destination, Affiliate: affiliate,
	}}})
}

func aDomain(tb testing.TB, host, notFound string) (key, value string) {
	return marshal(tb, &linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{Host: host, NotFound: notFound}}})
}

func anAffiliate(tb testing.TB, id, name string) (key, value string) {
	return marshal(tb, &linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{Id: id, DisplayName: name}}})
}

// foldedPaths are some of which many are the same under some policy, and prefix
// links over them and over each other.
var foldedPaths = []string{
	"/", "/*", "/a", "/A", "/a/", "/A/", "/a/*", "/A/*", "/a//", "/a//*", "/a*", "/a/b", "/a/B", "/A/b", "/A/B/", "/a/b/*", "/A/B/*", "/a/*/",
	"/long/path/of/More/than/16/bytes", "/Long/path/of/more/than/16/bytes", "/Long/Path/*", "/é/A", "/é/a/*", "/p/*", "/P/1",
}

// asked are requests that may find those.
var asked = append([]string{
	"/b", "/a/c", "/A/C/", "/a/b/c", "/A/B/C/d", "/a//b", "/a/../a", "/a/b/..", "/a/b%2F..", "/P/1", "/p/1/", "/P/1/2", "/p", "/P/",
	"/é/a", "/É/a", "/long/path", "/LONG/path/of/More/than/16/bytes/", "/long/path/" + strings.Repeat("X/", 50), strings.Repeat("/", 40), "/p/" + strings.Repeat("x", 9000),
}, foldedPaths...)

// random makes an entry of any kind out of a small world, so that keys repeat.
func random(tb testing.TB, r *rand.Rand, paths int) (key, value string) {
	hosts := []string{"*", "a.example", "b.example", "only-links.example"}
	host := hosts[r.IntN(len(hosts))]
	if r.IntN(20) == 0 {
		key, _ = random(tb, r, paths)
		return key, broken + fmt.Sprint(r.IntN(1000))
	}
	to := fmt.Sprintf("https://shop.example/%0*d", 1+r.IntN(60), r.IntN(10))
	switch n := r.IntN(100); {
	case n < 8:
		return aBlock(tb, r)
	case n < 10:
		return aPolicy(tb, r)
	case n < 20:
		return aLink(tb, host, foldedPaths[r.IntN(len(foldedPaths))], to, "")
	case n < 45:
		return marshal(tb, withPlan(r.IntN(6), &linkv1.Link{
			Domain: host, Path: fmt.Sprintf("/p/%d", r.IntN(paths)), Destination: to, Fallback: to, Affiliate: []string{"", "aff_1"}[r.IntN(2)],
		}))
	case n < 85:
		return aLink(tb, host, fmt.Sprintf("/p/%d", r.IntN(paths)), to, []string{"", "aff_1", "aff_2", "nobody"}[r.IntN(4)])
	case n < 90:
		return marshal(tb, &linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{
			Host: host, NotFound: to, CasePolicy: linkv1.CasePolicy(r.IntN(3)), TrailingSlash: linkv1.TrailingSlashPolicy(r.IntN(3)),
		}}})
	case n < 95:
		return anAffiliate(tb, fmt.Sprintf("aff_%d", r.IntN(100)), to)
	}
	return fmt.Sprintf("%s/%d", unknownKind, r.IntN(20)), to
}

// unknownKind is one that only a later release knows.
const unknownKind = "wonders"

func (m model) hash() (h link.SetHash) {
	for key, value := range m {
		h = h.Add(link.HashEntry([]byte(key), []byte(value)))
	}
	return h
}

func (m model) count(prefix string) (n int) {
	for key := range m {
		if len(key) >= len(prefix) && key[:len(prefix)] == prefix {
			n++
		}
	}
	return n
}

// lookup does what Lookup must do, by link.Candidates.
func (m model) lookup(f folded, host, path string) (value, domain string) {
	var policy link.Policy
	for _, name := range link.DomainCandidates(host) {
		if v, ok := m.served(name); ok {
			d, err := link.CompileDomain([]byte(v))
			if err != nil {
				panic(err)
			}
			domain, policy = d.Host, d.Policy()
			break
		}
	}
	for _, name := range link.Candidates(host, path, policy) {
		if !strings.HasPrefix(name, "links/") {
			break
		}
		if v, ok := m.same(f, name, policy); ok {
			return v, domain
		}
	}
	return "", domain
}

// folded are the keys of the links that some policy may take for the same.
type folded map[string][]string

func fold(id string) string { return strings.ToLower(strings.TrimSuffix(id, "/")) }

func (m model) fold() folded {
	f := folded{}
	for key := range m {
		if _, ok := m.served(key); !ok {
			continue
		}
		if id, isLink := strings.CutPrefix(key, "links/"); isLink {
			f[fold(id)] = append(f[fold(id)], key)
		}
	}
	return f
}

// same finds the link that the name of a candidate stands for.
func (m model) same(f folded, name string, policy link.Policy) (value string, ok bool) {
	if v, ok := m.served(name); ok || policy == 0 {
		return v, ok
	}
	best := ""
	id := strings.TrimPrefix(name, "links/")
	domain, path := link.SplitLinkID(id)
	for _, key := range f[fold(id)] {
		d, p := link.SplitLinkID(strings.TrimPrefix(key, "links/"))
		if d == domain && policy.Same([]byte(p), []byte(path)) && (best == "" || key < best) {
			best = key
		}
	}
	return m[best], best != ""
}

// check compares a table with the model in every way there is to look at it.
func (m model) check(tb testing.TB, t *Table) {
	tb.Helper()
	size, unserved, unservedLinks := 0, 0, 0
	for key, value := range m {
		size += len(key) + len(value)
		_, ok := m.served(key)
		if !ok || strings.HasPrefix(key, unknownKind) {
			unserved++
		}
		if !ok && strings.HasPrefix(key, "links/") {
			unservedLinks++
		}
		if !t.Has([]byte(key)) {
			tb.Fatalf("the table does not say that it has %s", key)
		}
	}
	links := m.count("links/")
	if t.Len() != len(m) || t.Hash() != m.hash() || t.Links() != links-unservedLinks || t.LinkEntries() != links || t.Unserved() != unserved || t.Size() != size {
		tb.Fatalf("table has %d entries of %d bytes, %d of %d links, %d unserved, hash %x; want %d of %d, %d of %d, %d, %x",
			t.Len(), t.Size(), t.Links(), t.LinkEntries(), t.Unserved(), t.Hash(), len(m), size, links-unservedLinks, links, unserved, m.hash())
	}
	f := m.fold()
	seen := 0
	for key, value := range t.All() {
		if want, ok := m[string(key)]; !ok || want != string(value) {
			tb.Fatalf("All gives %s = %q, want %q", key, value, want)
		}
		seen++
	}
	if seen != len(m) {
		tb.Fatalf("All gives %d entries, want %d", seen, len(m))
	}
	for key := range m {
		if kind, id, _ := link.ParseName(key); kind == link.Links {
			host, path := link.SplitLinkID(id)
			m.checkLookup(tb, t, f, host, path)
			m.checkLookup(tb, t, f, "b.example", path)
			m.checkLookup(tb, t, f, "other.example", path)
		}
	}
	for _, host := range []string{"*", "a.example", "other.example", ""} {
		m.checkLookup(tb, t, f, host, "/no/such/path")
		for _, path := range asked {
			m.checkLookup(tb, t, f, host, path)
		}
	}
	m.checkBlocks(tb, t)
	checkShape(tb, t)
}

func (m model) checkLookup(tb testing.TB, t *Table, f folded, host, path string) {
	tb.Helper()
	var got link.Match
	t.Lookup([]byte(host), []byte(path), &got)
	value, domain := m.lookup(f, host, path)
	whole := got.Value
	if got.Value != nil {
		whole = t.contents.whole(&got.Link, got.Value)
	}
	if string(whole) != value || (got.Value == nil) != (value == "") {
		tb.Fatalf("Lookup(%q, %q) finds %q, want %q", host, path, whole, value)
	}
	if (got.Domain == nil) != (domain == "") || got.Domain != nil && got.Domain.Host != domain {
		tb.Fatalf("Lookup(%q, %q) finds domain %+v, want %q", host, path, got.Domain, domain)
	}
	if value == "" {
		if got.Affiliate != nil || got.Link != (link.Compiled{}) {
			tb.Fatalf("Lookup(%q, %q) fills %+v without a link", host, path, got)
		}
		return
	}
	want, err := link.Compile([]byte(value))
	var plan uint64
	if want.HasPlan() {
		plan, _ = t.contents.findPlan(want.Plan([]byte(value)))
		if got.Plan == nil || string(got.Plan.Bytes()) != string(want.Plan([]byte(value))) {
			tb.Fatalf("Lookup(%q, %q) gives another plan", host, path)
		}
		want.AppendBare(nil, []byte(value), plan)
	} else if got.Plan != nil {
		tb.Fatalf("Lookup(%q, %q) gives a plan", host, path)
	}
	if err != nil || string(got.Link.Append(nil)) != string(want.Append(nil)) {
		tb.Fatalf("Lookup(%q, %q) gives another compiled form: %v", host, path, err)
	}
	id := string(got.Link.Affiliate(got.Value))
	if _, known := m.served("affiliates/" + id); known != (got.Affiliate != nil) || known && got.Affiliate.ID != id {
		tb.Fatalf("Lookup(%q, %q) finds affiliate %+v, want %q", host, path, got.Affiliate, id)
	}
}

// put puts an entry, or holds it if it does not compile.
func (m model) put(tb testing.TB, b *Builder, key, value []byte) {
	tb.Helper()
	err := b.Put(key, value)
	if _, ok := (model{"": string(value)}).served(""); !ok && cutsKind(key) {
		if err == nil {
			tb.Fatalf("%s = %q was put", key, value)
		}
		err = b.Hold(key, value)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// cutsKind says that the key is of a kind that is compiled.
func cutsKind(key []byte) bool {
	kind, _ := cutKind(key)
	return kind != 0
}

// apply puts and deletes at random, in the builder and in the model.
func (m model) apply(tb testing.TB, r *rand.Rand, b *Builder, n, paths, deletes int) {
	for range n {
		key, value := random(tb, r, paths)
		if r.IntN(100) < deletes {
			_, had := m[key]
			if b.Delete([]byte(key)) != had {
				tb.Fatalf("Delete(%s) says %v, want %v", key, !had, had)
			}
			delete(m, key)
			continue
		}
		k, v := []byte(key), []byte(value)
		m.put(tb, b, k, v)
		clear(k) // the caller's buffers are the caller's
		clear(v)
		m[key] = value
	}
	if b.Len() != len(m) || b.Hash() != m.hash() {
		tb.Fatalf("builder has %d entries, hash %x; want %d, %x", b.Len(), b.Hash(), len(m), m.hash())
	}
}

// putAll puts n entries of different keys at random, at once.
func (m model) putAll(tb testing.TB, r *rand.Rand, b *Builder, n, paths int) {
	tb.Helper()
	var list [][2][]byte
	seen := map[string]bool{}
	for range n {
		key, value := random(tb, r, paths)
		if seen[key] {
			continue
		}
		seen[key] = true
		m[key] = value
		list = append(list, [2][]byte{[]byte(key), []byte(value)})
	}
	b.PutAll(len(list), func(i int) ([]byte, []byte) { return list[i][0], list[i][1] }, func(i int, _ error) {
		if err := b.Hold(list[i][0], list[i][1]); err != nil {
			tb.Fatal(err)
		}
	})
	for _, e := range list {
		clear(e[0])
		clear(e[1])
	}
}

func TestTableIsWhatAMapWouldBeOverManyVersions(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	type state struct {
		table *Table
		model model
	}
	m := model{}
	b := NewBuilder(r.IntN(100))
	m.apply(t, r, b, 300, 200, 10)
	versions := []state{{b.Build(Version{7, 1}), m}}
	for i := range 400 {
		// Mostly from the newest, at times from an older one, as after a frame
		// that was refused.
		from := len(versions) - 1
		if r.IntN(10) == 0 {
			from = r.IntN(len(versions))
		}
		m := maps.Clone(versions[from].model)
		b := versions[from].table.Edit()
		if r.IntN(10) == 0 {
			b = versions[from].table.EditAside()
		}
		m.apply(t, r, b, r.IntN(40), 200, []int{10, 50, 95}[i/20%3])
		if r.IntN(20) == 0 {
			m.putAll(t, r, b, 3*serialEntries, 400)
		}
		if r.IntN(10) == 0 {
			continue // the edit is given up
		}
		v := Version{7, int64(i + 2)}
		next := b.Build(v)
		if next.Version() != v {
			t.Fatalf("version is %v, want %v", next.Version(), v)
		}
		versions = append(versions, state{next, m})
		if i%10 == 0 {
			m.check(t, next)
		}
	}
	for _, v := range versions {
		v.model.check(t, v.table)
	}
}

func TestTableGrowsAndShrinksByEditsAlone(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	m := model{}
	table := NewBuilder(0).Build(Version{})
	step := func(n, deletes int) {
		b := table.Edit()
		m.apply(t, r, b, n, 5000, deletes)
		table = b.Build(Version{})
	}
	for range 40 {
		step(1000, 0)
	}
	m.check(t, table)
	if table.Links() < 4*maxLinks || len(table.contents.shards) < 8 {
		t.Fatalf("%d links in %d shards: the test is too small", table.Links(), len(table.contents.shards))
	}
	big := maps.Clone(m)
	old := table
	for _, key := range slices.Sorted(maps.Keys(big)) {
		if len(m) > 500 {
			b := table.Edit()
			if !b.Delete([]byte(key)) || b.Delete([]byte(key)) {
				t.Fatalf("%s was not deleted once", key)
			}
			delete(m, key)
			table = b.Build(Version{})
		}
	}
	m.check(t, table)
	big.check(t, old)
	for _, s := range table.contents.shards {
		if len(s.arena) > 16<<10 || len(s.index) > 2048 {
			t.Fatalf("a shard of %d links keeps %d bytes and %d slots", s.n, len(s.arena), len(s.index))
		}
	}
	b := table.Edit()
	for key := range m {
		b.Delete([]byte(key))
	}
	model{}.check(t, b.Build(Version{}))
}

func TestHashDependsOnWhatIsThereAndNotOnHowItCame(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	m := model{}
	table := NewBuilder(3000).Build(Version{})
	for range 20 {
		b := table.Edit()
		m.apply(t, r, b, 500, 3000, 20)
		table = b.Build(Version{})
	}
	keys := slices.Collect(maps.Keys(m))
	for _, hint := range []int{0, len(m) / 10, len(m), 10 * len(m), -1} {
		r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		b := NewBuilder(hint)
		for _, key := range keys {
			m.put(t, b, []byte(key), []byte(m[key]))
		}
		again := b.Build(Version{})
		if again.Hash() != table.Hash() || again.Len() != table.Len() {
			t.Fatalf("hint %d: %d entries with hash %x, want %d with %x", hint, again.Len(), again.Hash(), table.Len(), table.Hash())
		}
		m.check(t, again)
	}
}
