package publish

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"golang.org/x/sys/unix"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/natstest"
	"github.com/affleet/affleet/deploy/bench/browser"
	"github.com/affleet/affleet/deploy/bench/linkset"
)

// browserClicks are clicks as browsers make them: 1,000 links with 45-byte
// destinations, 100 user agents, a few referrers and languages.
func browserClicks(n int) []click.Click {
	rnd := rand.New(rand.NewPCG(1, 2))
	clicks := make([]click.Click, n)
	for i := range clicks {
		link, agent := rnd.IntN(1000), rnd.IntN(100)
		clicks[i] = click.Click{
			Sequence: uint64(i + 1), Time: int64(1_700_000_000_000_000 + i*7), Epoch: 0xabcdef0123456789, Revision: 4711,
			Link: fmt.Appendf(nil, "go.example.com/go/summer-%06d", link), Affiliate: fmt.Appendf(nil, "aff_%03d", link%50),
			Campaign: fmt.Appendf(nil, "summer-%d", link%7), Destination: fmt.Appendf(nil, "https://store.example.com/p/%06d?ref=aff_%03d", link, link%50),
			Status: 302, Address: []byte{byte(rnd.IntN(223)), byte(rnd.IntN(256)), byte(rnd.IntN(256)), 0},
			UserAgent: fmt.Appendf(nil, "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.%d.%d Safari/537.36", 100+agent%30, 4000+agent*13, agent),
			Referrer:  fmt.Appendf(nil, "https://www.example-%d.com/", rnd.IntN(20)),
			Languages: []byte([]string{"en-US,en;q=0.9", "de-DE,de;q=0.9,en;q=0.8", "fr-FR,fr;q=0.9"}[rnd.IntN(3)]),
			Host:      []byte("go.example.com"),
		}
	}
	return clicks
}

// requestedClicks are what the requests of the other benchmarks make: browsers
// as varied as life's, and so many links, each of which is as likely.
func requestedClicks(b *testing.B, links, n int) []click.Click {
	b.Helper()
	const seed, chooser = 5, 6
	set := linkset.Set{Seed: 1}
	same := rand.New(rand.NewPCG(chooser, chooser)) // the links in the order in which they are asked for
	rnd := rand.New(rand.NewPCG(seed, seed))
	clicks := make([]click.Click, 0, n)
	for range n {
		link := set.Link(same.IntN(links))
		// The head of a request for any link, and this link's key.
		for head := range browser.Requests(set, 1, 1, rnd.Uint64()) {
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
			if err != nil {
				b.Fatal(err)
			}
			clicks = append(clicks, click.Click{
				Sequence: uint64(len(clicks) + 1), Time: int64(1_700_000_000_000_000 + len(clicks)*33), Epoch: 0xabcdef0123456789, Revision: 4711,
				Link: []byte(link.GetDomain() + link.GetPath()), Affiliate: []byte(link.GetAffiliate()), Destination: []byte(link.GetDestination()),
				Status: 302, Address: []byte{byte(rnd.IntN(223)), byte(rnd.IntN(256)), byte(rnd.IntN(256)), 0},
				UserAgent: []byte(r.UserAgent()), Referrer: []byte(r.Referer()), Languages: []byte(r.Header.Get("Accept-Language")), Host: []byte(r.Host),
			})
		}
	}
	return clicks
}

// benchClicks are the sets of clicks that the benchmarks run on.
var benchClicks = []struct {
	name string
	make func(b *testing.B) []click.Click
}{
	{"few-links", func(*testing.B) []click.Click { return browserClicks(1 << 14) }},
	{"10k-links", func(b *testing.B) []click.Click { return requestedClicks(b, 10_000, 1<<14) }},
	{"1M-links", func(b *testing.B) []click.Click { return requestedClicks(b, 1_000_000, 1<<14) }},
}

func benchEncoder() *encoder {
	return newEncoder(click.Identity{Node: "node-1", Region: "eu", Boot: 1, Address: click.AddressTruncated})
}

func BenchmarkEncode(b *testing.B) {
	for _, kind := range benchClicks {
		b.Run(kind.name, func(b *testing.B) {
			clicks := kind.make(b)
			e := benchEncoder()
			var buf []byte
			var account click.Ledger
			total, open := 0, false
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				c := &clicks[i%len(clicks)]
				c.Sequence = uint64(i + 1)
				if !open {
					e.begin(buf, c.Sequence)
					open = true
				}
				if !e.add(c) {
					buf = e.end(&account, false)
					total += len(buf)
					e.begin(buf, c.Sequence)
					e.add(c)
				}
			}
			total += len(e.end(&account, false))
			b.ReportMetric(float64(total)/float64(b.N), "bytes/click")
		})
	}
}

