package link_test

import (
	"bytes"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func resource(l *linkv1.Link) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}}
}

func summer() *linkv1.Link {
	return &linkv1.Link{Domain: "go.example.com", Path: "/summer", Destination: "https://store.com/p/123?ref=aff_01"}
}

func TestPathsOfRequestsTakeTheirCanonicalForm(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"/go/summer", "/go/summer"},
		{"/go/%41bc", "/go/Abc"},
		{"/go/%61%2fb", "/go/a%2Fb"},
		{"/100%25", "/100%25"},
		{"/a%20b", "/a%20b"},
		{"/a b", "/a%20b"},
		{"/caf%C3%A9", "/café"},
		{"/caf%c3é", "/caf%C3é"},
		{"/café", "/café"},
		{"/%ff%FE", "/%FF%FE"},
		{"/\xff", "/%FF"},
		{"/%C2%85", "/%C2%85"},
		{"/%F0%9F%8E%81", "/🎁"},
		{"/%f0%9f%8e", "/%F0%9F%8E"},
		{"/go/%2A", "/go/%2A"},
		{"/%7Euser/%7b%7D", "/~user/{}"},
		{"/a%5Cb", "/a%5Cb"},
		{"/a\\b", "/a%5Cb"},
		{"//a//b", "//a//b"},
		{"/a#b", "/a%23b"},
	} {
		got, ok := link.AppendCanonicalPath(nil, []byte(c.in))
		if !ok || string(got) != c.want {
			t.Errorf("%q becomes %q (%v), want %q", c.in, got, ok, c.want)
		}
	}
	for _, in := range []string{"", "go", "/%", "/%4", "/%zz", "/é%", "/%C3%"} {
		if got, ok := link.AppendCanonicalPath([]byte("x"), []byte(in)); ok || string(got) != "x" {
			t.Errorf("%q becomes %q, want a refusal that leaves the buffer alone", in, got)
		}
	}
}

