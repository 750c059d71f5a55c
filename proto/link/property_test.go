package link_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// maker makes up resources and requests that use every feature.
type maker struct{ *rand.Rand }

func pick[T any](m maker, from ...T) T { return from[m.IntN(len(from))] }

// some gives a value now and then, and else its zero.
func some[T any](m maker, v T) (zero T) {
	if m.IntN(3) == 0 {
		return v
	}
	return zero
}

func (m maker) destination() string {
	return "https://" + pick(m, "store.com", "store.com:8080", "[2001:db8::1]") +
		pick(m, "", "/", "/p/{sub1}", "/p/{rest:raw}", "/a/{path:raw}/x", "/%41") +
		pick(m, "", "?", "?ref=1", "?s={sub1|none}&c={country}", "?{query.a}={query.b:raw}&a=0", "?v={variant}&i={click_id}&") +
		pick(m, "", "#f", "#{city|x}{rand}")
}

func (m maker) splits() (all []*linkv1.Split) {
	for i := range m.IntN(4) {
		all = append(all, &linkv1.Split{Name: fmt.Sprint("v", i), Weight: 1 + m.Uint32N(100), Destination: m.destination()})
	}
	return all
}

func (m maker) query() *linkv1.QueryPolicy {
	names := func() []string { return some(m, []string{"a", "ref"}[:1+m.IntN(2)]) }
	q := &linkv1.QueryPolicy{Mode: linkv1.QueryMode(m.IntN(5)), Allow: names(), Capture: names()}
	if q.Allow == nil {
		q.Deny = names()
	}
	return q
}

func (m maker) rule() *linkv1.Rule {
	r := &linkv1.Rule{Name: some(m, "r"), When: pick(m,
		`country == "DE"`, `device == "mobile" && !bot`, `query.a == "1"`, `has(query.b)`, `languages.exists(l, l == "en")`,
		`labels.tier == "gold"`, `cidr("10.0.0.0/8").containsIP(ip)`, `path.endsWith("x")`, `now.getHours() < 12`, `asn in [1, 2]`)}
	switch m.IntN(5) {
	case 0:
		r.Outcome = &linkv1.Rule_Fallback{Fallback: true}
	case 1:
		r.Outcome = &linkv1.Rule_NotFound{NotFound: true}
	case 2:
		if s := m.splits(); s != nil {
			r.Outcome = &linkv1.Rule_Splits{Splits: &linkv1.SplitSet{Splits: s}}
			break
		}
		fallthrough
	default:
		r.Outcome = sends(m.destination())
	}
	return r
}

func (m maker) link() *linkv1.Link {
	l := &linkv1.Link{
		Domain: pick(m, "*", "go.example.com"), Path: pick(m, "/go", "/go/*"), Destination: m.destination(), Fallback: m.destination(),
		Affiliate: some(m, "aff_01"), Campaign: some(m, "ä b"), Labels: some(m, map[string]string{"tier": "gold"}),
		StatusCode: some[int32](m, 307), Query: some(m, m.query()), Splits: some(m, m.splits()), Disabled: m.IntN(20) == 0,
		NotBefore: some(m, timestamppb.New(timestamppb.Now().AsTime().Add(-1e15))), Cap: some(m, &linkv1.Cap{Clicks: 1 + m.Uint64N(3)}),
	}
	for range some(m, m.IntN(5)) {
		l.Rules = append(l.Rules, m.rule())
	}
	if len(l.Splits) > 0 && m.IntN(2) == 0 {
		l.Sticky, l.StickyParameter = linkv1.StickyKey_STICKY_KEY_QUERY, "sub1"
	}
	return l
}

func (m maker) bytes() string {
	b := make([]byte, m.IntN(6))
	for i := range b {
		b[i] = pick(m, 'a', '1', '%', '+', '/', '.', '&', '=', '#', '?', '\\', '\r', '\n', 0, 0xff, '@', ':', ' ', byte(m.IntN(256)))
	}
	return string(b)
}

