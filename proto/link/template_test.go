package link_test

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// locate decides a request for a link and gives the Location.
func locate(t testing.TB, l *linkv1.Link, query string) string {
	t.Helper()
	path := strings.TrimSuffix(l.GetPath(), "*")
	var d link.Decision
	link.Resolve(matchOf(t, l, nil, nil), request(path, query), &d)
	return string(d.Location)
}

func TestMacrosAreFilledIn(t *testing.T) {
	for _, c := range []struct{ destination, query, want string }{
		{"https://a.com/?x={click_id}", "", "https://a.com/?x=n1-7f.42"},
		{"https://a.com/?x={sub1}", "sub1=1", "https://a.com/?x=1"},
		{"https://a.com/?x={sub10}&y={sub1}", "sub1=1&sub10=ten", "https://a.com/?x=ten&y=1"},
		{"https://a.com/?x={SUB2}&y={External_ID}", "sub2=2&external_id=e", "https://a.com/?x=2&y=e"},
		{"https://a.com/?x={sub1}", "SUB1=1", "https://a.com/?x="},
		{"https://a.com/?x={sub1}", "%73ub1=1&sub1=2", "https://a.com/?x=1"},
		{"https://a.com/?x={query.utm_source}", "utm_source=mail", "https://a.com/?x=mail"},
		{"https://a.com/?x={QUERY.a[b]}", "a%5Bb%5D=1", "https://a.com/?x=1"},
		{"https://a.com/?x={affiliate}.{campaign}", "", "https://a.com/?x=aff_01.spring%20sale"},
		{"https://a.com/?x={link}", "", "https://a.com/?x=go.example.com%2Fsummer"},
		{"https://a.com/?x={path}&y={domain}", "", "https://a.com/?x=%2Fsummer&y=go.example.com"},
		{"https://a.com/{country}/{region}/{city}", "", "https://a.com/DE/BE/Berlin"},
		{"https://a.com/#{device}.{os}.{browser}.{language}", "", "https://a.com/#mobile.android.chrome.de"},
		{"https://a.com/?x={referrer_domain}", "", "https://a.com/?x=blog.example.org"},
		{"https://a.com/?x={ts}&y={ts_ms}&z={rand}", "", "https://a.com/?x=1780315200&y=1780315200000&z=42"},
		// Values are decoded, and escaped again as one component.
		{"https://a.com/?x={sub1}", "sub1=a+b%20c%2Fd&sub1=2", "https://a.com/?x=a%20b%20c%2Fd"},
		{"https://a.com/?x={sub1}", "sub1=%zz%4", "https://a.com/?x=%25zz%254"},
		{"https://a.com/?x={sub1}", "sub1=a%0D%0ASet-Cookie:%20b", "https://a.com/?x=a%0D%0ASet-Cookie%3A%20b"},
		// Raw ones stay as they are, unless they would begin something else.
		{"https://a.com/{sub1:raw}", "sub1=a/b%2Fc;d=1", "https://a.com/a/b%2Fc;d=1"},
		{"https://a.com/{sub1:RAW}", "sub1=a?b%20%zz", "https://a.com/a%3Fb%20%25zz"},
		{"https://a.com/?x={sub1:raw}", "sub1=a/b+c%2Bd", "https://a.com/?x=a/b+c%2Bd"},
		{"https://a.com/?x={sub1:raw}#f", "sub1=a#b\\c\r\nd=e\x00\xff", "https://a.com/?x=a%23b%5Cc%0D%0Ad%3De%00%FF#f"},
		// Defaults.
		{"https://a.com/?x={sub1|none}", "", "https://a.com/?x=none"},
		{"https://a.com/?x={sub1|none}", "sub1=", "https://a.com/?x=none"},
		{"https://a.com/?x={sub1|a%20b}&y={sub2:raw|c%20d}", "", "https://a.com/?x=a%20b&y=c%20d"},
		{"https://a.com/?x={sub1|}", "", "https://a.com/?x="},
	} {
		l := summer()
		l.Destination, l.Affiliate, l.Campaign = c.destination, "aff_01", "spring sale"
		c.query = strings.ReplaceAll(c.query, " ", "%20")
		if got := locate(t, l, c.query); got != c.want {
			t.Errorf("%s with %q gives %s, want %s", c.destination, c.query, got, c.want)
		}
	}
}

