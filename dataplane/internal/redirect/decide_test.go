package redirect

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/affleet/affleet/dataplane/internal/click"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/visitor"
	"github.com/affleet/affleet/proto/visitor/visitortest"
)

// ruled is the table of these tests.
func ruled(t testing.TB) []*linkv1.Resource {
	t.Helper()
	rule := func(when, destination string) *linkv1.Rule {
		return &linkv1.Rule{When: when, Name: "r", Outcome: &linkv1.Rule_Destination{Destination: destination}}
	}
	return []*linkv1.Resource{
		aLink("*", "/rules", "https://store.example/other", func(l *linkv1.Link) {
			l.Rules = []*linkv1.Rule{
				rule(`bot`, "https://store.example/bot"),
				rule(`country == "DE" && device == "mobile"`, "https://store.example/de-mobile"),
				rule(`country == "DE"`, "https://store.example/de"),
				rule(`browser == "edge" || referrer_domain == "news.example" || language == "fr"`, "https://store.example/hints"),
			}
		}),
		aLink("*", "/template", "https://store.example/p?c={country}&s={sub1|none}&q={query.q}&id={click_id}", func(l *linkv1.Link) {
			l.Query = &linkv1.QueryPolicy{Mode: linkv1.QueryMode_QUERY_MODE_OVERRIDE}
		}),
		aLink("*", "/fails", "https://store.example/other", func(l *linkv1.Link) {
			l.Rules = []*linkv1.Rule{rule(`query["none"] == "x"`, "https://store.example/x")}
		}),
		aLink("*", "/split", "https://store.example/", func(l *linkv1.Link) {
			l.Splits = []*linkv1.Split{
				{Name: "a", Weight: 1, Destination: "https://store.example/a"}, {Name: "b", Weight: 1, Destination: "https://store.example/b"},
			}
			l.Sticky, l.StickyParameter = linkv1.StickyKey_STICKY_KEY_QUERY, "sub1"
		}),
		aLink("*", "/capped", "https://store.example/", func(l *linkv1.Link) {
			l.Cap, l.Fallback = &linkv1.Cap{Clicks: 1}, "https://store.example/full"
		}),
		aDomain(&linkv1.Domain{Host: "robots.example", RobotsTxt: "User-agent: *\nDisallow: /\n", RobotsTag: "noindex", NotFound: "https://store.example/none"}),
	}
}

// withPlaces lets the loopback address speak for others, as proxies do, and
// knows where some are.
func withPlaces(t testing.TB) func(*Config) {
	t.Helper()
	sources, err := visitor.Open(visitor.Config{Geo: []string{visitortest.Database(t, map[string]link.Place{
		"192.0.2.0/24": {Country: "DE", Region: "BY", City: "Munich", ASN: 64500},
	})}})
	if err != nil {
		t.Fatal(err)
	}
	table := newTable(t, ruled(t)...)
	return func(c *Config) {
		c.Sources, c.TrustedProxies, c.ForwardedHeader = sources, mustProxies(t, "127.0.0.0/8"), XForwardedFor
		c.GeoHeaders = visitor.GeoHeaders{Country: "cf-ipcountry", ASN: "x-asn"}
		c.Live.Store(table)
	}
}

const (
	phoneAgent = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Mobile Safari/537.36"
	deskAgent  = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36"
)

