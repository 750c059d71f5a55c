package redirect

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/label"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

const (
	refuse      = linkv1.BlockAction_BLOCK_ACTION_REFUSE
	fallback    = linkv1.BlockAction_BLOCK_ACTION_FALLBACK
	noAffiliate = linkv1.BlockAction_BLOCK_ACTION_NO_AFFILIATE
	onlyLabel   = linkv1.BlockAction_BLOCK_ACTION_LABEL
)

func aBlock(b *linkv1.Block) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: b}}
}

// aPolicy says what is done about labels: pairs of them and an action.
func aPolicy(scope string, off bool, pairs ...any) *linkv1.Resource {
	p := &linkv1.Policy{Scope: scope, Off: off}
	for i := 0; i < len(pairs); i += 2 {
		p.Labels = append(p.Labels, &linkv1.LabelPolicy{Label: pairs[i].(string), Action: pairs[i+1].(linkv1.BlockAction)})
	}
	return &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: p}}
}

// suspected is the table of these tests.
func suspected(more ...*linkv1.Resource) []*linkv1.Resource {
	return append([]*linkv1.Resource{
		aLink("*", "/shop", "https://store.example/p?ref={affiliate|none}", func(l *linkv1.Link) {
			l.Affiliate, l.Fallback, l.Query = "aff_1", "https://store.example/fallback", &linkv1.QueryPolicy{Mode: linkv1.QueryMode_QUERY_MODE_APPEND}
		}),
		aLink("*", "/plain", "https://store.example/plain"),
		{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{Id: "aff_1", Parameters: []*linkv1.Parameter{{Name: "earn", Value: "1"}}}}},
		aDomain(&linkv1.Domain{Host: "*", CacheControl: "max-age=60"}),
		aBlock(&linkv1.Block{Id: "agent", Match: &linkv1.Block_UserAgent{UserAgent: "bad/1"}, Reason: "test", Action: refuse}),
	}, more...)
}

// known is a request of a browser with all that it sends over TLS.
const known = "User-Agent: " + deskAgent + "|Accept: */*|Accept-Language: de|Sec-Fetch-Mode: navigate|Sec-Fetch-Site: none|" +
	`Sec-CH-UA: "Google Chrome";v="124"|Sec-CH-UA-Mobile: ?0|Sec-CH-UA-Platform: "Windows"`

// labelsOf reads the next click's labels, each "label: reason".
func labelsOf(t *testing.T, c *click.Cursor) (k click.Click, labels []string) {
	t.Helper()
	if ok, err := c.Next(&k); !ok || err != nil {
		t.Fatalf("no click: %v", err)
	}
	for p, ok := k.Labels.Next(); ok; p, ok = k.Labels.Next() {
		labels = append(labels, string(p.Name)+": "+string(p.Value))
	}
	return k, labels
}