// BenchmarkEncodeLabelled reads clicks from a spool and encodes them. Each has a label,
// and two of three have another.
func BenchmarkEncodeLabelled(b *testing.B) {
	clicks := requestedClicks(b, 10_000, 1<<12)
	r := openRecorder(b)
	labels := []click.Pair{
		{Name: []byte("repeat"), Value: []byte("address-agent-link 1: within 1m0s")},
		{Name: []byte("rate"), Value: []byte("rate-address 1: over 600 in 1m0s")},
	}
	for i := range clicks {
		c := &clicks[i]
		r.Record(&click.Event{
			Time: c.Time, Epoch: c.Epoch, Revision: c.Revision, LinkPath: c.Link, Affiliate: c.Affiliate, Destination: c.Destination,
			Status: c.Status, UserAgent: c.UserAgent, Referrer: c.Referrer, Languages: c.Languages, Host: c.Host, Labels: labels[:1+min(i%3, 1)],
		})
	}
	e := benchEncoder()
	var buf []byte
	var account click.Ledger
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; {
		cursor := r.Log().Cursor(0)
		e.begin(buf, 1)
		var c click.Click
		for range clicks {
			if ok, err := cursor.Next(&c); !ok || err != nil {
				b.Fatalf("%t, %v", ok, err)
			}
			if done++; !e.add(&c) {
				buf = e.end(&account, false)
				e.begin(buf, c.Sequence)
				e.add(&c)
			}
		}
		cursor.Close()
	}
}

// batchesOf gives clicks as messages, without the last one.
func batchesOf(clicks []click.Click) (batches [][]byte, each float64) {
	e := benchEncoder()
	var account click.Ledger
	e.begin(nil, 1)
	for i := range clicks {
		clicks[i].Sequence = uint64(i + 1)
		if !e.add(&clicks[i]) {
			batches = append(batches, e.end(&account, false))
			each = float64(i)
			e.begin(nil, clicks[i].Sequence)
			e.add(&clicks[i])
		}
	}
	return batches, each / float64(len(batches))
}

// BenchmarkDecode is what a consumer does with the batches.
func BenchmarkDecode(b *testing.B) {
	for _, kind := range benchClicks {
		b.Run(kind.name, func(b *testing.B) {
			batches, _ := batchesOf(kind.make(b))
			b.ResetTimer()
			done := 0
			for i := 0; done < b.N; i++ {
				batch, err := clickstream.Decode(batches[i%len(batches)])
				if err != nil {
					b.Fatal(err)
				}
				done += len(batch.Clicks)
			}
			b.ReportMetric(float64(done)/b.Elapsed().Seconds(), "clicks/s")
		})
	}
}

// BenchmarkCompress is what compressing costs of that, and what it saves.
func BenchmarkCompress(b *testing.B) {
	for _, kind := range benchClicks {
		b.Run(kind.name, func(b *testing.B) {
			e := benchEncoder()
			e.begin(nil, 1)
			for _, c := range kind.make(b) {
				if !e.add(&c) {
					break
				}
			}
			n := int(e.clicks)
			var buf []byte
			done := 0
			b.ResetTimer()
			for ; done < b.N; done += n {
				e.openBlock(buf)
				for _, t := range e.strings[1:] {
					e.packer.add(e.buf[:t.to], int(t.from))
				}
				buf = e.pack()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(done), "compress-ns/click")
			b.ReportMetric(float64(len(buf))/float64(n), "bytes/click")
			b.ReportMetric(float64(len(e.buf)+len(e.records))/float64(n), "plain-bytes/click")
		})
	}
}

// BenchmarkPublish measures the way of clicks from a full spool to a file-backed
// stream of a server beside it, acknowledgements included: with what was sent
// kept, and without. cpu-ns/click is of this process alone.
func BenchmarkPublish(b *testing.B) {
	for _, kind := range benchClicks {
		for name, retention := range map[string]time.Duration{"kept": time.Hour, "not-kept": -1} {
			b.Run(kind.name+"/"+name, func(b *testing.B) { benchmarkPublish(b, kind.make(b), retention) })
		}
	}
}

func benchmarkPublish(b *testing.B, clicks []click.Click, retention time.Duration) {
	s := natstest.StartProcess(b)
	r := openRecorder(b, func(c *click.Config) { c.MaxBytes, c.Retention = 12<<30, retention })
	for i := range b.N {
		c := &clicks[i%len(clicks)]
		e := click.Event{
			Time: c.Time, Epoch: c.Epoch, Revision: c.Revision, LinkPath: c.Link, Affiliate: c.Affiliate, Campaign: c.Campaign,
			Destination: c.Destination, Status: c.Status, UserAgent: c.UserAgent, Referrer: c.Referrer, Languages: c.Languages, Host: c.Host,
		}
		for recorded := r.Ledger().Recorded; r.Ledger().Recorded == recorded; {
			r.Record(&e)
		}
	}
	b.ResetTimer()
	before := processTime(b)
	p, _ := start(b, s.URL(), r)
	flush(b, p)
	b.StopTimer()
	spent := processTime(b) - before
	if p.published.Load() != uint64(b.N) {
		b.Fatalf("%d of %d were published", p.published.Load(), b.N)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "clicks/s")
	b.ReportMetric(float64(spent)/float64(b.N), "cpu-ns/click")
}