func TestCanonicalisingARequestDoesNotAllocate(t *testing.T) {
	buf := make([]byte, 0, 1024)
	host, path := []byte("Go.Example.com:8080"), []byte("/caf%C3%A9/%2F/summer")
	address := []byte("[2001:DB8::FFFF:192.0.2.1]:8080")
	if n := testing.AllocsPerRun(100, func() {
		link.AppendCanonicalHost(buf, host)
		link.AppendCanonicalHost(buf, address)
		link.AppendCanonicalPath(buf, path)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestValidateNamesTheFieldAndTheCure(t *testing.T) {
	long := strings.Repeat("a", 8200)
	for _, c := range []struct {
		name  string
		edit  func(*linkv1.Link)
		kind  link.ErrorKind
		field string
		says  string // in the message or the hint
	}{
		{"no domain", func(l *linkv1.Link) { l.Domain = "" }, link.Invalid, "domain", "missing"},
		{"domain in upper case", func(l *linkv1.Link) { l.Domain = "Go.Example.com" }, link.Invalid, "domain", "go.example.com"},
		{"domain with port", func(l *linkv1.Link) { l.Domain = "a.com:80" }, link.Invalid, "domain", "a.com"},
		{"domain not ASCII", func(l *linkv1.Link) { l.Domain = "é.com" }, link.Invalid, "domain", "xn--"},
		{"no path", func(l *linkv1.Link) { l.Path = "" }, link.Invalid, "path", "missing"},
		{"path without slash", func(l *linkv1.Link) { l.Path = "go" }, link.Invalid, "path", "slash"},
		{"path too long", func(l *linkv1.Link) { l.Path = "/" + long }, link.Invalid, "path", "8192"},
		{"path escaped needlessly", func(l *linkv1.Link) { l.Path = "/%41" }, link.Invalid, "path", "/A"},
		{"path in lower-case hex", func(l *linkv1.Link) { l.Path = "/%2f" }, link.Invalid, "path", "/%2F"},
		{"path with broken escape", func(l *linkv1.Link) { l.Path = "/%4" }, link.Invalid, "path", "%25"},
		{"path with query", func(l *linkv1.Link) { l.Path = "/a?b" }, link.Invalid, "path", "%3F"},
		{"path with dots", func(l *linkv1.Link) { l.Path = "/a/../b" }, link.Invalid, "path", "clients remove"},
		{"path with line feed", func(l *linkv1.Link) { l.Path = "/a\nb" }, link.Invalid, "path", "control"},
		{"path not UTF-8", func(l *linkv1.Link) { l.Path = "/\xff" }, link.Invalid, "path", "UTF-8"},
		{"prefix too deep", func(l *linkv1.Link) { l.Path = strings.Repeat("/a", 33) + "/*" }, link.Invalid, "path", "33 segments"},
		{"rest without prefix", func(l *linkv1.Link) { l.Rest = linkv1.RestPolicy_REST_POLICY_DROP }, link.Invalid, "rest", "end the path in /*"},
		{"rest with a star that is none", func(l *linkv1.Link) { l.Path, l.Rest = "/a*", linkv1.RestPolicy_REST_POLICY_APPEND }, link.Invalid, "rest", "end the path in /*"},
		{"rest of another time", func(l *linkv1.Link) { l.Path, l.Rest = "/a/*", 9 }, link.Invalid, "rest", "APPEND or DROP"},
		{"rest that is negative", func(l *linkv1.Link) { l.Path, l.Rest = "/a/*", -1 }, link.Invalid, "rest", "APPEND or DROP"},
		{"no destination", func(l *linkv1.Link) { l.Destination = "" }, link.Invalid, "destination", "missing"},
		{"relative", func(l *linkv1.Link) { l.Destination = "/p/1" }, link.Invalid, "destination", "relative"},
		{"without scheme", func(l *linkv1.Link) { l.Destination = "//store.com/p" }, link.Invalid, "destination", "relative"},
		{"javascript", func(l *linkv1.Link) { l.Destination = "javascript:alert(1)" }, link.Invalid, "destination", "http"},
		{"ftp", func(l *linkv1.Link) { l.Destination = "ftp://a.com/" }, link.Invalid, "destination", "http"},
		{"one slash", func(l *linkv1.Link) { l.Destination = "https:/a.com/" }, link.Invalid, "destination", "http"},
		{"no host", func(l *linkv1.Link) { l.Destination = "https:///p" }, link.Invalid, "destination", "host"},
		{"bad port", func(l *linkv1.Link) { l.Destination = "https://a.com:x/" }, link.Invalid, "destination", "port"},
		{"userinfo", func(l *linkv1.Link) { l.Destination = "https://store.com@evil.com/" }, link.Invalid, "destination", "user information"},
		{"backslash", func(l *linkv1.Link) { l.Destination = `https://a.com\@b.com/` }, link.Invalid, "destination", "backslash"},
		{"CR LF", func(l *linkv1.Link) { l.Destination = "https://a.com/\r\nSet-Cookie: a" }, link.Invalid, "destination", "control"},
		{"space", func(l *linkv1.Link) { l.Destination = "https://a.com/a b" }, link.Invalid, "destination", "a%20b"},
		{"destination too long", func(l *linkv1.Link) { l.Destination = "https://a.com/" + long }, link.Invalid, "destination", "8192"},
		{"bad fallback", func(l *linkv1.Link) { l.Fallback = "x" }, link.Invalid, "fallback", "relative"},
		{"bad affiliate", func(l *linkv1.Link) { l.Affiliate = "a/b" }, link.Invalid, "affiliate", "letters"},
		{"long campaign", func(l *linkv1.Link) { l.Campaign = long }, link.Invalid, "campaign", "256"},
		{"bad label", func(l *linkv1.Link) { l.Labels = map[string]string{"A": "b"} }, link.Invalid, "labels", `"A"`},
		{"status", func(l *linkv1.Link) { l.StatusCode = 200 }, link.Invalid, "status_code", "307"},
		{"ends before it begins", func(l *linkv1.Link) {
			l.NotBefore, l.ExpiresAt = timestamppb.New(time.Unix(2, 0)), timestamppb.New(time.Unix(1, 0))
		}, link.Invalid, "expires_at", "not after"},
		{"misshapen split", func(l *linkv1.Link) { l.Splits = []*linkv1.Split{{Name: "a"}} }, link.Invalid, "splits[0].weight", "at least 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := summer()
			c.edit(l)
			problems := link.Problems(link.Validate(resource(l)))
			if len(problems) == 0 {
				t.Fatal("is accepted")
			}
			p := problems[0]
			if p.Kind != c.kind || p.Field != c.field || !strings.Contains(p.Message+p.Hint, c.says) {
				t.Errorf("kind %d, field %q: %s (%s); want kind %d, field %q and %q", p.Kind, p.Field, p.Message, p.Hint, c.kind, c.field, c.says)
			}
		})
	}
}

func TestValidateReportsEveryProblemAtOnce(t *testing.T) {
	err := link.Validate(resource(&linkv1.Link{Domain: "A", Path: "b", Destination: "c", StatusCode: 1}))
	if n := len(link.Problems(err)); n != 4 {
		t.Errorf("%d problems, want 4: %v", n, err)
	}
}

func TestEveryKindOfResourceHasAName(t *testing.T) {
	for want, r := range map[string]*linkv1.Resource{
		"links/go.example.com/summer": resource(summer()),
		"links/*/":                    resource(&linkv1.Link{Domain: "*", Path: "/"}),
		"domains/*":                   {Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{Host: "*"}}},
		"affiliates/aff_01":           {Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{Id: "aff_01"}}},
		"blocks/b.1":                  {Kind: &linkv1.Resource_Block{Block: &linkv1.Block{Id: "b.1"}}},
		"policies/*":                  policyResource(&linkv1.Policy{Scope: "*"}),
		"policies/domains/a.com":      policyResource(&linkv1.Policy{Scope: "domains/a.com"}),
		"policies/domains/*":          policyResource(&linkv1.Policy{Scope: "domains/*"}),
		"policies/affiliates/aff_01":  policyResource(&linkv1.Policy{Scope: "affiliates/aff_01"}),
	} {
		name, err := link.Name(r)
		if err != nil || name != want {
			t.Errorf("%q, %v; want %q", name, err, want)
		}
		k, id, err := link.ParseName(want)
		if err != nil || k.Prefix()+id != want {
			t.Errorf("%q parses to %v %q, %v", want, k, id, err)
		}
	}
	var e *link.Error
	if _, err := link.Name(resource(&linkv1.Link{Domain: "*", Path: "x"})); !errors.As(err, &e) || e.Field != "path" {
		t.Errorf("a path without slash: %v", err)
	}
	for _, name := range []string{"", "x", "links/", "links/a", "links/a/%41", "domains/A", "affiliates/", "affiliates/a/b"} {
		if _, _, err := link.ParseName(name); err == nil {
			t.Errorf("%q is accepted", name)
		}
	}
}