func (m maker) request() *link.Request {
	var query strings.Builder
	for range m.IntN(5) {
		query.WriteString("&" + pick(m, "a", "b", "ref", "sub1", "%61", m.bytes()) + pick(m, "", "=", "=1", "=DE", "="+m.bytes()))
	}
	path, _ := link.AppendCanonicalPath(nil, []byte("/go"+pick(m, "", "/", "/x", "/"+strings.ReplaceAll(m.bytes(), "%", "%25"))))
	return &link.Request{
		Host: []byte("go.example.com"), Path: path, Query: []byte(query.String()), UnixMicro: m.Int64N(4e15), Random: m.Uint64(),
		Address: netip.AddrFrom4([4]byte{byte(9 + m.IntN(3)), byte(m.IntN(256)), 0, 1}),
		Visitor: &somebody{
			place: link.Place{Country: pick(m, "", "DE", "FR"), City: pick(m, "", "Köln am Rhein", "..")}, languages: pick(m, nil, []string{"en", "de"}),
			agent: link.Agent{Device: pick(m, "", "mobile"), Bot: m.IntN(4) == 0}, id: "n.1",
		},
	}
}

// TestDecisionsAreSafeAndExplained makes up links and requests: what a link says
// survives its bytes, the answer is the same however the link is stored and
// whether or not somebody asks why, and it goes to a host that the link names.
func TestDecisionsAreSafeAndExplained(t *testing.T) {
	m := maker{rand.New(rand.NewPCG(6, 2))}
	outcomes := map[link.Outcome]int{}
	for range 2000 {
		l := m.link()
		value, err := link.Encode(resource(l))
		if err != nil {
			t.Fatal(err)
		}
		r, err := link.Unmarshal(link.LinkName(l.Domain, l.Path), value)
		if err != nil || !proto.Equal(r.GetLink(), l) {
			t.Fatalf("%v becomes %v, %v", l, r, err)
		}
		whole := matchOf(t, l, some(m, &linkv1.Domain{Host: "*", NotFound: m.destination(), Query: some(m, m.query())}),
			some(m, &linkv1.Affiliate{Id: "aff_01", State: linkv1.AffiliateState(m.IntN(8) / 5 * 2), Parameters: []*linkv1.Parameter{{Name: "ref", Value: m.text()}, {Name: "a", Value: "x y"}}}))
		bare := *whole
		if bare.Link.HasPlan() {
			bare.Value = bare.Link.AppendBare(nil, whole.Value, m.Uint64())
			if again := bare.Link.AppendValue(nil, bare.Value, whole.Plan.Bytes()); !bytes.Equal(again, value) {
				t.Fatalf("%x becomes %x", value, again)
			}
		}
		var d, stored, explained link.Decision
		for range 100 {
			req := m.request()
			left := m.IntN(2)
			req.Caps = &counter{left: left}
			link.Resolve(whole, req, &d)
			req.Caps = &counter{left: left}
			link.Resolve(&bare, req, &stored)
			req.Caps, req.Trace = &counter{left: left}, new(link.Trace)
			link.Resolve(whole, req, &explained)
			for _, other := range []*link.Decision{&stored, &explained} {
				if a, b := summary(&d), summary(other); a != b {
					t.Fatalf("%v\n%q %q\n%s, and\n%s", l, req.Path, req.Query, a, b)
				}
			}
			outcomes[d.Outcome]++
			if d.Location != nil {
				checkHost(t, string(d.Location))
			}
		}
	}
	for _, o := range []link.Outcome{link.ToDestination, link.ToNotFound, link.IsDisabled, link.IsSuspended, link.IsCapped, link.ByRule} {
		if outcomes[o] < 100 {
			t.Errorf("%v came %d times: that proves little", o, outcomes[o])
		}
	}
}

func (m maker) text() string { return strings.ToValidUTF8(pick(m, "1", "a&b=#?", "ä", "{sub1}"), "") }

func summary(d *link.Decision) string {
	return fmt.Sprintf("%v %d %q %q %d %q %q %d %q", d.Outcome, d.Status, d.Location, d.CacheControl, d.Rule, d.RuleName, d.Variant, d.RuleErrors, d.Params)
}

// checkHost checks that a Location is one of the maker's destinations.
func checkHost(t *testing.T, location string) {
	t.Helper()
	for _, host := range []string{"https://store.com:8080", "https://store.com", "https://[2001:db8::1]"} {
		if strings.HasPrefix(location, host) {
			checkLocation(t, host, location)
			return
		}
	}
	t.Fatalf("%q is of no host of the link", location)
}
