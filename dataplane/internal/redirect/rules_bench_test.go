package redirect

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/visitor"
	"github.com/affleet/affleet/proto/visitor/visitortest"
)

// decider decides about a link with three rules on country and device, of which
// the last matches, for visitors from a number of places that are all different.
type decider struct {
	conn *conn
	work *work
}

func newDecider(t testing.TB, places int) *decider {
	t.Helper()
	known := map[string]link.Place{}
	for i := range places {
		known[fmt.Sprintf("%s/24", place(i))] = link.Place{Country: "DE", Region: "BE", City: "City " + strconv.Itoa(i), ASN: uint32(i)}
	}
	sources, err := visitor.Open(visitor.Config{Geo: []string{visitortest.Database(t, known)}})
	if err != nil {
		t.Fatal(err)
	}
	ruled := aLink("go.example.com", "/go/summer-deal-2026", "https://store.example.com/p/123456", func(l *linkv1.Link) {
		goes := func(to string) *linkv1.Rule_Destination { return &linkv1.Rule_Destination{Destination: to} }
		l.Rules = []*linkv1.Rule{
			{When: `country == "FR"`, Outcome: goes("https://store.fr/p/123")},
			{When: `country in ["AT", "CH", "DE"] && device == "desktop"`, Outcome: goes("https://store.de/p/123")},
			{When: `country == "DE" && device == "mobile"`, Outcome: goes("https://m.store.de/p/123")},
		}
	})
	n := startNode(t, 0, func(c *Config) {
		c.Sources = sources
		c.Live.Store(newTable(t, ruled))
	})
	d := &decider{conn: &conn{srv: n.Server, group: &group{srv: n.Server}}, work: n.newWork().(*work)}
	head := []byte("GET /go/summer-deal-2026 HTTP/1.1\r\nHost: go.example.com\r\nUser-Agent: " + phoneAgent + "\r\n\r\n")
	if size, why := d.work.head.parse(head); size != len(head) || why != accepted {
		t.Fatalf("the head is refused: %v", why)
	}
	d.work.begin(n.Server)
	d.work.host, d.work.path = []byte("go.example.com"), []byte("/go/summer-deal-2026")
	return d
}

// place is the network of a place.
func place(i int) netip.Addr { return netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 0}) }

// decide decides for a visitor: all but reading the request and writing the
// answer.
func (d *decider) decide(t testing.TB, addr netip.Addr, agent []byte) {
	w := d.work
	d.conn.addr, w.head.headers[userAgent] = addr, agent
	w.ask(d.conn)
	w.table.Lookup(w.host, w.path, &w.match)
	link.Resolve(&w.match, &w.request, &w.decision)
	if w.decision.Rule != 3 || !bytes.HasPrefix(w.decision.Location, []byte("https://m.store.de/")) {
		t.Fatalf("rule %d decided: %s", w.decision.Rule, w.decision.Location)
	}
}

func TestRulesForAVisitorOfAKnownKindAllocateNothing(t *testing.T) {
	d := newDecider(t, 1)
	agent := []byte(phoneAgent)
	allocateNothing(t, "rules", 1, func() { d.decide(t, place(0), agent) })
}

// BenchmarkRules is the decision about a link with three rules on country and
// device, with the lookups of link, place and user agent: "warm" when place and
// agent have been seen lately, "cold" when neither has.
func BenchmarkRules(b *testing.B) {
	const places = 60_000 // many times as many as are remembered
	b.Run("warm", func(b *testing.B) {
		d := newDecider(b, 1)
		agent := []byte(phoneAgent)
		b.ReportAllocs()
		for b.Loop() {
			d.decide(b, place(0), agent)
		}
	})
	b.Run("cold", func(b *testing.B) {
		d := newDecider(b, places)
		agent := append([]byte(phoneAgent), ' ')
		i := 0
		b.ReportAllocs()
		for b.Loop() {
			d.decide(b, place(i%places), strconv.AppendInt(agent, int64(i), 10))
			i++
		}
	})
}