func TestTheSameIsDecidedOverEveryProtocol(t *testing.T) {
	dir := t.TempDir()
	writeCert(t, dir, "a", "a", "a.example")
	plain := startNode(t, 0, withPlaces(t))
	secure, _ := startTLS(t, dir, withPlaces(t))
	get := func(url string) (*http.Client, string) {
		protocols := new(http.Protocols)
		protocols.SetHTTP1(true)
		base := "http://" + plain.addr
		if url == "h2" {
			protocols = new(http.Protocols)
			protocols.SetHTTP2(true)
			base = "https://" + secure.addr
		}
		transport := &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, base
	}
	for _, tt := range []struct {
		target, headers, location string
	}{
		{"/rules", "X-Forwarded-For: 192.0.2.1", "/bot"}, // as Go's own client,
		{"/rules", "X-Forwarded-For: 192.0.2.1|User-Agent: " + phoneAgent, "/de-mobile"},
		{"/rules", "X-Forwarded-For: 192.0.2.1|User-Agent: " + deskAgent, "/de"},
		{"/rules", "X-Forwarded-For: 198.51.100.1|User-Agent: " + deskAgent, "/other"},
		{"/rules", "X-Forwarded-For: 198.51.100.1|CF-IPCountry: DE|User-Agent: " + deskAgent, "/de"},
		{"/rules", "CF-IPCountry: DE|User-Agent: " + deskAgent + "|Sec-CH-UA-Mobile: ?1|Sec-CH-UA-Platform: \"Android\"", "/de-mobile"},
		{"/rules", "User-Agent: Googlebot/2.1|CF-IPCountry: DE", "/bot"},
		{"/rules", "User-Agent: " + deskAgent + `|Sec-CH-UA: "Chromium";v="1", "Microsoft Edge";v="1"`, "/hints"},
		{"/rules", "User-Agent: " + deskAgent + "|Referer: https://News.example:443/x", "/hints"},
		{"/rules", "User-Agent: " + deskAgent + "|Accept-Language: en;q=0.5,FR", "/hints"},
		{"/fails", "User-Agent: x", "/other"},
		{"/split?sub1=visitor-1", "User-Agent: x", "/"},
	} {
		var locations []string
		for _, protocol := range []string{"h1", "h2"} {
			client, base := get(protocol)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+tt.target, nil)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.SplitSeq(tt.headers, "|") {
				name, value, _ := strings.Cut(line, ": ")
				req.Header.Set(name, value)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			location := strings.TrimPrefix(resp.Header.Get("Location"), "https://store.example")
			if resp.StatusCode != http.StatusFound || !strings.HasPrefix(location, tt.location) || len(tt.location) > 1 && location != tt.location {
				t.Errorf("%s %s %q: %s to %q, want %q", protocol, tt.target, tt.headers, resp.Status, location, tt.location)
			}
			locations = append(locations, location)
		}
		if locations[0] != locations[1] {
			t.Errorf("%s: %q over HTTP/1, %q over HTTP/2", tt.target, locations[0], locations[1])
		}
	}
	for _, n := range []*node{plain, secure} {
		if st := n.Stats(); st.RuleErrors != 1 {
			t.Errorf("%d rule errors, want 1", st.RuleErrors)
		}
	}
	client, base := get("h2")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/robots.txt", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "robots.example"
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK || string(body) != "User-agent: *\nDisallow: /\n" {
		t.Errorf("HTTP/2 robots.txt: %s %q", resp.Status, body)
	}
}

func TestStrangersAreNotBelievedAboutWhereTheyAre(t *testing.T) {
	n := startNode(t, 0, withPlaces(t), func(c *Config) { c.TrustedProxies = mustProxies(t, "10.0.0.0/8") })
	c := n.dial(t)
	c.send("GET /rules HTTP/1.1\r\nHost: x\r\nUser-Agent: " + deskAgent + "\r\nCF-IPCountry: DE\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n")
	if got := c.expect(302).Header.Get("Location"); got != "https://store.example/other" {
		t.Errorf("sent to %s", got)
	}
}

func TestRobotsTxtAndTagAreTheDomains(t *testing.T) {
	n := startNode(t, 0, withPlaces(t))
	c := n.dial(t)
	for _, method := range []string{"GET", "HEAD"} {
		c.send(method + " /robots.txt HTTP/1.1\r\nHost: robots.example\r\n\r\n")
		resp, body := c.answer(method)
		want := "User-agent: *\nDisallow: /\n"
		if resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(want)) || resp.Header.Get("Content-Type") != pageType ||
			method == "GET" && body != want || method == "HEAD" && body != "" {
			t.Errorf("%s: %s %v %q", method, resp.Status, resp.Header, body)
		}
	}
	c.send("GET /x HTTP/1.1\r\nHost: robots.example\r\n\r\n")
	if got := c.expect(302).Header.Get("X-Robots-Tag"); got != "noindex" {
		t.Errorf("X-Robots-Tag is %q", got)
	}
	c.send("GET /rules HTTP/1.1\r\nHost: x\r\n\r\n")
	if got, ok := c.expect(302).Header["X-Robots-Tag"]; ok {
		t.Errorf("X-Robots-Tag is %q", got)
	}
	c.send("GET /robots.txt HTTP/1.1\r\nHost: x\r\n\r\n")
	c.expect(404)
	if st := n.Stats(); st.Robots != 2 || st.Redirects != 2 || st.Requests() != 5 {
		t.Errorf("%+v", st)
	}
}

