package clickstream

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/natstest"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// browserBatch is a message of a busy node.
func browserBatch(t testing.TB, boot, first uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(first, 2))
	return message(t, "node-1", boot, first, n, func(m *clickv1.Batch) {
		for i := range 1000 {
			m.Strings = append(m.Strings, fmt.Appendf(nil, "Mozilla/5.0 (Windows NT 10.0; Win64; x64) %d", i))
		}
		for _, c := range m.Clicks {
			c.Link, c.Affiliate, c.Campaign, c.Destination = 1+rnd.Uint32N(400), 1+rnd.Uint32N(50), 1+rnd.Uint32N(7), 1+rnd.Uint32N(400)
			c.UserAgent, c.Referrer, c.Languages, c.Host = 1+rnd.Uint32N(100), 1+rnd.Uint32N(20), 1+rnd.Uint32N(3), 7
			c.TimeUs, c.Address = int64(rnd.IntN(40000)), []byte{1, 2, 3, 0}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	data := packed(b, browserBatch(b, 1, 1, 600))
	b.ReportAllocs()
	clicks := 0
	for b.Loop() {
		batch, err := Decode(data)
		if err != nil {
			b.Fatal(err)
		}
		clicks += len(batch.Clicks)
	}
	b.ReportMetric(float64(clicks)/b.Elapsed().Seconds(), "clicks/s")
}

// BenchmarkDecodeFiltered passes over all but one affiliate of fifty.
func BenchmarkDecodeFiltered(b *testing.B) {
	data := packed(b, browserBatch(b, 1, 1, 600))
	filter := &Filter{Affiliates: []string{"Mozilla/5.0 (Windows NT 10.0; Win64; x64) 6"}}
	var d decoder
	b.ReportAllocs()
	clicks := uint64(0)
	for b.Loop() {
		batch, err := d.head(data)
		if err != nil || d.clicks(nil, filter) != nil {
			b.Fatal(err)
		}
		clicks += batch.Count
	}
	b.ReportMetric(float64(clicks)/b.Elapsed().Seconds(), "clicks/s")
}

// BenchmarkConsume reads a file-backed stream of a server in the same process,
// with a durable consumer that keeps its marks in NATS.
func BenchmarkConsume(b *testing.B) {
	js := natstest.Start(b).JetStream()
	stream(b, js)
	const n, batches = 600, 4000
	for i := range uint64(batches) {
		if _, err := js.PublishAsync(Subject("eu", "node-1"), packed(b, browserBatch(b, 1, 1+i*n, n))); err != nil {
			b.Fatal(err)
		}
		if i%256 == 255 {
			<-js.PublishAsyncComplete()
		}
	}
	<-js.PublishAsyncComplete()
	clicks, round := 0, 0
	for b.Loop() {
		round++
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		if err := Consume(ctx, js, Options{Durable: fmt.Sprint("bench-", round), Until: time.Now(), Log: quiet()}, func(_ context.Context, batch *Batch) error {
			clicks += len(batch.Clicks)
			return nil
		}); err != nil {
			b.Fatal(err)
		}
		cancel()
	}
	if clicks != round*n*batches {
		b.Fatalf("%d clicks in %d rounds", clicks, round)
	}
	b.ReportMetric(float64(clicks)/b.Elapsed().Seconds(), "clicks/s")
}
