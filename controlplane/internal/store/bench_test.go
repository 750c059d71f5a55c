package store

import (
	"context"
	"fmt"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
)

// BenchmarkImport writes 100,000 links in one operation, to an etcd that syncs
// its files, in the same process.
func BenchmarkImport(b *testing.B) {
	const rows = 100_000
	for _, again := range []bool{false, true} {
		name := "new"
		if again {
			name = "unchanged"
		}
		b.Run(name, func(b *testing.B) {
			s := New(etcdtest.New(b, etcdtest.WithFsync).Client())
			b.ReportAllocs()
			if again {
				importLinks(b, s, "bench", rows)
				b.ResetTimer()
			}
			for i := range b.N {
				prefix := "bench"
				if !again {
					prefix = fmt.Sprintf("bench%d", i)
				}
				importLinks(b, s, prefix, rows)
			}
			b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "links/s")
		})
	}
}

// BenchmarkLoad reads 100,000 links in one operation.
func BenchmarkLoad(b *testing.B) {
	const rows = 100_000
	s := New(etcdtest.New(b).Client())
	importLinks(b, s, "bench", rows)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		n := 0
		if _, err := s.Load(context.Background(), LoadOptions{}, func(Object) error { n++; return nil }); err != nil {
			b.Fatal(err)
		}
		if n != rows {
			b.Fatalf("loaded %d, want %d", n, rows)
		}
	}
	b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "links/s")
}

// importLinks imports links under a path, in messages of a thousand as affctl
// sends them.
func importLinks(tb testing.TB, s *Store, prefix string, rows int) {
	tb.Helper()
	send := make(chan []*linkv1.Resource)
	go func() {
		defer close(send)
		for from := 0; from < rows; from += 1000 {
			batch := make([]*linkv1.Resource, 0, 1000)
			for i := from; i < min(from+1000, rows); i++ {
				batch = append(batch, testLink(fmt.Sprintf("/%s/%d", prefix, i), fmt.Sprintf("https://store.example/p/%d?ref=aff_01", i)))
			}
			send <- batch
		}
	}()
	outcomes := 0
	err := s.Import(context.Background(), "bench", ImportOptions{}, send, func(results []RowResult) error {
		for _, r := range results {
			if r.Err != nil {
				return r.Err
			}
		}
		outcomes += len(results)
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	if outcomes != rows {
		tb.Fatalf("%d rows have an outcome, want %d", outcomes, rows)
	}
}

func testLink(path, destination string) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
		Domain: "go.example.com", Path: path, Destination: destination,
	}}}
}