func TestMacrosInAPathNeverLeadUp(t *testing.T) {
	for _, c := range []struct{ destination, query string }{
		{"https://a.com/p/{sub1}/x", "sub1=.."},
		{"https://a.com/p/{sub1}", "sub1=."},
		{"https://a.com/p/{sub1:raw}", "sub1=../../x"},
		{"https://a.com/p/{sub1:raw}", "sub1=%2e%2E/x"},
		{"https://a.com/p/{sub1:raw}", "sub1=a%2f..%5Cx"},
		{"https://a.com/p/{sub1}", "sub1=a/../x"},
		{"https://a.com/p/.{sub1}", ""},
		{"https://a.com/p/.{sub1}/x", "sub1=."},
		{"https://a.com/p{sub1:raw}", "sub1=/.."},
	} {
		l := summer()
		l.Destination = c.destination
		var d link.Decision
		if link.Resolve(matchOf(t, l, nil, nil), request("/summer", c.query), &d); d.Location != nil || d.Status != 404 || d.Outcome != link.ToNotFound {
			t.Errorf("%s with %q gives %d %s, want 404", c.destination, c.query, d.Status, d.Location)
		}
	}
	l := summer()
	l.Destination = "https://a.com/p/{sub1}/x"
	for query, want := range map[string]string{"sub1=...": "https://a.com/p/.../x", "sub1=..a": "https://a.com/p/..a/x"} {
		if got := locate(t, l, query); got != want {
			t.Errorf("%s gives %s, want %s", query, got, want)
		}
	}
}

func TestRestIsWhereTheTemplateSays(t *testing.T) {
	for _, c := range []struct{ destination, path, want string }{
		{"https://a.com/p?r={rest}", "/go/x%20y/z", "https://a.com/p?r=x%20y%2Fz"},
		{"https://a.com/p/{rest:raw}/end", "/go/x%20y/z", "https://a.com/p/x%20y/z/end"},
		{"https://a.com/p/{rest:raw|home}", "/go/", "https://a.com/p/home"},
		{"https://a.com/{country}", "/go/x", "https://a.com/DE/x"},
		{"https://a.com/?c={country}#{rest|f}", "/go/x", "https://a.com/?c=DE#x"},
		{"https://a.com?c={country}", "/go/x", "https://a.com/x?c=DE"},
	} {
		var d link.Decision
		link.Resolve(matchOf(t, &linkv1.Link{Domain: "*", Path: "/go/*", Destination: c.destination}, nil, nil), request(c.path, ""), &d)
		if string(d.Location) != c.want {
			t.Errorf("%s for %s gives %s, want %s", c.destination, c.path, d.Location, c.want)
		}
	}
}

func TestEveryDestinationMayBeATemplate(t *testing.T) {
	l := summer()
	l.Disabled, l.Fallback = true, "https://a.com/{country}"
	if got := locate(t, l, ""); got != "https://a.com/DE" {
		t.Errorf("fallback: %s", got)
	}
	home := &linkv1.Domain{Host: "*", NotFound: "https://a.com/404?p={path}&c={campaign|none}", Root: "https://a.com/{language}", CacheControl: "max-age=60"}
	l.Fallback = ""
	var d link.Decision
	m := matchOf(t, l, home, nil)
	link.Resolve(m, request("/x", ""), &d)
	if string(d.Location) != "https://a.com/404?p=%2Fx&c=none" || d.CacheControl != "no-store" {
		t.Errorf("not_found: %s, %s", d.Location, d.CacheControl)
	}
	link.Resolve(&link.Match{Domain: m.Domain}, request("/", ""), &d)
	if string(d.Location) != "https://a.com/de" || d.Outcome != link.ToRoot {
		t.Errorf("root: %s", d.Location)
	}
}

func TestLocationsThatWouldBeTooLongAreNone(t *testing.T) {
	l := summer()
	l.Destination = "https://a.com/?" + strings.Repeat("{sub1}", 1000)
	long := "sub1=" + strings.Repeat("ä", 2000)
	var d link.Decision
	link.Resolve(matchOf(t, l, nil, nil), request("/summer", long), &d)
	if d.Location != nil || d.Status != 404 {
		t.Errorf("%d, %d bytes", d.Status, len(d.Location))
	}
	l.Destination, l.Query = "https://a.com/", &linkv1.QueryPolicy{Mode: linkv1.QueryMode_QUERY_MODE_KEEP}
	link.Resolve(matchOf(t, l, nil, nil), request("/summer", strings.Repeat("ä", 8000)), &d)
	if d.Location != nil || d.Status != 404 {
		t.Errorf("forwarded: %d, %d bytes", d.Status, len(d.Location))
	}
}