func TestUnknownAndDamagedResourcesAreRefused(t *testing.T) {
	if err := link.Validate(&linkv1.Resource{}); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("an empty resource: %v", err)
	}
	if _, err := link.Compile([]byte{0x0a, 0x05, 1}); err == nil {
		t.Error("a truncated value compiles")
	}
	value, _ := link.Marshal(resource(summer()))
	if _, err := link.Unmarshal("links/go.example.com/winter", value); err == nil {
		t.Error("a value under another name is accepted")
	}
}

func TestReadOnlyFieldsAreNeitherStoredNorHashed(t *testing.T) {
	r := resource(summer())
	bare, err := link.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	link.SetReadOnly(r, 7, &linkv1.Record{UpdatedBy: "me", CreateTime: timestamppb.Now()})
	if r.GetLink().GetRevision() != 7 || r.GetLink().GetUpdatedBy() != "me" {
		t.Error("read-only fields are not set")
	}
	if again, _ := link.Marshal(r); !bytes.Equal(bare, again) {
		t.Error("read-only fields are in the stored bytes")
	}
}

// decide compiles and resolves as a node does.
func decide(t *testing.T, l *linkv1.Link, d *linkv1.Domain, a *linkv1.Affiliate, path string, now time.Time) link.Decision {
	t.Helper()
	var m link.Match
	var err error
	if l != nil {
		value, err := link.Encode(resource(l))
		if err != nil {
			t.Fatal(err)
		}
		if err = m.Load(value); err != nil {
			t.Fatal(err)
		}
		m.Link = link.LoadCompiled(m.Link.Append(nil))
	}
	if d != nil {
		value, _ := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: d}})
		if m.Domain, err = link.CompileDomain(value); err != nil {
			t.Fatal(err)
		}
	}
	if a != nil {
		value, _ := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: a}})
		if m.Affiliate, err = link.CompileAffiliate(value); err != nil {
			t.Fatal(err)
		}
	}
	var got link.Decision
	req := link.Request{Host: []byte("go.example.com"), Path: []byte(path), UnixMicro: now.UnixMicro()}
	link.Resolve(&m, &req, &got)
	return got
}

