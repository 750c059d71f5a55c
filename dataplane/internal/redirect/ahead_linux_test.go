package redirect

import (
	"fmt"
	"net"
	"testing"
	"time"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// gate is a Caps that holds its loop up.
type gate struct{ in, out chan bool }

func (g *gate) Take(_, _ []byte, _ link.Cap, _ int64, _ bool) bool {
	g.in <- true
	return <-g.out
}

// Arrivals on many connections are found together behind what held their loop up.
func TestConnectionsThatAreReadTogetherGetTheirOwnAnswers(t *testing.T) {
	const clients = 5 * mostAhead / 2
	links := []*linkv1.Resource{aLink("*", "/capped", "https://store.example/", func(l *linkv1.Link) {
		l.Cap, l.Fallback = &linkv1.Cap{Clicks: 1}, "https://store.example/full"
	})}
	for i := range 2 * clients {
		links = append(links, aLink("*", fmt.Sprintf("/l%d", i), fmt.Sprintf("https://store.example/%d", i)))
	}
	caps := &gate{make(chan bool), make(chan bool)}
	n := startNode(t, time.Second, oneLoop, func(c *Config) {
		c.Caps = caps
		c.Live.Store(samples(t, links...))
	})
	get := func(link int) string { return fmt.Sprintf("GET /l%d HTTP/1.1\r\nHost: x.example\r\n\r\n", link) }
	expect := func(c *client, link int) {
		t.Helper()
		if got, want := c.expect(302).Header.Get("Location"), fmt.Sprintf("https://store.example/%d", link); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	var all []*client
	for range clients {
		c := n.dial(t)
		c.send(getA)
		c.expect(302)
		all = append(all, c)
	}
	holder := n.dial(t)
	for round := range 3 {
		holder.send("GET /capped HTTP/1.1\r\nHost: x.example\r\n\r\n")
		<-caps.in
		for i, c := range all {
			switch i % 5 {
			case 0, 1:
				c.send(get(i))
			case 2: // two, and the beginning of a third
				c.send(get(i) + get(clients+i) + get(i)[:9])
			case 3: // in pieces, the first of which came before
				c.send(get(i)[:20])
			case 4:
				c.send("GET /l0 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
				_ = c.Conn.(*net.TCPConn).CloseWrite()
			}
		}
		caps.out <- true
		holder.expect(302)
		for i, c := range all {
			switch i % 5 {
			case 0, 1:
				expect(c, i)
			case 2:
				expect(c, i)
				expect(c, clients+i)
				c.send(get(i)[9:])
				expect(c, i)
			case 3:
				c.send(get(i)[20:])
				expect(c, i)
			case 4:
				c.expect(400)
				c.expectEnd()
				all[i] = n.dial(t)
			}
		}
		if st := n.Stats(); st.Panics != 0 {
			t.Fatalf("round %d: %+v", round, st)
		}
	}
	_ = all[0].Close() // what a loop reads of it next is its end
	all[1].send(get(1))
	expect(all[1], 1)
}

// A connection whose deadline has passed is looked at before those that have input, of
// which it may be one: what it is answered then must not be held when others end.
func TestConnectionsThatAreLookedAtEarlyAndResetEndNothingElse(t *testing.T) {
	const headTimeout = 100 * time.Millisecond
	caps := &gate{make(chan bool), make(chan bool)}
	n := startNode(t, time.Second, oneLoop, func(c *Config) {
		c.Caps, c.HeadTimeout = caps, headTimeout
		c.Live.Store(samples(t, aLink("*", "/a", "https://store.example/"), aLink("*", "/capped", "https://store.example/", func(l *linkv1.Link) {
			l.Cap, l.Fallback = &linkv1.Cap{Clicks: 1}, "https://store.example/full"
		})))
	})
	holder := n.dial(t)
	for range 3 {
		var all []*client
		for range 4 {
			c := n.dial(t)
			c.send(getA[:9]) // the deadline is that of a head
			all = append(all, c)
		}
		time.Sleep(headTimeout / 5)
		for _, c := range all {
			c.send(getA[9:])
			c.expect(302)
		}
		holder.send("GET /capped HTTP/1.1\r\nHost: x.example\r\n\r\n")
		<-caps.in
		time.Sleep(2 * headTimeout) // the deadlines pass before anything comes
		for _, c := range all {
			c.send(getA)
			if err := c.Conn.(*net.TCPConn).SetLinger(0); err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
		}
		caps.out <- true
		holder.expect(302)
	}
	n.awaitOpen(1)
	if st := n.Stats(); st.Panics != 0 {
		t.Errorf("%+v", st)
	}
}

func TestGlimpse(t *testing.T) {
	for head, want := range map[string][2]string{
		"GET /a HTTP/1.1\r\nHost: x.example\r\n\r\n":          {"x.example", "/a"},
		"GET /a?b=/c HTTP/1.1\r\nHost: x.example\r\nA: b\r\n": {"x.example", "/a"},
		"GET /a?b?c HTTP/1.1\r\nHost: \r":                     {"", "/a"},
		"GET /a HTTP/1.1\r\nHost: x.example":                  {},
		"GET /a HTTP/1.1\r\nAccept: */*\r\nHost: x\r\n":       {},
		"GET /a HTTP/1.0\r\nHost: x\r\n":                      {},
		"HEAD /a HTTP/1.1\r\nHost: x\r\n":                     {},
		"GET /a":                                              {}, "GET ": {}, "GE": {}, "": {}, "GET  ": {},
	} {
		host, path := glimpse([]byte(head))
		if got := [2]string{string(host), string(path)}; got != want {
			t.Errorf("%q: got %q", head, got)
		}
	}
}