func TestTemplatesAreCheckedWhenTheyAreWritten(t *testing.T) {
	for _, c := range []struct{ destination, says string }{
		{"https://{sub1}/", "in its host"},
		{"https://a.{sub1}.com/", "in its host"},
		{"https://a.com{sub1}/", "in its host"},
		{"https://a.com:{sub1}/", "in its host"},
		{"{sub1}://a.com/", "not an http"},
		{"{sub1}", "relative"},
		{"https:{sub1}//a.com/", "http"},
		{"https://a.com/{sub}", "did you mean {sub1}?"},
		{"https://a.com/{clickid}", "did you mean {click_id}?"},
		{"https://a.com/{Country_code}", "did you mean {country}?"},
		{"https://a.com/{}", "is no macro"},
		{"https://a.com/{query.}", "is no macro"},
		{"https://a.com/{sub1:json}", "{sub1:raw}"},
		{"https://a.com/{sub1:}", "{sub1:raw}"},
		{"https://a.com/{sub1", "without its }"},
		{"https://a.com/sub1}", "without its {"},
		{"https://a.com/{{sub1}}", "has '{' in it"},
		{"https://a.com/{sub1|a/b}", "has '/' in it"},
		{"https://a.com/{sub1|a&b}", "has '&' in it"},
		{"https://a.com/{sub1|a|b}", "two defaults"},
		{"https://a.com/{query.a?b}", "has '?' in it"},
		{"https://a.com/{query.%zz}", "broken percent escape"},
		{"https://a.com/{sub1|%zz}", "broken percent escape"},
		{"https://a.com/../{sub1}", "dot segment"},
		{"https://a.com/%2E%2e/{sub1}", "dot segment"},
		{"https://a.com/{sub1 }", "space"},
		{"https://a.com/{sub1|ä}", "outside ASCII"},
		{"https://a.com/{sub1|\r\n}", "control character"},
		{"https://a.com/{sub1|\\}", "backslash"},
		{"https://user{sub1}@a.com/", "user information"},
	} {
		err := link.CheckDestination("destination", c.destination)
		problems := link.Problems(err)
		if len(problems) != 1 || problems[0].Kind != link.Invalid || !strings.Contains(problems[0].Message+" "+problems[0].Hint, c.says) {
			t.Errorf("%s: %v (%+v), want %q", c.destination, err, problems, c.says)
		}
	}
}

// FuzzLocationsAreOfTheTemplatesHost tries every policy on a hostile request and
// a destination that passes.
func FuzzLocationsAreOfTheTemplatesHost(f *testing.F) {
	f.Add("https://store.com/p/{sub1:raw}?a={query.a}#{path:raw}", "/summer/x", "sub1=%0d%0a&a=b&c=\\", uint8(2))
	f.Add("https://store.com?{sub1:raw}={sub1}", "/summer/@evil.com", "sub1=@evil.com/&b=\x00\xff", uint8(4))
	f.Add("https://store.com/{rest:raw}", "/summer///evil.com", "", uint8(0))
	f.Add("http://[::1]:80{rest:raw}", "/summer/", "&&=&a", uint8(3))
	f.Fuzz(func(t *testing.T, destination, path, query string, mode uint8) {
		canonical, ok := link.AppendCanonicalPath(nil, []byte(path))
		if !ok || link.CheckDestination("destination", destination) != nil {
			return
		}
		l := &linkv1.Link{Domain: "*", Path: "/summer/*", Destination: destination, Query: &linkv1.QueryPolicy{Mode: linkv1.QueryMode(mode % 5)}}
		value, err := link.Encode(resource(l))
		if err != nil {
			t.Fatal(err)
		}
		a, err := link.CompileAffiliate(affiliateWithParameters(t))
		if err != nil {
			t.Fatal(err)
		}
		m := link.Match{Affiliate: a}
		if err := m.Load(value); err != nil {
			t.Fatal(err)
		}
		req := request("", query)
		req.Path = canonical
		var d, traced link.Decision
		link.Resolve(&m, req, &d)
		req.Trace = new(link.Trace)
		link.Resolve(&m, req, &traced)
		if !bytes.Equal(d.Location, traced.Location) {
			t.Fatalf("%q, and explained %q", d.Location, traced.Location)
		}
		if d.Location == nil {
			return
		}
		checkLocation(t, destination, string(d.Location))
	})
}

func affiliateWithParameters(t testing.TB) []byte {
	t.Helper()
	value, err := link.Encode(&linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{
		Id: "a", Parameters: []*linkv1.Parameter{{Name: "ref", Value: "aff 01&x"}, {Name: "ä", Value: "\"{#"}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// checkLocation checks that a Location is a header value, and a URL of the same
// scheme, host and port as the template.
func checkLocation(t *testing.T, template, location string) {
	t.Helper()
	for _, c := range []byte(location) {
		if c <= ' ' || c >= 0x7f || c == '\\' {
			t.Fatalf("%q has %q in it", location, c)
		}
	}
	got, err := url.Parse(location)
	if err != nil {
		t.Fatalf("%q: %v", location, err)
	}
	end := strings.IndexAny(template[8:], "/?#{")
	if end < 0 {
		end = len(template) - 8
	}
	want, err := url.Parse(template[:8+end])
	if err != nil {
		t.Fatal(err)
	}
	if got.Host != want.Host || got.Scheme != want.Scheme || got.User != nil {
		t.Fatalf("%q is of %q, and the template of %q", location, got.Host, want.Host)
	}
	var b bytes.Buffer
	if err := (http.Header{"Location": {location}}).Write(&b); err != nil || b.String() != "Location: "+location+"\r\n" {
		t.Fatalf("%q is no header value", location)
	}
}