func TestRequestsAreLabelledAndTreatedAlikeOverEveryProtocol(t *testing.T) {
	dir := t.TempDir()
	writeCert(t, dir, "a", "a", "a.example")
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			n, _ := startTLS(t, dir, func(c *Config) {
				c.Live.Store(newTable(t, suspected(aPolicy("*", false, "odd_headers", noAffiliate, "no_ua", fallback))...))
			})
			protocols := new(http.Protocols)
			protocols.SetHTTP1(protocol == "HTTP/1.1")
			protocols.SetHTTP2(protocol == "HTTP/2.0")
			transport := &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
			t.Cleanup(transport.CloseIdleConnections)
			client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			cursor := n.clicks.Log().Cursor(0)
			defer cursor.Close()
			for i, tt := range []struct {
				headers string
				status  int
				to      string
				outcome link.Outcome
				labels  []string
			}{
				{known, 302, "https://store.example/p?ref=aff_1&earn=1&n=0", link.ToDestination, nil},
				{strings.Replace(known, "Sec-CH-UA: ", "Other: ", 1), 302, "https://store.example/p?ref=none&n=1", link.IsBlocked, []string{"odd_headers: sec-ch-ua 1"}},
				{strings.Replace(known, "Sec-Fetch-Mode: ", "Other: ", 1), 302, "https://store.example/p?ref=none&n=2", link.IsBlocked, []string{"odd_headers: sec-fetch 1"}},
				{"User-Agent: bad/1", 403, "", link.IsBlocked, []string{"blocked: agent: test"}},
				{"User-Agent: ", 302, "https://store.example/fallback", link.IsBlocked, []string{"no_ua: user-agent 1"}},
				{known + "|Purpose: preview", 302, "https://store.example/p?ref=aff_1&earn=1&n=5", link.ToDestination, []string{"preview: purpose 1"}},
			} {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("https://%s/shop?n=%d", n.addr, i), nil)
				if err != nil {
					t.Fatal(err)
				}
				for header := range strings.SplitSeq(tt.headers, "|") {
					name, value, _ := strings.Cut(header, ": ")
					req.Header.Set(name, value)
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.Proto != protocol || resp.StatusCode != tt.status || resp.Header.Get("Location") != tt.to || (tt.status == 403) != (string(body) == "forbidden\n") {
					t.Errorf("%s: %s %s to %q, want %d to %q", tt.headers, resp.Proto, resp.Status, resp.Header.Get("Location"), tt.status, tt.to)
				}
				if cache := resp.Header.Get("Cache-Control"); tt.outcome == link.IsBlocked && cache != "no-store" {
					t.Errorf("%s: what is for one visitor has Cache-Control %q", tt.headers, cache)
				}
				k, labels := labelsOf(t, cursor)
				// They are duplicates; and one in a thousand is taken for the one before,
				// of which 10 bits are kept.
				labels = slices.DeleteFunc(labels, func(l string) bool {
					return strings.HasPrefix(l, "duplicate: ") || strings.HasPrefix(l, "replay: same-request")
				})
				if !slices.Equal(labels, tt.labels) || link.Outcome(k.Outcome) != tt.outcome || int(k.Status) != tt.status || string(k.Affiliate) != "aff_1" {
					t.Errorf("%s: the click has %q, outcome %d, status %d, affiliate %s", tt.headers, labels, k.Outcome, k.Status, k.Affiliate)
				}
			}
			st := n.Stats()
			if st.Forbidden != 1 || st.Redirects != 5 || st.Requests() != 6 || st.Labels["odd_headers"] != 2 || st.Treated["no_affiliate"] != 2 || st.Treated["refuse"] != 1 || st.Treated["fallback"] != 1 {
				t.Errorf("%+v", st)
			}
			if ledger := n.clicks.Ledger(); ledger.Answered != st.Redirects+st.Forbidden {
				t.Errorf("the ledger says %+v of %d redirects and %d refusals", ledger, st.Redirects, st.Forbidden)
			}
		})
	}
}

func TestRefusedRequestsAreRecordedWhateverLinkTheyAskFor(t *testing.T) {
	n := startNode(t, 0, func(c *Config) { c.Live.Store(newTable(t, suspected()...)) })
	c := n.dial(t)
	for _, path := range []string{"/plain", "/none"} {
		c.send("GET " + path + " HTTP/1.1\r\nHost: x\r\nUser-Agent: bad/1\r\n\r\nHEAD " + path + " HTTP/1.1\r\nHost: x\r\nUser-Agent: bad/1\r\n\r\n")
		if resp, body := c.answer("GET"); resp.StatusCode != http.StatusForbidden || body != "forbidden\n" || resp.Header.Get("Cache-Control") != "no-store" || resp.Header.Get("Location") != "" {
			t.Errorf("GET %s: %s %v %q", path, resp.Status, resp.Header, body)
		}
		if resp, body := c.answer("HEAD"); resp.StatusCode != http.StatusForbidden || body != "" || resp.ContentLength != int64(len("forbidden\n")) {
			t.Errorf("HEAD %s: %s %q", path, resp.Status, body)
		}
	}
	cursor := n.clicks.Log().Cursor(0)
	defer cursor.Close()
	for _, want := range []string{"*/plain", "*/plain", "/none", "/none"} {
		k, labels := labelsOf(t, cursor)
		if got := string(k.Link) + string(k.Path); !strings.HasSuffix(want, string(k.Path)) && got != want || k.Status != 403 || len(k.Destination) > 0 || labels[len(labels)-1] != "blocked: agent: test" {
			t.Errorf("click of %q: %d to %q, %q; want %s", got, k.Status, k.Destination, labels, want)
		}
	}
}