// BenchmarkSend compares ways to bring ready batches into a stream: message by
// message, each with an id and an acknowledgement, as the publisher does; and
// the two kinds of batch publishing that servers have since 2.12 and 2.14, in
// batches of as many messages as the publisher has in flight.
func BenchmarkSend(b *testing.B) {
	for _, way := range []struct {
		name string
		send func(b *testing.B, js jetstream.JetStream, batches [][]byte, n int)
	}{{"message", sendMessages}, {"atomic", sendAtomic}, {"fast-ingest", sendFast}} {
		b.Run(way.name, func(b *testing.B) { benchmarkSend(b, way.send) })
	}
}

func benchmarkSend(b *testing.B, send func(b *testing.B, js jetstream.JetStream, batches [][]byte, n int)) {
	s := natstest.StartProcess(b)
	nc, err := nats.Connect(s.URL())
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	stream, err := js.CreateStream(b.Context(), jetstream.StreamConfig{
		Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}, Discard: jetstream.DiscardNew, MaxBytes: 10 << 30,
		Duplicates: 2 * time.Minute, AllowAtomicPublish: true, AllowBatchPublish: true,
	})
	if err != nil {
		b.Fatal(err)
	}
	batches, each := batchesOf(requestedClicks(b, 10_000, 1<<14))
	n := max(1, int(float64(b.N)/each))
	b.ResetTimer()
	before := processTime(b)
	send(b, js, batches, n)
	b.StopTimer()
	spent := float64(processTime(b) - before)
	info, err := stream.Info(b.Context())
	if err != nil || info.State.Msgs != uint64(n) {
		b.Fatalf("%+v, %v: want %d", info, err, n)
	}
	b.ReportMetric(float64(n)*each/b.Elapsed().Seconds(), "clicks/s")
	b.ReportMetric(spent/(float64(n)*each), "cpu-ns/click")
}

var benchSubject = clickstream.Subject("eu", "node-1")

func sendMessages(b *testing.B, js jetstream.JetStream, batches [][]byte, n int) {
	nc := js.Conn()
	inbox, acks := nats.NewInbox(), make(chan *nats.Msg, 8*maxInFlight)
	if _, err := nc.ChanSubscribe(inbox+".*", acks); err != nil {
		b.Fatal(err)
	}
	open := 0
	answer := func() {
		if m := <-acks; len(m.Data) == 0 || bytes.Contains(m.Data, []byte("error")) {
			b.Fatalf("%s", m.Data)
		}
		open--
	}
	for i := range n {
		for open >= maxInFlight {
			answer()
		}
		if err := nc.PublishMsg(&nats.Msg{
			Subject: benchSubject, Reply: fmt.Sprintf("%s.%d", inbox, i), Data: batches[i%len(batches)],
			Header: nats.Header{jetstream.MsgIDHeader: {fmt.Sprintf("node-1-%016x-%d", b.N, i)}, jetstream.ExpectedStreamHeader: {clickstream.StreamName}},
		}); err != nil {
			b.Fatal(err)
		}
		open++
	}
	for open > 0 {
		answer()
	}
}

func sendAtomic(b *testing.B, js jetstream.JetStream, batches [][]byte, n int) {
	for at := 0; at < n; {
		p, err := jetstreamext.NewBatchPublisher(js, jetstreamext.BatchFlowControl{})
		if err != nil {
			b.Fatal(err)
		}
		end := min(n, at+maxInFlight) - 1
		for ; at < end; at++ {
			if err := p.Add(benchSubject, batches[at%len(batches)]); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := p.Commit(context.Background(), benchSubject, batches[at%len(batches)]); err != nil {
			b.Fatal(err)
		}
		at++
	}
}

func sendFast(b *testing.B, js jetstream.JetStream, batches [][]byte, n int) {
	p, err := jetstreamext.NewFastPublisher(js, jetstreamext.FastPublishFlowControl{Flow: maxInFlight / 2, MaxOutstandingAcks: 2, AckTimeout: 10 * time.Second})
	if err != nil {
		b.Fatal(err)
	}
	for i := range n - 1 {
		if _, err := p.Add(benchSubject, batches[i%len(batches)]); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := p.Commit(context.Background(), benchSubject, batches[(n-1)%len(batches)]); err != nil {
		b.Fatal(err)
	}
}

// processTime is the time that this process has computed, in ns.
func processTime(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
