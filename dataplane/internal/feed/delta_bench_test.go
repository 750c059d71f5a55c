package feed

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// BenchmarkDelta is a delta of one link, from its frame to the swap, each of which
// follows the one before: of a link that is new, and of one that is replaced; in
// memory, and as a node does it, which first notes what it takes in and keeps it in
// the journal. There are a million links, or as many as AFF_DELTA_LINKS says: with
// ten million it takes a minute, and 3 GB.
func BenchmarkDelta(b *testing.B) {
	links := 1_000_000
	if text := os.Getenv("AFF_DELTA_LINKS"); text != "" {
		var err error
		if links, err = strconv.Atoi(text); err != nil || links < 1 {
			b.Fatalf("AFF_DELTA_LINKS=%q is not a number of links", text)
		}
	}
	held := tableOf(b, links)
	for _, kept := range []bool{false, true} {
		for _, replaced := range []bool{false, true} {
			name := map[bool]string{false: "new", true: "replaced"}[replaced] + map[bool]string{false: "", true: " with note and journal"}[kept]
			b.Run(name, func(b *testing.B) {
				live := &table.Live{}
				live.Store(held)
				a := newApplier(live, Guard{})
				if kept {
					dir := b.TempDir()
					a.wire = openTripwire(filepath.Join(dir, noteName), time.Now())
					a.tail = &journal{path: filepath.Join(dir, journalName), log: slog.Default()}
					defer a.wire.close()
					defer a.tail.close()
				}
				var took []time.Duration
				for i := 0; b.Loop(); i++ {
					b.StopTimer()
					at := live.Load()
					m := oneMore(b, at, links, i, replaced)
					b.StartTimer()
					begin := time.Now()
					o := a.take(m)
					took = append(took, time.Since(begin))
					if o.applied == nil {
						b.Fatal(o)
					}
					if a.tail.size > journalBytes {
						a.tail.saved(live.Load().Version())
					}
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
				b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
			})
		}
	}
}

// linkOf is entry i of a table of many links.
func linkOf(b *testing.B, i int, destination string) (key, value []byte) {
	b.Helper()
	l := &linkv1.Link{Domain: "go.example.com", Path: fmt.Sprintf("/campaign/%010d", i), Destination: destination}
	value, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}})
	if err != nil {
		b.Fatal(err)
	}
	return []byte(link.LinkName(l.GetDomain(), l.GetPath())), value
}

func destinationOf(i int) string {
	return fmt.Sprintf("https://store.example.com/products/%010d", i)
}

func tableOf(b *testing.B, links int) *table.Table {
	b.Helper()
	t := newBuilder(int64(links))
	for i := range links {
		if err := t.Put(linkOf(b, i, destinationOf(i))); err != nil {
			b.Fatal(err)
		}
	}
	return t.Build(table.Version{Epoch: epoch, Revision: 10})
}

// oneMore makes the delta that puts link i of those that are new, or are replaced,
// in an order in which no two are neighbours.
func oneMore(b *testing.B, held *table.Table, links, i int, replaced bool) []byte {
	b.Helper()
	hash, entries, at := held.Hash(), held.Len(), links+i
	if replaced {
		at = int(uint64(i) * 2654435761 % uint64(links))
		key, value := linkOf(b, at, destinationOf(at))
		hash = hash.Sub(link.HashEntry(key, value))
	} else {
		entries++
	}
	key, value := linkOf(b, at, destinationOf(at+1))
	hash = hash.Add(link.HashEntry(key, value))
	from := held.Version().Revision
	return wire(b, &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Delta{Delta: &feedv1.Delta{
		From: version(from), To: version(from + 1), Puts: []*feedv1.Entry{{Key: string(key), Value: value}},
		SetHash: hashProto(hash), Entries: int64(entries),
	}}})
}