func TestResolveDecidesEveryCase(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	before, after := timestamppb.New(now.Add(-time.Microsecond)), timestamppb.New(now.Add(time.Microsecond))
	home := &linkv1.Domain{Host: "*", NotFound: "https://store.com/", Root: "https://store.com/root", StatusCode: 307, CacheControl: "max-age=60"}
	suspended := &linkv1.Affiliate{Id: "aff_01", State: linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED}
	with := func(edit func(*linkv1.Link)) *linkv1.Link { l := summer(); edit(l); return l }
	const dest, fallback = "https://store.com/p/123?ref=aff_01", "https://store.com/sorry"
	for _, c := range []struct {
		name      string
		link      *linkv1.Link
		domain    *linkv1.Domain
		affiliate *linkv1.Affiliate
		path      string
		status    int
		location  string
		outcome   link.Outcome
	}{
		{"plain", summer(), nil, nil, "/summer", 302, dest, link.ToDestination},
		{"own status", with(func(l *linkv1.Link) { l.StatusCode = 301 }), home, nil, "/summer", 301, dest, link.ToDestination},
		{"domain's status", summer(), home, nil, "/summer", 307, dest, link.ToDestination},
		{"no link, no domain", nil, nil, nil, "/x", 404, "", link.ToNotFound},
		{"no link", nil, home, nil, "/x", 302, "https://store.com/", link.ToNotFound},
		{"root", nil, home, nil, "/", 302, "https://store.com/root", link.ToRoot},
		{"disabled", with(func(l *linkv1.Link) { l.Disabled = true }), nil, nil, "/summer", 404, "", link.IsDisabled},
		{"disabled with not_found", with(func(l *linkv1.Link) { l.Disabled = true }), home, nil, "/summer", 302, "https://store.com/", link.IsDisabled},
		{"disabled with fallback", with(func(l *linkv1.Link) { l.Disabled, l.Fallback = true, fallback }), home, nil, "/summer", 302, fallback, link.IsDisabled},
		{"not yet", with(func(l *linkv1.Link) { l.NotBefore = after }), nil, nil, "/summer", 404, "", link.IsNotYet},
		{"just begun", with(func(l *linkv1.Link) { l.NotBefore = timestamppb.New(now) }), nil, nil, "/summer", 302, dest, link.ToDestination},
		{"expired", with(func(l *linkv1.Link) { l.ExpiresAt = before }), home, nil, "/summer", 410, "", link.IsExpired},
		{"expires now", with(func(l *linkv1.Link) { l.ExpiresAt = timestamppb.New(now) }), nil, nil, "/summer", 410, "", link.IsExpired},
		{"expired with fallback", with(func(l *linkv1.Link) { l.ExpiresAt, l.Fallback = before, fallback }), nil, nil, "/summer", 302, fallback, link.IsExpired},
		{"in its schedule", with(func(l *linkv1.Link) { l.NotBefore, l.ExpiresAt = before, after }), nil, nil, "/summer", 302, dest, link.ToDestination},
		{"active affiliate", summer(), nil, &linkv1.Affiliate{Id: "a"}, "/summer", 302, dest, link.ToDestination},
		{"suspended", summer(), nil, suspended, "/summer", 404, "", link.IsSuspended},
		{"suspended with the affiliate's fallback", summer(), nil, &linkv1.Affiliate{Id: "a", State: 2, Fallback: fallback}, "/summer", 302, fallback, link.IsSuspended},
		{"suspended with the link's fallback", with(func(l *linkv1.Link) { l.Fallback = fallback }), nil, suspended, "/summer", 302, fallback, link.IsSuspended},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := decide(t, c.link, c.domain, c.affiliate, c.path, now)
			if got.Status != c.status || string(got.Location) != c.location || got.Outcome != c.outcome {
				t.Errorf("%d %q %v, want %d %q %v", got.Status, got.Location, got.Outcome, c.status, c.location, c.outcome)
			}
			if wantCache := map[bool]string{true: "no-store", false: "max-age=60"}[c.domain == nil]; got.CacheControl != wantCache {
				t.Errorf("Cache-Control %q, want %q", got.CacheControl, wantCache)
			}
			if c.link != nil && (string(got.Domain) != c.link.Domain || string(got.Path) != c.link.Path) {
				t.Errorf("key %q %q", got.Domain, got.Path)
			}
		})
	}
}

