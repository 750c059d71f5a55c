package redirect

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/affleet/affleet/dataplane/internal/label"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/explain"
	"github.com/affleet/affleet/proto/link"
)

// agreePairs is how many pairs of a link and a request are compared; AFF_PAIRS
// says another number, such as 1000000.
const agreePairs = 20_000

// world makes links and requests at random out of few words, so that they meet.
type world struct{ *rand.Rand }

func (w world) of(words ...string) string { return words[w.IntN(len(words))] }

func (w world) some(words ...string) (all []string) {
	for range w.IntN(3) {
		all = append(all, w.of(words...))
	}
	return all
}

var paths = []string{"/a", "/A", "/a/", "/b", "/a/*", "/A/b/*", "/*", "/b%2Fc", "/ü"}

func (w world) destination() string {
	return "https://" + w.of("store.example", "shop.example:8443") +
		w.of("", "/", "/p", "/p/{sub1|x}", "/{path}", "/{country}/{rest}") +
		w.of("", "?a=1", "?a=1&b=&a=2", "?s={sub1}&q={query.q|none}", "?r={query.q:raw}", "?d={domain}&l={link}&v={variant}&t={ts_ms}") + w.of("", "", "#f", "#{device}")
}

func (w world) splits() (all []*linkv1.Split) {
	for i := range 1 + w.IntN(3) {
		all = append(all, &linkv1.Split{Name: fmt.Sprint("v", i), Weight: 1 + w.Uint32N(100), Destination: w.destination()})
	}
	return all
}

func (w world) query() *linkv1.QueryPolicy {
	if w.IntN(3) == 0 {
		return nil
	}
	return &linkv1.QueryPolicy{
		Mode: linkv1.QueryMode(w.IntN(5)), Allow: w.some("a", "q", "sub1"), Deny: w.some("b", "sub2"), Capture: w.some("x", "gclid"),
	}
}

func (w world) rule() *linkv1.Rule {
	r := &linkv1.Rule{When: w.of(`country == "DE"`, `device == "mobile" && os != "ios"`, `language in ["de", "fr"]`, `query["q"] == "1"`, `has(query.q)`,
		`bot`, `path.startsWith("/a")`, `cidr("192.0.2.0/25")`, `host == "go.example"`, `asn > 64500u || asn > 5u`, `"de" in languages`, `labels["team"] == "eu"`,
		`now < timestamp("2026-06-01T00:00:00Z")`, `browser.matches("^chr")`, `referrer_domain.endsWith("example")`)}
	switch w.IntN(4) {
	case 0:
		r.Outcome = &linkv1.Rule_Splits{Splits: &linkv1.SplitSet{Splits: w.splits()}}
	case 1:
		r.Outcome = &linkv1.Rule_NotFound{NotFound: true}
	default:
		r.Outcome = &linkv1.Rule_Destination{Destination: w.destination()}
	}
	return r
}

func (w world) link() *linkv1.Resource {
	l := &linkv1.Link{
		Domain: w.of("*", "go.example"), Path: w.of(paths...), Destination: w.destination(), Affiliate: w.of("", "aff_1", "aff_2"),
		Query: w.query(), StatusCode: []int32{0, 301, 307}[w.IntN(3)], Disabled: w.IntN(12) == 0,
	}
	if w.IntN(2) == 0 {
		l.Labels = map[string]string{"team": w.of("eu", "us")}
	}
	if w.IntN(3) == 0 {
		l.Fallback = "https://store.example/fallback"
	}
	for range w.IntN(4) {
		l.Rules = append(l.Rules, w.rule())
	}
	if w.IntN(3) == 0 {
		l.Splits = w.splits()
		if w.IntN(2) == 0 {
			l.Sticky, l.StickyParameter = linkv1.StickyKey_STICKY_KEY_QUERY, "sub1"
		}
	}
	return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}}
}

func (w world) block() *linkv1.Resource {
	b := &linkv1.Block{Id: fmt.Sprint("b", w.IntN(5)), Reason: w.of("one", "two"), Action: linkv1.BlockAction(w.IntN(5)), Label: w.of("", "blocked", "datacenter")}
	switch w.IntN(3) {
	case 0:
		b.Match = &linkv1.Block_Prefix{Prefix: w.of("192.0.2.0/24", "192.0.2.1", "192.0.0.0/8", "2001:db8::/32")}
	case 1:
		b.Match = &linkv1.Block_UserAgent{UserAgent: w.of(phoneAgent, deskAgent)}
	default:
		b.Match = &linkv1.Block_Affiliate{Affiliate: w.of("aff_1", "aff_2", "aff_3")}
	}
	if b.GetAffiliate() == "" && w.IntN(3) == 0 {
		b.OnlyAffiliate = w.of("aff_1", "aff_2", "aff_3")
	}
	if w.IntN(4) == 0 {
		b.Ttl, b.ExpireTime = durationpb.New(time.Hour), timestamppb.New(time.Now().Add(time.Duration(w.IntN(3)-1)*time.Hour))
	}
	return &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: b}}
}

