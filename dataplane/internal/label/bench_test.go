package label

import (
	"net/netip"
	"testing"
	"time"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/visitor"
)

// agents are those of a realistic mix: browsers above all, some apps and bots.
var agents = []string{
	phone, phone, phone,
	"Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Mobile Safari/537.36",
	"Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/123.0.0.0 Mobile Safari/537.36",
	"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36",
	"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36 Edg/124.0.0.0",
	"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Safari/605.1.15",
	"Mozilla/5.0 (X11; Linux x86_64; rv:125.0) Gecko/20100101 Firefox/125.0",
	"Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 Instagram 330.0.0.1",
	"Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
	"facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
}

// BenchmarkJudge is all labels of one request: "warm" for one address again and
// again, "cold" for addresses at random out of four million, so that each line of
// each table has to be fetched from memory. One request in three has a click id.
// There are a policy and a block; BenchmarkBlocks of the table has many. "harness"
// is the loop without a judge: what is to be taken off.
func BenchmarkJudge(b *testing.B) {
	for _, c := range []struct {
		name   string
		addrs  int
		judges bool
	}{{"harness", 1 << 22, false}, {"warm", 1, true}, {"cold", 1 << 22, true}} {
		b.Run(c.name, func(b *testing.B) {
			x := newBench(b, Config{})
			x.add(b, &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{Scope: "*", Labels: []*linkv1.LabelPolicy{
				{Label: "rate", Action: linkv1.BlockAction_BLOCK_ACTION_NO_AFFILIATE},
			}}}})
			x.add(b, &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{Id: "b", Reason: "r", Match: &linkv1.Block_Prefix{Prefix: "203.0.113.0/24"}}}})
			x.headers[visitor.Referrer] = []byte("https://www.example.org/articles/summer-deals")
			x.headers[visitor.SecFetchMode] = []byte("navigate")
			x.r.Secure = true
			addrs := make([]netip.Addr, c.addrs)
			for i := range addrs {
				addrs[i] = address(uint32(i)) //nolint:gosec // 4 million
			}
			mix := newMix()
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; b.Loop(); i++ {
				mix.next(x, i, addrs[i&(len(addrs)-1)])
				if c.judges {
					x.judge.Judge(&x.verdict, &x.r, &x.match, &x.req, x.book)
				}
			}
		})
	}
}

// mixOf makes one request after the other.
type mixOf struct {
	agents [][]byte
	query  []byte
}

func newMix() *mixOf {
	m := &mixOf{query: []byte("utm_source=mail&gclid=Cj0KCQjw-abcdefghijklmnop0000")}
	for _, a := range agents {
		m.agents = append(m.agents, []byte(a))
	}
	return m
}

func (m *mixOf) next(x *bench, i int, addr netip.Addr) {
	agent := m.agents[i%len(m.agents)]
	x.req.UserAgent, x.headers[visitor.UserAgent], x.req.Address = agent, agent, addr
	if x.req.Query = nil; i%3 == 0 {
		for at, n := len(m.query)-1, i; at > len(m.query)-8; at, n = at-1, n/10 {
			m.query[at] = '0' + byte(n%10)
		}
		x.req.Query = m.query
	}
	x.pass(20 * time.Microsecond)
	x.visitor.Reset(x.sources, addr, &x.headers)
}
