package redirect

import (
	"net/http"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/table"
)

func TestAnswersSayWhatTheLinkSays(t *testing.T) {
	n := startNode(t, time.Second)
	for _, tt := range []struct {
		request                           string
		status                            int
		location, cacheControl, otherBody string
	}{
		{"GET /a HTTP/1.1\r\nHost: x.example", 302, "https://store.example/a?ref=1", "no-store", ""},
		{"GET /a?q=1 HTTP/1.1\r\nHost: GO.example:80", 301, "https://store.example/go-a", "no-store", ""},
		{"GET /%C3%bC HTTP/1.1\r\nHost: go.example.", 302, "https://store.example/umlaut", "no-store", ""},
		{"GET http://go.example/a HTTP/1.1\r\nHost: go.example", 301, "https://store.example/go-a", "no-store", ""},
		{"GET /none HTTP/1.1\r\nHost: all.example", 302, "https://store.example/", "max-age=60", ""},
		{"GET /none HTTP/1.1\r\nHost: x.example", 404, "", "no-store", "not found\n"},
		{"GET /a HTTP/1.0", 302, "https://store.example/a?ref=1", "no-store", ""},
	} {
		c := n.dial(t)
		c.send(tt.request + "\r\n\r\n")
		resp, body := c.answer("GET")
		if resp.StatusCode != tt.status || resp.Header.Get("Location") != tt.location ||
			resp.Header.Get("Cache-Control") != tt.cacheControl || body != tt.otherBody {
			t.Errorf("%q: got %s %q %q, want %d %q %q", tt.request, resp.Status, resp.Header, body,
				tt.status, tt.location, tt.cacheControl)
		}
		date, err := http.ParseTime(resp.Header.Get("Date"))
		if age := time.Since(date); err != nil || age < -2*time.Second || age > 20*time.Second {
			t.Errorf("%q: Date %q: %v, %v old", tt.request, resp.Header.Get("Date"), err, age)
		}
		if resp.ContentLength != int64(len(tt.otherBody)) {
			t.Errorf("%q: Content-Length %d", tt.request, resp.ContentLength)
		}
	}
}

func TestExpiredLinkIsGone(t *testing.T) {
	expired := withExpired(t)
	n := startNode(t, time.Second, func(c *Config) { c.Live.Store(expired) })
	c := n.dial(t)
	c.send("GET /old HTTP/1.1\r\nHost: a\r\n\r\n")
	c.expect(410)
	c.send("HEAD /old HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if resp, body := c.answer("HEAD"); resp.StatusCode != http.StatusGone || resp.ContentLength != 5 || body != "" {
		t.Errorf("HEAD: got %s, length %d, body %q", resp.Status, resp.ContentLength, body)
	}
	c.expectEnd()
	if st := n.Stats(); st.Gone != 2 || st.Redirects != 0 {
		t.Errorf("got %+v, want 2 gone", st)
	}
}

func TestWithoutATableTheAnswerIsUnavailable(t *testing.T) {
	n := startNode(t, time.Second, func(c *Config) { c.Live = &table.Live{} })
	c := n.dial(t)
	c.send(getA)
	if resp := c.expect(503); resp.Header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After is %q", resp.Header.Get("Retry-After"))
	}
	n.cfg.Live.Store(samples(t))
	c.send(getA)
	c.expect(302)
	if st := n.Stats(); st.Unavailable != 1 || st.Redirects != 1 || st.Requests() != 2 {
		t.Errorf("got %+v", st)
	}
}

func TestEveryRedirectIsAClickBeforeItIsAnswered(t *testing.T) {
	n := startNode(t, time.Second)
	c := n.dial(t)
	c.send("HEAD /a?x=1 HTTP/1.1\r\nHost: go.Example:80\r\nUser-Agent: curl/8\r\nReferer: https://r.example/\r\n" +
		"Accept-Language: de\r\nreferer: second\r\n\r\n")
	if resp, _ := c.answer("HEAD"); resp.StatusCode != http.StatusMovedPermanently {
		t.Fatalf("got %s", resp.Status)
	}
	cursor := n.clicks.Log().Cursor(0)
	defer cursor.Close()
	var k click.Click
	if ok, err := cursor.Next(&k); !ok || err != nil {
		t.Fatalf("no click when the answer is there: %v", err)
	}
	text := func(b []byte) string { return string(b) }
	for _, f := range []struct{ name, got, want string }{
		{"link", text(k.Link), "go.example/a"},
		{"destination", text(k.Destination), "https://store.example/go-a"},
		{"user agent", text(k.UserAgent), "curl/8"},
		{"referrer", text(k.Referrer), "https://r.example/"},
		{"languages", text(k.Languages), "de"},
		{"host", text(k.Host), "go.Example:80"},
		{"path", text(k.Path), ""},
		{"address", text(k.Address), "\x7f\x00\x00\x01"},
	} {
		if f.got != f.want {
			t.Errorf("%s is %q, want %q", f.name, f.got, f.want)
		}
	}
	if k.Status != 301 || !k.Head || k.Epoch != 7 || k.Revision != 42 || k.Outcome != 0 {
		t.Errorf("got %+v", k)
	}
	if age := time.Since(time.UnixMicro(k.Time)); age < -time.Second || age > 20*time.Second {
		t.Errorf("the click is %v old", age)
	}
	c.send("GET /missing HTTP/1.1\r\nHost: x\r\n\r\n")
	c.expect(404)
	if ok, err := cursor.Next(&k); ok || err != nil {
		t.Errorf("a 404 is a click: %+v, %v", k, err)
	}
}

func TestASecondPairsTimesOfOneMoment(t *testing.T) {
	c := newClock()
	now := time.Now()
	time.Sleep(20 * time.Millisecond) // as a thread is held up
	s := c.renew(now)
	if ahead := s.wall - c.start.Add(time.Duration(s.mono)).UnixMicro(); ahead < -5000 || ahead > 5000 {
		t.Errorf("the wall clock is %d µs ahead", ahead)
	}
}