func (w world) policy(scope string) *linkv1.Resource {
	p := &linkv1.Policy{Scope: scope, Off: scope == "*" && w.IntN(3) == 0}
	for l := range link.NumLabels {
		if w.IntN(4) == 0 {
			p.Labels = append(p.Labels, &linkv1.LabelPolicy{Label: l.String(), Action: linkv1.BlockAction(1 + w.IntN(4))})
		}
	}
	return &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: p}}
}

// table is a table of valid resources at random, and these by name.
func (w world) resources() map[string]*linkv1.Resource {
	all := map[string]*linkv1.Resource{}
	add := func(r *linkv1.Resource) {
		if name, err := link.Name(r); err == nil && link.Validate(r) == nil {
			all[name] = r
		}
	}
	for range 1 + w.IntN(12) {
		add(w.link())
	}
	for range w.IntN(4) {
		add(w.block())
	}
	for _, scope := range []string{"*", "domains/*", "domains/go.example", "affiliates/aff_1"} {
		if w.IntN(3) == 0 {
			add(w.policy(scope))
		}
	}
	for _, id := range []string{"aff_1", "aff_2"} {
		a := &linkv1.Affiliate{Id: id, Parameters: []*linkv1.Parameter{{Name: "ref", Value: id}, {Name: "a", Value: "é &"}}}
		if w.IntN(6) == 0 {
			a.State, a.Fallback = linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED, w.of("", "https://store.example/suspended")
		}
		add(&linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: a}})
	}
	for _, host := range []string{"*", "go.example"} {
		if w.IntN(2) == 0 {
			add(aDomain(&linkv1.Domain{
				Host: host, NotFound: w.of("", "https://store.example/none"), Root: w.of("", "https://store.example/root"), Query: w.query(),
				CasePolicy: linkv1.CasePolicy(w.IntN(3)), TrailingSlash: linkv1.TrailingSlashPolicy(w.IntN(3)),
				RobotsTxt: w.of("", "User-agent: *\n"), RobotsTag: w.of("", "noindex"), CacheControl: w.of("", "max-age=60"),
			}))
		}
	}
	return all
}

// request is the target and the headers of a request, and its host.
func (w world) request() (host, target string, headers map[string][]string) {
	target = w.of("/a", "/A/", "/a/b/c", "/A/B/x%20y", "/b", "/b%2fc", "/%C3%BC", "/robots.txt", "/", "/none", "/a/%2e%2e/x")
	if w.IntN(3) > 0 {
		var query []string
		for range w.IntN(5) {
			query = append(query, w.of("a", "b", "q", "sub1", "sub2", "x", "gclid", "%61", "")+w.of("=", "=1", "=%41+b", "=%zz", "=é", "", "=a=b", "=%0d%0a"))
		}
		target += "?" + strings.Join(query, "&")
	}
	headers = map[string][]string{"X-Forwarded-For": {w.of("192.0.2.1", "192.0.2.200", "198.51.100.7", "2001:db8::1")}}
	for name, values := range map[string][]string{
		"User-Agent": {phoneAgent, deskAgent, "Googlebot/2.1"}, "Accept-Language": {"de", "fr-FR,de;q=0.5"}, "Cf-Ipcountry": {"DE", "XX"},
		"Referer": {"https://news.example/a", "x"}, "Accept": {"*/*"}, "Purpose": {"preview", "prefetch"}, "Sec-Ch-Ua-Platform": {`"iOS"`},
	} {
		if w.IntN(2) == 0 {
			headers[name] = []string{w.of(values...)}
		}
	}
	return w.of("go.example", "GO.example:80", "other.example"), target, headers
}

