package link_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

const ignoreBoth = link.IgnoreCase | link.IgnoreSlash

func TestCandidatesAreInTheOrderOfLookup(t *testing.T) {
	for _, c := range []struct {
		host, path string
		policy     link.Policy
		want       string
	}{
		{"h", "/x", 0, "links/h/x links/*/x links/h/* links/*/* domains/h domains/*"},
		{"", "/x", 0, "links/*/x links/*/* domains/*"},
		{"*", "/x", 0, "links/*/x links/*/* domains/*"},
		{"h", "/", 0, "links/h/ links/*/ links/h/* links/*/* domains/h domains/*"},
		{"*", "/a/b", 0, "links/*/a/b links/*/a/* links/*/* domains/*"},
		{"*", "/a/b/", 0, "links/*/a/b/ links/*/a/b/* links/*/a/* links/*/* domains/*"},
		{"*", "/a/b", link.IgnoreSlash, "links/*/a/b links/*/a/b/* links/*/a/* links/*/* domains/*"},
		{"*", "/a//", link.IgnoreSlash, "links/*/a// links/*/a//* links/*/a/* links/*/* domains/*"},
		{"*", "/A", link.IgnoreCase, "links/*/A links/*/* domains/*"},
		// The path of a prefix link is that of no other.
		{"*", "/a/*", 0, "links/*/a/* links/*/* domains/*"},
		// A rest with a dot segment matches nothing.
		{"*", "/a/../b", 0, "links/*/a/../b links/*/a/../* domains/*"},
		{"*", "/a/.", 0, "links/*/a/. domains/*"},
		{"*", "/a/b%2F..%5Cc/d", 0, "links/*/a/b%2F..%5Cc/d links/*/a/b%2F..%5Cc/* domains/*"},
		{"*", "/.../.a/b../a.", 0, "links/*/.../.a/b../a. links/*/.../.a/b../* links/*/.../.a/* links/*/.../* links/*/* domains/*"},
	} {
		if got := strings.Join(link.Candidates(c.host, c.path, c.policy), " "); got != c.want {
			t.Errorf("%s%s under %d:\n%s, want\n%s", c.host, c.path, c.policy, got, c.want)
		}
	}
}

func TestPathWithManySlashesHasAtMost33Prefixes(t *testing.T) {
	for _, segment := range []string{"/", "/a"} {
		names := link.Candidates("*", strings.Repeat(segment, 9000), ignoreBoth)
		if len(names) != 1+33+1 {
			t.Errorf("%d candidates", len(names))
		}
		if want := "links/*" + strings.Repeat(segment, 32) + "/*"; names[1] != want {
			t.Errorf("the longest is %s, want %s", names[1], want)
		}
	}
	if n := len(link.Candidates("*", "/"+strings.Repeat("a", 70_000)+"/b", 0)); n != 3 {
		t.Errorf("%d candidates for a prefix that no link can have, want 3", n)
	}
}

// matches says by the words of the documentation whether a stored path matches,
// and with how much of the request's path: the naive model of Candidates.
func matches(stored, asked string, policy link.Policy) (segments int, isPrefix, ok bool) {
	fold := func(s string) string {
		if policy&link.IgnoreCase != 0 {
			return lowerASCII(s)
		}
		return s
	}
	if base, isPrefix := strings.CutSuffix(fold(stored), "*"); isPrefix && strings.HasSuffix(base, "/") {
		rest, ok := strings.CutPrefix(fold(asked), base)
		if policy&link.IgnoreSlash != 0 && fold(asked)+"/" == base && !strings.HasSuffix(asked, "/") {
			rest, ok = "", true
		}
		for _, s := range strings.Split(strings.NewReplacer("%2f", "/", "%5c", "/", "%2F", "/", "%5C", "/").Replace(rest), "/") {
			ok = ok && s != "." && s != ".."
		}
		return strings.Count(base, "/"), true, ok
	}
	a, b := fold(stored), fold(asked)
	if policy&link.IgnoreSlash != 0 {
		a, b = strings.TrimSuffix(a, "/"), strings.TrimSuffix(b, "/")
	}
	return 0, false, a == b && !strings.HasSuffix(asked, "/*")
}

// randomPath is a path of a small world, so that many match.
func randomPath(r *rand.Rand) string {
	var b strings.Builder
	for range 1 + r.IntN(3) {
		b.WriteByte('/')
		b.WriteString([]string{"", "a", "A", "aB", "Ab", "..", "b.", "%2F", "%2F..", "é", "É", "a*"}[r.IntN(12)])
	}
	return b.String() + []string{"", "", "/", "/*"}[r.IntN(4)]
}

func TestCandidatesAgreeWithANaiveModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	found := 0
	for range 20_000 {
		policy := link.Policy(r.IntN(4))
		stored := map[string]bool{}
		for range r.IntN(50) {
			if p := randomPath(r); link.IsPrefix(p) || r.IntN(2) == 0 {
				if canonical, err := link.CanonicalPath(p); err == nil {
					stored[[]string{"*", "h"}[r.IntN(2)]+canonical] = true
				}
			}
		}
		asked := randomPath(r)
		want, wantRank := "", []int{}
		for id := range stored {
			domain, p := link.SplitLinkID(id)
			segments, isPrefix, ok := matches(p, asked, policy)
			if !ok {
				continue
			}
			// Exact before prefix, host before *, long before short, as asked
			// before folded.
			rank := []int{btoi(isPrefix), btoi(domain == "*"), -segments, btoi(!strings.HasPrefix(asked+"/*", strings.TrimSuffix(p, "*")) || !isPrefix && p != asked)}
			if c := slices.Compare(rank, wantRank); want == "" || c < 0 || c == 0 && id < want {
				want, wantRank = id, rank
			}
		}
		if got := byCandidates(stored, "h", asked, policy); got != want {
			t.Fatalf("%q under %d of %v: the candidates find %q, want %q", asked, policy, stored, got, want)
		}
		if want != "" {
			found++
		}
	}
	if found < 2000 {
		t.Errorf("only %d requests found a link", found)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func byCandidates(stored map[string]bool, host, asked string, policy link.Policy) string {
	for _, name := range link.Candidates(host, asked, policy) {
		kind, id, _ := strings.Cut(name, "/")
		if kind != "links" {
			break
		}
		if stored[id] {
			return id
		}
		domain, p := link.SplitLinkID(id)
		best := ""
		for other := range stored {
			d, q := link.SplitLinkID(other)
			if d == domain && policy.Same([]byte(p), []byte(q)) && (best == "" || other < best) {
				best = other
			}
		}
		if best != "" {
			return best
		}
	}
	return ""
}

func TestPathsThatAreTheSameHaveTheSameHash(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	letters := []byte("abAB@[`{zZ/*\xc3\xa9\xc1")
	same := 0
	for n := range 40 {
		for range 2000 {
			a := []byte{'/'}
			for range n {
				a = append(a, letters[r.IntN(len(letters))])
			}
			b := bytes.Clone(a)
			for i := range b {
				if c := b[i] | 0x20; 'a' <= c && c <= 'z' && r.IntN(2) == 0 {
					b[i] ^= 0x20
				}
			}
			if r.IntN(4) == 0 {
				b[r.IntN(len(b))] ^= 0x20 // a letter, or a change that matters
			}
			if r.IntN(2) == 0 {
				b = append(b, '/')
			}
			for policy := range link.Policy(4) {
				got := policy.Same(a, b)
				want := naiveSame(string(a), string(b), policy)
				if got != want || policy.Same(b, a) != want {
					t.Fatalf("%q and %q under %d: %v, want %v", a, b, policy, got, want)
				}
				if got {
					same++
					if link.HashKey(7, a) != link.HashKey(7, b) {
						t.Fatalf("%q and %q are the same, and have different hashes", a, b)
					}
				}
			}
		}
	}
	if same < 1000 {
		t.Errorf("only %d were the same", same)
	}
	if link.HashKey(7, []byte("/go/*")) != link.HashPrefix(7, []byte("/go")) || link.HashKey(7, []byte("/go")) == link.HashPrefix(7, []byte("/go")) {
		t.Error("a prefix link does not have the hash of its stem, or that of another link")
	}
	if link.HashKey(7, []byte("/go")) != link.HashPath(7, []byte("/Go/")) {
		t.Error("a link does not have the hash of its path")
	}
}

func naiveSame(a, b string, policy link.Policy) bool {
	if strings.HasSuffix(a, "/*") != strings.HasSuffix(b, "/*") {
		return false
	}
	if policy&link.IgnoreSlash != 0 {
		a, b = strings.TrimSuffix(a, "/"), strings.TrimSuffix(b, "/")
	}
	if policy&link.IgnoreCase != 0 {
		a, b = lowerASCII(a), lowerASCII(b)
	}
	return a == b
}

func lowerASCII(s string) string {
	out := []byte(s)
	for i, c := range out {
		if 'A' <= c && c <= 'Z' {
			out[i] += 'a' - 'A'
		}
	}
	return string(out)
}

// TestHashPathSpreads looks at the bits that a table uses: each half of them
// must tell a million similar paths apart about as well as chance.
func TestHashPathSpreads(t *testing.T) {
	const n, buckets = 1 << 18, 1 << 12
	for _, form := range []string{"/%x", "/go/%07d", "/a/b/c/%07d/summer/sale", "/日本/%07d", "/go/0000000000000000000000%07x0000000000000000"} {
		var low, high [buckets]int
		for i := range n {
			h := link.HashPath(12345, fmt.Appendf(nil, form, i))
			low[uint32(h)>>20]++
			high[h>>52]++
		}
		for name, half := range map[string][buckets]int{"low": low, "high": high} {
			for _, count := range half {
				if count < n/buckets/4 || count > n/buckets*5/2 {
					t.Errorf("%s: a bucket of the %s bits has %d of %d", form, name, count, n/buckets)
					break
				}
			}
		}
	}
}

func goPrefix() *linkv1.Link {
	return &linkv1.Link{Domain: "go.example.com", Path: "/go/*", Destination: "https://store.com/p"}
}

func TestPrefixLinkComposesItsLocation(t *testing.T) {
	long := strings.Repeat("a", link.MaxLocation-len("https://store.com/p/"))
	for _, c := range []struct{ destination, path, want string }{
		{"https://store.com/p", "/go/a/b", "https://store.com/p/a/b"},
		{"https://store.com/p/", "/go/a/b", "https://store.com/p/a/b"},
		{"https://store.com", "/go/a", "https://store.com/a"},
		{"https://store.com/", "/go/a/", "https://store.com/a/"},
		{"https://store.com?x=/", "/go/a", "https://store.com/a?x=/"},
		{"https://store.com#x", "/go/a", "https://store.com/a#x"},
		{"https://store.com/p#f?x", "/go/a", "https://store.com/p/a#f?x"},
		{"https://store.com/p?x=1#f", "/go/a", "https://store.com/p/a?x=1#f"},
		{"https://store.com/p?x=1", "/go/", "https://store.com/p?x=1"},
		{"https://store.com/p", "/go", "https://store.com/p"},
		{"https://store.com/p", "/go//evil.com", "https://store.com/p/evil.com"},
		{"https://store.com/p", "/go/a//b", "https://store.com/p/a//b"},
		{"https://store.com/p", "/GO/A", "https://store.com/p/A"},
		{"https://store.com/p", "/go/caf%C3%A9/%F0%9F%8E%81", "https://store.com/p/caf%C3%A9/%F0%9F%8E%81"},
		{"https://store.com/p", "/go/a%0D%0Ab%00%20%25%2f%3f%23%5c", "https://store.com/p/a%0D%0Ab%00%20%25%2F%3F%23%5C"},
		{"https://store.com/p", `/go/"<>[]^{|}` + "`", "https://store.com/p/%22%3C%3E%5B%5D%5E%7B%7C%7D%60"},
		{"https://store.com/p", "/go/-._~!$&'()*+,;=:@", "https://store.com/p/-._~!$&'()*+,;=:@"},
		{"https://store.com/p", "/go/*", "https://store.com/p/*"},
		{"https://store.com/p", "/go/a/..", ""},
		{"https://store.com/p", "/go/%2e%2E/a", ""},
		{"https://store.com/p", "/go/%2e%2E%2fa", ""},
		{"https://store.com/p", "/go/.", ""},
		{"https://store.com/p", "/go/...", "https://store.com/p/..."},
		{"https://store.com/p", "/go/" + long, "https://store.com/p/" + long},
		{"https://store.com/p", "/go/a" + long, ""},
		{"https://store.com/p", "/go/" + strings.Repeat("é", len(long)/6+1), ""},
	} {
		l := goPrefix()
		l.Destination = c.destination
		asked, ok := link.AppendCanonicalPath(nil, []byte(c.path))
		if !ok {
			t.Fatalf("%q is no path", c.path)
		}
		got := decide(t, l, nil, nil, string(asked), time.Unix(1, 0))
		if string(got.Location) != c.want {
			t.Errorf("%s of %.40q: %.200q, want %.200q", c.destination, c.path, got.Location, c.want)
		}
		if c.want == "" && (got.Outcome != link.ToNotFound || got.Status != 404 || got.Path != nil) {
			t.Errorf("%.40q: %+v, want it to be as without a link", c.path, got)
		}
		l.Rest = linkv1.RestPolicy_REST_POLICY_DROP
		if got := decide(t, l, nil, nil, string(asked), time.Unix(1, 0)); string(got.Location) != c.destination {
			t.Errorf("dropping: %q, want %q", got.Location, c.destination)
		}
	}
}

func TestTooLongALocationGoesWhereRequestsWithoutLinkGo(t *testing.T) {
	domain := &linkv1.Domain{Host: "*", NotFound: "https://store.com/lost", CacheControl: "max-age=60"}
	got := decide(t, goPrefix(), domain, nil, "/go/"+strings.Repeat("a", link.MaxLocation), time.Unix(1, 0))
	if string(got.Location) != domain.NotFound || got.Status != 302 || got.Outcome != link.ToNotFound || got.CacheControl != "max-age=60" || got.Domain != nil {
		t.Errorf("%+v", got)
	}
}

func TestResolvingAPrefixLinkDoesNotAllocateOnceTheBufferIsThere(t *testing.T) {
	value, _ := link.Marshal(resource(goPrefix()))
	c, err := link.Compile(value)
	if err != nil {
		t.Fatal(err)
	}
	m := link.Match{Link: c, Value: value}
	short := link.Request{Path: []byte("/go/a")}
	long := link.Request{Path: []byte("/go/" + strings.Repeat("é", 1000))}
	var d link.Decision
	link.Resolve(&m, &long, &d)
	if n := testing.AllocsPerRun(100, func() {
		link.Resolve(&m, &short, &d)
		d.Reset()
		link.Resolve(&m, &long, &d)
	}); n != 0 {
		t.Errorf("Resolve: %v allocations", n)
	}
	var p link.Prefixes
	if n := testing.AllocsPerRun(100, func() {
		p.Find(long.Path, ignoreBoth)
		link.HashPath(1, long.Path)
		ignoreBoth.Same(long.Path, short.Path)
		c, err = link.Compile(value)
	}); n != 0 {
		t.Errorf("looking up: %v allocations", n)
	}
	if d.Reset(); d.Location != nil || d.Domain != nil || d.Status != 0 {
		t.Errorf("Reset leaves %+v", d)
	}
}

// FuzzPrefixLinkNeverLeavesItsDestination: whatever is asked for, Location is a
// safe header value, with scheme, host, query and fragment of the destination,
// and a path below its own.
func FuzzPrefixLinkNeverLeavesItsDestination(f *testing.F) {
	for _, s := range []string{"a/b", "../x", "%2e%2e/x", "..%2f..%2fx", "..%5cx", "/evil.com", "\xff", "%0d%0a", "é{}", "%", ".;/x", "?a#b", "@evil.com", ":80"} {
		f.Add("https://store.com/p/q?x=1#f", s)
		f.Add("http://store.com", s)
		f.Add("https://store.com?x", s)
	}
	f.Fuzz(func(t *testing.T, destination, rest string) {
		asked, ok := link.AppendCanonicalPath(nil, []byte("/go/"+rest))
		l := goPrefix()
		l.Destination = destination
		if !ok || link.Validate(resource(l)) != nil {
			return
		}
		d := decide(t, l, nil, nil, string(asked), time.Unix(1, 0))
		if d.Location == nil {
			return
		}
		if len(d.Location) > link.MaxLocation {
			t.Fatalf("%d bytes", len(d.Location))
		}
		for _, c := range d.Location[:len(d.Location)-len(destination)] {
			if c <= ' ' || c >= 0x7f {
				t.Fatalf("%q has the byte %#x", d.Location, c)
			}
		}
		want, err := url.Parse(destination)
		if err != nil {
			t.Fatal(err)
		}
		got, err := url.Parse(string(d.Location))
		if err != nil {
			t.Fatalf("%q: %v", d.Location, err)
		}
		if got.Scheme != want.Scheme || got.Host != want.Host || got.User != nil || got.RawQuery != want.RawQuery || got.EscapedFragment() != want.EscapedFragment() {
			t.Fatalf("%q and %q are not of the same place", d.Location, destination)
		}
		if strings.ContainsAny(got.EscapedPath()[len(want.EscapedPath()):], "\"<>\\^`{|}[] ") {
			t.Fatalf("%q has a byte raw that is not allowed", d.Location)
		}
		below := strings.TrimSuffix(path.Clean("/"+want.Path), "/") + "/"
		if p := path.Clean("/"+strings.ReplaceAll(got.Path, `\`, "/")) + "/"; !strings.Contains(destination, "\\") && !strings.HasPrefix(p, below) {
			t.Fatalf("%q climbs to %q, above %q", d.Location, p, below)
		}
	})
}

func BenchmarkResolvePrefixLink(b *testing.B) {
	value, _ := link.Marshal(resource(goPrefix()))
	c, _ := link.Compile(value)
	m, req := link.Match{Link: c, Value: value}, link.Request{Path: []byte("/go/shoes/summer-2026")}
	var d link.Decision
	b.ReportAllocs()
	for b.Loop() {
		link.Resolve(&m, &req, &d)
	}
}

func BenchmarkHashPath(b *testing.B) {
	for _, n := range []int{6, 20, 100} {
		p := []byte("/" + strings.Repeat("a", n-1))
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				link.HashPath(1, p)
			}
		})
	}
}
