package table

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func TestReadersSeeWholeVersionsWhileAWriterEdits(t *testing.T) {
	const links, versions, readers = 3000, 300, 3
	// Every version sets the same time on all links that it touches: no link may
	// be newer than its table, and the first is always as new as that.
	at := func(i int, revision int64) ([]byte, []byte) {
		return bytesOf(marshal(t, &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
			Domain: "a.example", Path: fmt.Sprintf("/%d", i), Destination: "https://shop.example/",
			ExpiresAt: &timestamppb.Timestamp{Seconds: revision},
		}}}))
	}
	b := NewBuilder(links)
	for i := range links {
		if err := b.Put(at(i, 1)); err != nil {
			t.Fatal(err)
		}
	}
	var live Live
	if live.Load() != nil {
		t.Fatal("there is a table before the first")
	}
	live.Store(b.Build(Version{1, 1}))
	var wg sync.WaitGroup
	for r := range readers {
		wg.Go(func() {
			var m link.Match
			for i := r; ; i++ {
				table := live.Load()
				rev := table.Version().Revision
				n := i % links
				if i%3 == 0 {
					n = 0
				}
				table.Lookup([]byte("a.example"), fmt.Appendf(nil, "/%d", n), &m)
				res, err := link.Unmarshal(fmt.Sprintf("links/a.example/%d", n), m.Value)
				if err != nil {
					t.Error(err)
					return
				}
				got := res.GetLink().GetExpiresAt().GetSeconds()
				if got > rev || n == 0 && got != rev || n == 0 && rev == versions {
					if got != rev {
						t.Errorf("link %d of version %d is of version %d", n, rev, got)
					}
					return
				}
			}
		})
	}
	for rev := int64(2); rev <= versions; rev++ {
		b := live.Load().Edit()
		for _, i := range []int{0, int(rev) % links, int(rev*7) % links} {
			if err := b.Put(at(i, rev)); err != nil {
				t.Fatal(err)
			}
		}
		live.Store(b.Build(Version{1, rev}))
	}
	wg.Wait()
}

// TestReadersOfOldVersionsDoNotSeeWhatIsAdded: versions of a line share indexes,
// to which links are added while others read.
func TestReadersOfOldVersionsDoNotSeeWhatIsAdded(t *testing.T) {
	const first, versions, each = 500, 200, 10
	number := func(i int) ([]byte, []byte) {
		return bytesOf(marshal(t, &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
			Domain: "a.example", Path: fmt.Sprintf("/%d", i), Destination: "https://shop.example/",
		}}}))
	}
	b := NewBuilder(0)
	for i := range first {
		if err := b.Put(number(i)); err != nil {
			t.Fatal(err)
		}
	}
	tables := make([]atomic.Pointer[Table], versions)
	tables[0].Store(b.Build(Version{1, 1}))
	var wg sync.WaitGroup
	for r := range 3 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(5, uint64(r)))
			var m link.Match
			for v := 0; v < versions; {
				table := tables[v].Load()
				if table == nil {
					runtime.Gosched()
					continue
				}
				older := tables[random.IntN(v+1)].Load()
				for _, table := range []*Table{table, older} {
					n := table.Links()
					for _, i := range []int{random.IntN(n), n - 1, n, n + random.IntN(each)} {
						table.Lookup([]byte("a.example"), fmt.Appendf(nil, "/%d", i), &m)
						if found := m.Value != nil; found != (i < n) {
							t.Errorf("link %d is found: %v, and version %d has %d", i, found, table.Version().Revision, n)
							return
						}
					}
				}
				v++
			}
		})
	}
	for v := 1; v < versions; v++ {
		before := tables[v-1].Load()
		b := before.Edit()
		if v%7 == 0 { // given up: what it has added is nobody's
			for i := range each {
				if err := b.Put(number(1e6 + before.Links() + i)); err != nil {
					t.Error(err)
				}
			}
			b = before.Edit()
		}
		for i := range each {
			if err := b.Put(number(before.Links() + i)); err != nil {
				t.Error(err)
			}
		}
		tables[v].Store(b.Build(Version{1, int64(v + 1)}))
	}
	wg.Wait()
	for v := range tables {
		n := 0
		for range tables[v].Load().All() {
			n++
		}
		if n != first+v*each {
			t.Errorf("version %d gives %d entries", v+1, n)
		}
	}
}