func TestAClickHasItsRuleItsVariantItsParametersAndItsPlace(t *testing.T) {
	n := startNode(t, 0, withPlaces(t))
	c := n.dial(t)
	c.send("GET /template?sub1=%41+b&q=x%26y&gclid=G%2f HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n" +
		"GET /rules HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\nUser-Agent: " + deskAgent + "\r\n\r\n" +
		"GET /split?sub1=v HTTP/1.1\r\nHost: x\r\nX-Asn: AS7\r\n\r\n")
	location := c.expect(302).Header.Get("Location")
	c.expect(302)
	split := c.expect(302).Header.Get("Location")
	cursor := n.clicks.Log().Cursor(0)
	defer cursor.Close()
	var clicks [3]click.Click
	var params [3][]string
	for i := range clicks {
		if ok, err := cursor.Next(&clicks[i]); !ok || err != nil {
			t.Fatalf("click %d: %v", i, err)
		}
		k := &clicks[i]
		k.Variant = bytes.Clone(k.Variant)
		for p, ok := k.Parameters.Next(); ok; p, ok = k.Parameters.Next() {
			params[i] = append(params[i], string(p.Name)+"="+string(p.Value))
		}
	}
	_, id, _ := strings.Cut(location, "&id=")
	id, _, _ = strings.Cut(id, "&")
	if want := "click_id=" + id + " sub1=%41+b gclid=G%2f"; len(id) != visitor.ClickIDLen || strings.Join(params[0], " ") != want {
		t.Errorf("parameters %q, want %q; sent to %s", params[0], want, location)
	}
	if !strings.HasPrefix(location, "https://store.example/p?c=DE&s=A%20b&id=") || !strings.HasSuffix(location, "&sub1=%41+b&q=x%26y&gclid=G%2f") {
		t.Errorf("sent to %s", location)
	}
	if k := clicks[0]; string(k.Country[:]) != "DE" || k.ASN != 64500 || k.Rule != 0 {
		t.Errorf("%+v", k)
	}
	if k := clicks[1]; k.Rule != 3 || len(params[1]) > 0 {
		t.Errorf("%+v, %q", k, params[1])
	}
	if k := clicks[2]; k.Country != [2]byte{} || k.ASN != 7 || !strings.HasSuffix(split, "/"+string(k.Variant)) || len(k.Variant) != 1 {
		t.Errorf("%+v, sent to %s", k, split)
	}
}

// takes is a Caps that tells what it was asked.
type takes struct {
	mu    sync.Mutex
	asked []string
}

func (c *takes) Take(domain, path []byte, limit link.Cap, _ int64, counts bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	word := "looks"
	if counts {
		word = "counts"
	}
	c.asked = append(c.asked, string(domain)+string(path)+" "+word)
	return limit == link.Cap{Clicks: 1, Period: link.PerLife} && len(c.asked) < 5
}

func TestOnlyWhatMayBeAPersonsClickCountsForACap(t *testing.T) {
	caps := &takes{}
	n := startNode(t, 0, withPlaces(t), func(c *Config) { c.Caps = caps })
	c := n.dial(t)
	for _, request := range []string{
		"GET /capped HTTP/1.1\r\nHost: x\r\nUser-Agent: " + deskAgent,
		"HEAD /capped HTTP/1.1\r\nHost: x\r\nUser-Agent: " + deskAgent,
		"GET /capped HTTP/1.1\r\nHost: x\r\nUser-Agent: Googlebot/2.1",
		"GET /capped HTTP/1.1\r\nHost: x\r\nSec-Purpose: prefetch;prerender\r\nUser-Agent: " + deskAgent,
	} {
		c.send(request + "\r\n\r\n")
		if resp, _ := c.answer(request[:4]); resp.Header.Get("Location") != "https://store.example/" {
			t.Errorf("%q: sent to %s", request, resp.Header.Get("Location"))
		}
	}
	c.send("GET /capped HTTP/1.1\r\nHost: x\r\n\r\n")
	if got := c.expect(302).Header.Get("Location"); got != "https://store.example/full" {
		t.Errorf("beyond the cap: sent to %s", got)
	}
	caps.mu.Lock()
	defer caps.mu.Unlock()
	if got := strings.Join(caps.asked, ", "); got != "*/capped counts, */capped looks, */capped looks, */capped looks, */capped counts" {
		t.Errorf("asked: %s", got)
	}
	if st := n.Stats(); st.Outcomes["capped"] != 1 || st.Outcomes["destination"] != 4 {
		t.Errorf("%+v", st.Outcomes)
	}
}

func TestDecisionsByRulesAllocateNothing(t *testing.T) {
	n := startNode(t, 0, withPlaces(t), func(c *Config) { c.Caps = always{} })
	headers := " HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\nReferer: https://news.example/a\r\nAccept-Language: de-AT,de;q=0.9\r\n" +
		"sec-ch-ua: \"Google Chrome\";v=\"124\"\r\nsec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: \"Windows\"\r\nUser-Agent: " + deskAgent + "\r\n\r\n"
	for name, request := range map[string]string{
		"rules":             "GET /rules" + headers,
		"template":          "GET /template?sub1=%41+b&q=x%26y&gclid=G&more=1" + headers,
		"split":             "GET /split?sub1=abc" + headers,
		"cap":               "GET /capped" + headers,
		"place by a header": "GET /rules HTTP/1.1\r\nHost: x\r\nCF-IPCountry: DE\r\nUser-Agent: " + deskAgent + "\r\n\r\n",
	} {
		allocateNothing(t, name, 1, roundTrips(t, n, request))
	}
}

// always has room.
type always struct{}

func (always) Take(_, _ []byte, _ link.Cap, _ int64, _ bool) bool { return true }