func TestResolveDoesNotAllocate(t *testing.T) {
	l := summer()
	l.ExpiresAt = timestamppb.New(time.Unix(4e9, 0))
	value, _ := link.Marshal(resource(l))
	c, err := link.Compile(value)
	if err != nil {
		t.Fatal(err)
	}
	m := link.Match{Link: c, Value: value}
	var d link.Decision
	if n := testing.AllocsPerRun(100, func() { link.Resolve(&m, &link.Request{UnixMicro: 1}, &d) }); n != 0 {
		t.Errorf("Resolve: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { c, err = link.Compile(value) }); n != 0 {
		t.Errorf("Compile: %v allocations", n)
	}
}

func TestSetHashIsASumThatDoesNotDependOnOrder(t *testing.T) {
	a, b := link.HashEntry([]byte("a"), []byte("1")), link.HashEntry([]byte("b"), []byte("2"))
	var zero link.SetHash
	if zero.Add(a).Add(b) != zero.Add(b).Add(a) || zero.Add(a).Add(b).Sub(a) != b || b.Sub(b) != zero {
		t.Error("Add and Sub are no group")
	}
	if link.HashEntry([]byte("ab"), []byte("c")) == link.HashEntry([]byte("a"), []byte("bc")) {
		t.Error("the border between key and value is not hashed")
	}
	if (link.SetHash{Lo: 1}).Sub(link.SetHash{Lo: 2}) != (link.SetHash{Hi: 1<<64 - 1, Lo: 1<<64 - 1}) {
		t.Error("no borrow between the halves")
	}
}

func FuzzCanonicalPathIsIdempotentValidAndSafe(f *testing.F) {
	for _, s := range []string{"/a", "/%41%2f", "/caf%C3%A9", "/\xff%ff", "/%", "/%f0%9f%8e%81", "/%C2%85"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, path []byte) {
		got, ok := link.AppendCanonicalPath(nil, path)
		if !ok {
			return
		}
		again, ok := link.AppendCanonicalPath(nil, got)
		if !ok || !bytes.Equal(got, again) {
			t.Fatalf("%q becomes %q becomes %q", path, got, again)
		}
		if !strings.HasPrefix(string(got), "/") || strings.ContainsAny(string(got), " \\?#\x00\r\n") || strings.ToValidUTF8(string(got), "") != string(got) {
			t.Fatalf("%q becomes %q", path, got)
		}
		want, err := url.PathUnescape(string(path))
		have, err2 := url.PathUnescape(string(got))
		if err == nil && (err2 != nil || want != have) {
			t.Fatalf("%q and %q are different paths", path, got)
		}
	})
}

func FuzzDestinationsThatPassAreURLsOfTheSameHost(f *testing.F) {
	for _, s := range []string{"https://store.com/p?a=b#c", "http://[::1]:80/", "https://a.com/%", "https://a.com@b.com/", "HTTPS://A.com/?%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if link.CheckDestination("destination", s) != nil {
			return
		}
		u, err := url.Parse(s)
		if err != nil {
			t.Fatalf("%q passes, and url.Parse says %v", s, err)
		}
		if u.User != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			t.Fatalf("%q passes as %+v", s, u)
		}
		h := http.Header{"Location": {s}}
		var b bytes.Buffer
		if err := h.Write(&b); err != nil || b.String() != "Location: "+s+"\r\n" {
			t.Fatalf("%q is no header value", s)
		}
	})
}

func FuzzCompileAgreesWithTheProtobufDecoder(f *testing.F) {
	l := summer()
	l.Disabled, l.StatusCode, l.Affiliate, l.Campaign = true, 301, "a", "c"
	l.ExpiresAt = timestamppb.New(time.Unix(1, 0))
	value, _ := link.Marshal(resource(l))
	f.Add(value)
	f.Add(protowire.AppendVarint([]byte{0x0a}, 3))
	f.Fuzz(func(t *testing.T, value []byte) {
		c, err := link.Compile(value)
		if err != nil {
			var e *link.Error
			if !errors.As(err, &e) {
				t.Fatalf("%v is no domain error", err)
			}
			return
		}
		r := new(linkv1.Resource)
		if err := proto.Unmarshal(value, r); err != nil {
			t.Skip() // text in a field that redirects do not use
		}
		l := r.GetLink()
		if l.GetDomain() != string(c.Domain(value)) || l.GetPath() != string(c.Path(value)) ||
			l.GetDestination() != string(c.Destination(value)) || l.GetAffiliate() != string(c.Affiliate(value)) {
			t.Fatalf("%v compiles to %q %q", l, c.Domain(value), c.Path(value))
		}
		if _, err := link.Name(r); err != nil {
			t.Fatalf("compiles, and has no name: %v", err)
		}
		var m link.Match
		if m.Load(value) == nil {
			var d link.Decision
			link.Resolve(&m, &link.Request{Path: c.Path(value)}, &d)
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	value, _ := link.Marshal(resource(summer()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := link.Compile(value); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkResolvePlainLink(b *testing.B) {
	value, _ := link.Marshal(resource(summer()))
	c, _ := link.Compile(value)
	m, req := link.Match{Link: c, Value: value}, link.Request{}
	var d link.Decision
	b.ReportAllocs()
	for b.Loop() {
		link.Resolve(&m, &req, &d)
	}
}

func BenchmarkHashEntry(b *testing.B) {
	key := []byte("links/go.example.com/summer-deal-1")
	value, _ := link.Marshal(resource(summer()))
	b.ReportAllocs()
	for b.Loop() {
		link.HashEntry(key, value)
	}
}