func TestKillSwitchTakesEveryTreatmentBackAndKeepsTheLabels(t *testing.T) {
	n := startNode(t, 0, func(c *Config) { c.Live.Store(newTable(t, suspected()...)) })
	c := n.dial(t)
	ask := func() (int, []string) {
		c.send("GET /plain HTTP/1.1\r\nHost: x\r\nUser-Agent: bad/1\r\n\r\n")
		resp, _ := c.answer("GET")
		cursor := n.clicks.Log().Cursor(0)
		defer cursor.Close()
		var labels []string
		for range n.clicks.Ledger().Recorded {
			_, labels = labelsOf(t, cursor)
		}
		return resp.StatusCode, labels
	}
	if status, _ := ask(); status != 403 {
		t.Errorf("before: %d", status)
	}
	n.cfg.Live.Store(newTable(t, suspected(aPolicy("*", true, "blocked", refuse), aPolicy("domains/x", false, "blocked", fallback))...))
	if status, labels := ask(); status != 302 || !slices.Contains(labels, "blocked: agent: test") {
		t.Errorf("with the switch: %d, %q", status, labels)
	}
	n.cfg.Live.Store(newTable(t, suspected(aPolicy("*", false))...))
	if status, _ := ask(); status != 403 {
		t.Errorf("after: %d", status)
	}
}

func TestMetricSeriesOfLabelsAreConstant(t *testing.T) {
	registry := prometheus.NewRegistry()
	n := startNode(t, 0, func(c *Config) {
		c.Registerer = registry
		c.Live.Store(newTable(t, suspected()...))
	})
	series := func() (all []string) {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				all = append(all, f.GetName()+fmt.Sprint(m.GetLabel()))
			}
		}
		return all
	}
	before := series()
	c := n.dial(t)
	for i := range 200 {
		c.send(fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: h%d.example\r\nUser-Agent: agent/%d\r\n\r\n", i, i, i))
		c.expect(404)
	}
	c.send("GET /plain HTTP/1.1\r\nHost: x\r\nUser-Agent: bad/1\r\n\r\n")
	c.expect(403)
	if after := series(); !slices.Equal(before, after) {
		t.Errorf("there were %d series, and are %d", len(before), len(after))
	}
	for _, want := range []string{`aff_labels_total[name:"label" value:"odd_headers"]`, `aff_treated_total[name:"action" value:"refuse"]`} {
		if !slices.ContainsFunc(before, func(s string) bool { return strings.ReplaceAll(s, "  ", " ") == want }) {
			t.Errorf("there is no %s among %q", want, before)
		}
	}
}

func TestRatesDuplicatesAndReplaysAreCountedOverManyConnections(t *testing.T) {
	judge, err := label.New(label.Config{Memory: label.MinMemory, Rate: 100, RatePerLink: 50})
	if err != nil {
		t.Fatal(err)
	}
	n := startNode(t, 0, func(c *Config) {
		c.Judge = judge
		c.Live.Store(newTable(t, suspected(aPolicy("*", false, "rate", refuse))...))
	})
	var wg sync.WaitGroup
	for range 4 {
		c := n.dial(t)
		wg.Go(func() {
			for range 50 {
				c.send("GET /plain HTTP/1.1\r\nHost: x\r\nUser-Agent: " + deskAgent + "\r\n\r\n")
				_, _ = c.answer("GET")
			}
		})
	}
	wg.Wait()
	st := n.Stats()
	// The window may turn meanwhile, and a race may cost a count.
	if st.Labels["rate"] < 100 || st.Labels["rate"] > 155 || st.Labels["duplicate"] < 195 || st.Labels["replay"] < 150 || st.Forbidden != st.Labels["rate"] {
		t.Errorf("labels %v, %d refused", st.Labels, st.Forbidden)
	}
}

func TestLabelledRequestsAllocateNothing(t *testing.T) {
	n := startNode(t, 0, func(c *Config) {
		c.Live.Store(newTable(t, suspected(
			aPolicy("*", false, "odd_headers", noAffiliate), aPolicy("domains/x", false, "rate", onlyLabel),
			aBlock(&linkv1.Block{Id: "here", Match: &linkv1.Block_Prefix{Prefix: "127.0.0.0/8"}, Reason: "test"}),
		)...))
	})
	headers := " HTTP/1.1\r\nHost: x\r\n" + strings.ReplaceAll(known, "|", "\r\n") + "\r\n\r\n"
	for name, request := range map[string]string{
		"browser":  "GET /shop?gclid=Cj0KCQjw-abcdefghijklmnop&n=1" + headers,
		"odd":      "GET /shop HTTP/1.1\r\nHost: x\r\nUser-Agent: " + deskAgent + "\r\n\r\n",
		"refused":  "GET /shop HTTP/1.1\r\nHost: x\r\nUser-Agent: bad/1\r\n\r\n",
		"bot":      "GET /plain HTTP/1.1\r\nHost: x\r\nUser-Agent: Googlebot/2.1\r\n\r\n",
		"not link": "GET /none HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		allocateNothing(t, name, 1, roundTrips(t, n, request))
	}
}