// lookUp finds the match for a request as affctl does: by name, in the order of
// link.Candidates.
func lookUp(t *testing.T, all map[string]*linkv1.Resource, e *explain.Explanation) *link.Match {
	t.Helper()
	m := &link.Match{}
	value := func(name string) []byte {
		r := all[name]
		if r == nil {
			return nil
		}
		b, err := link.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, name := range link.DomainCandidates(e.Host) {
		if b := value(name); b != nil && m.Domain == nil {
			var err error
			if m.Domain, err = link.CompileDomain(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	policy := m.Domain.Policy()
	for _, name := range link.Candidates(e.Host, e.Path, policy) {
		if !strings.HasPrefix(name, link.Links.Prefix()) || m.Value != nil {
			continue
		}
		domain, path := link.SplitLinkID(strings.TrimPrefix(name, link.Links.Prefix()))
		best := ""
		for key, r := range all {
			l := r.GetLink()
			if l == nil || l.GetDomain() != domain || link.IsPrefix(l.GetPath()) != link.IsPrefix(path) {
				continue
			}
			if key == name || best != name && policy.Same([]byte(l.GetPath()), []byte(path)) && (best == "" || key < best) {
				best = key
			}
		}
		if b := value(best); b != nil {
			if err := m.Load(b); err != nil {
				t.Fatal(err)
			}
			if b := value(link.Affiliates.Prefix() + all[best].GetLink().GetAffiliate()); b != nil {
				var err error
				if m.Affiliate, err = link.CompileAffiliate(b); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return m
}

// TestExplainAndTheNodeAgree compares what the node answers with what explain
// says, for links and requests at random. The node decides by its table and its
// parser; explain by names and whole values.
func TestExplainAndTheNodeAgree(t *testing.T) {
	pairs := agreePairs
	if text := os.Getenv("AFF_PAIRS"); text != "" {
		var err error
		if pairs, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	// What is counted, explain does not know.
	counted := link.Of(link.LabelRate, link.LabelDuplicate, link.LabelReplay)
	judge, err := label.New(label.Config{Memory: label.MinMemory, Off: counted})
	if err != nil {
		t.Fatal(err)
	}
	n := startNode(t, 0, withPlaces(t), func(c *Config) { c.Judge = judge })
	c := &conn{srv: n.Server, group: &group{srv: n.Server}, believed: true}
	seed := uint64(time.Now().UnixNano())
	rnd := world{rand.New(rand.NewPCG(seed, 1))}
	w := n.newWork().(*work)
	outcomes, treated, rules, redirects := map[string]int{}, map[string]int{}, 0, 0
	for i := 0; i < pairs; {
		all := rnd.resources()
		var list []*linkv1.Resource
		for _, r := range all {
			list = append(list, r)
		}
		n.cfg.Live.Store(newTable(t, list...))
		for range 20 {
			i++
			host, target, headers := rnd.request()
			w.begin(n.Server)
			size := copy(w.in, requestBytes(host, target, headers))
			if took, why := w.head.parse(w.in[:size]); took != size || why != accepted {
				t.Fatalf("seed %d: %s is refused: %d", seed, w.in[:size], why)
			}
			refused := w.decide(c)
			req := &explain.Request{
				URL: "http://" + host + target, At: time.UnixMicro(w.wall), Address: w.request.Address, Headers: headers,
				Sources: n.cfg.Sources, GeoHeaders: n.cfg.GeoHeaders, Off: counted,
			}
			if headers["User-Agent"] == nil {
				headers["User-Agent"] = []string{""}
			}
			e, err := explain.New(req)
			if refused != accepted {
				if !errors.Is(err, explain.ErrBadRequest) {
					t.Fatalf("seed %d: %s is refused by the node, and explain says %v", seed, target, err)
				}
				continue
			}
			if err == nil {
				err = e.Decide(lookUp(t, all, e), bookOf(t, all), req)
			}
			if err != nil {
				t.Fatalf("seed %d: %s: %v", seed, target, err)
			}
			d := &w.decision
			if string(d.Location) != e.Location || d.Status != e.Status || d.Outcome.String() != e.Outcome || d.Rule != e.Rule ||
				string(d.Variant) != e.Variant || string(d.Body) != e.Body || d.Location != nil && (d.CacheControl != e.Cache || d.RobotsTag != e.RobotsTag) {
				t.Fatalf("seed %d: http://%s%s %v\nnode:    %d %s %s rule %d %s\nexplain: %d %s %s rule %d %s\n%v", seed, host, target, headers,
					d.Status, d.Location, d.Outcome, d.Rule, d.Variant, e.Status, e.Location, e.Outcome, e.Rule, e.Variant, all)
			}
			var labels, said []string
			for _, l := range w.labels {
				labels = append(labels, string(l.Name)+" "+string(l.Value))
			}
			for _, l := range e.Labels {
				said = append(said, l.Label+" "+l.Reason)
			}
			if fmt.Sprint(labels) != fmt.Sprint(said) || w.verdict.Treatment.String() != e.Treatment {
				t.Fatalf("seed %d: http://%s%s %v\nnode:    %q %v\nexplain: %q %s\n%v", seed, host, target, headers, labels, w.verdict.Treatment, said, e.Treatment, all)
			}
			treated[e.Treatment]++
			if d.Location != nil {
				checkLocation(t, d.Location)
				redirects++
			}
			outcomes[e.Outcome]++
			rules += min(1, int(d.Rule))
		}
	}
	if len(outcomes) < 8 || len(treated) < 4 || rules < pairs/50 || redirects < pairs/4 {
		t.Errorf("too little is seen of the world: %v, %v, %d by rules, %d redirects", outcomes, treated, rules, redirects)
	}
}

// bookOf has the blocks and policies among resources.
func bookOf(t *testing.T, all map[string]*linkv1.Resource) *explain.Book {
	t.Helper()
	b := new(explain.Book)
	for _, r := range all {
		if err := b.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// checkLocation checks what no request may make of a Location.
func checkLocation(t *testing.T, location []byte) {
	t.Helper()
	host, _, _ := strings.Cut(strings.TrimPrefix(string(location), "https://"), "/")
	host, _, _ = strings.Cut(host, "?")
	host, _, _ = strings.Cut(host, "#")
	if host != "store.example" && host != "shop.example:8443" {
		t.Fatalf("sent to another host: %q", location)
	}
	for _, b := range location {
		if b <= 0x20 || b == 0x7f {
			t.Fatalf("a byte that may not stand there: %q", location)
		}
	}
}

func requestBytes(host, target string, headers map[string][]string) string {
	request := "GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\n"
	for name, values := range headers {
		request += name + ": " + values[0] + "\r\n"
	}
	return request + "\r\n"
}
