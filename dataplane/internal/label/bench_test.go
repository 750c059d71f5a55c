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
// There are policies, blocks, and no list of data centres; see BenchmarkBlocks of
// the table, and BenchmarkDatacenter.
func BenchmarkJudge(b *testing.B) {
	for _, kind := range []string{"warm", "cold"} {
		b.Run(kind, func(b *testing.B) {
			x := newBench(b, Config{})
			if err := x.book.Add(&linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{Scope: "*", Labels: []*linkv1.LabelPolicy{
				{Label: "rate", Action: linkv1.BlockAction_BLOCK_ACTION_NO_AFFILIATE},
			}}}}); err != nil {
				b.Fatal(err)
			}
			all := make([][]byte, len(agents))
			for i, a := range agents {
				all[i] = []byte(a)
			}
			addrs := make([]netip.Addr, 1<<22)
			for i := range addrs {
				addrs[i] = address(uint32(i))
			}
			if kind == "warm" {
				addrs = addrs[:1]
			}
			id := []byte("utm_source=mail&gclid=Cj0KCQjw-abcdefghijklmnop0000")
			x.headers[visitor.Referrer] = []byte("https://www.example.org/articles/summer-deals")
			x.headers[visitor.SecFetchMode] = []byte("navigate")
			x.r.Secure = true
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				a := all[i%len(all)]
				x.req.UserAgent, x.headers[visitor.UserAgent] = a, a
				x.req.Address = addrs[i&(len(addrs)-1)]
				if x.req.Query = nil; i%3 == 0 {
					for at, n := len(id)-1, i; at > len(id)-8; at, n = at-1, n/10 {
						id[at] = '0' + byte(n%10)
					}
					x.req.Query = id
				}
				x.pass(20 * time.Microsecond)
				x.ask()
			}
		})
	}
}

// BenchmarkNothing is the same without a judge: what the benchmark itself takes.
func BenchmarkNothing(b *testing.B) {
	addrs := make([]netip.Addr, 1<<22)
	for i := range addrs {
		addrs[i] = address(uint32(i))
	}
	x := newBench(b, Config{Memory: MinMemory})
	for i := 0; b.Loop(); i++ {
		x.req.Address = addrs[i&(len(addrs)-1)]
		x.visitor.Reset(x.sources, x.req.Address, &x.headers)
	}
}
