package snapshot

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/affleet/affleet/controlplane/internal/store"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// million is a source of a million links.
type million struct{ *script }

func (m million) Load(_ context.Context, _ store.LoadOptions, each func(store.Object) error) (int64, error) {
	for i := range 1_000_000 {
		r := &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
			Domain: "go.example.com", Path: fmt.Sprintf("/campaign/%d", i), Affiliate: fmt.Sprintf("aff_%d", i%1000),
			Destination: fmt.Sprintf("https://store.example.com/products/%d?ref=aff_%d", i*7919%1_000_003, i%1000),
		}}}
		value, err := link.Marshal(r)
		if err != nil {
			return 0, err
		}
		if err := each(store.Object{Name: fmt.Sprintf("links/go.example.com/campaign/%d", i), Value: value}); err != nil {
			return 0, err
		}
	}
	return 1, nil
}

func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / 1e6
}

// BenchmarkSnapshotOfAMillion builds a snapshot; it also says what the state and
// the snapshot take in memory.
func BenchmarkSnapshotOfAMillion(b *testing.B) {
	before := heap()
	l := New(million{newScript()}, Config{Logger: quiet})
	if err := l.load(b.Context(), store.Epochs{Current: 7}); err != nil {
		b.Fatal(err)
	}
	state := heap()
	b.ResetTimer()
	var f *Frame
	for b.Loop() {
		l.shared.snap = nil
		f, _ = l.Next(b.Context(), Cursor{})
	}
	b.StopTimer()
	b.ReportMetric(state-before, "state_MB")
	b.ReportMetric(heap()-state, "snapshot_MB")
	b.ReportMetric(float64(l.View().Bytes())/1e6, "plain_MB")
	b.ReportMetric(float64(len(f.Messages)), "messages")
}

// BenchmarkWriteAtAMillion takes in a revision of one link, with a snapshot being
// taken of the state every thousand.
func BenchmarkWriteAtAMillion(b *testing.B) {
	l := New(million{newScript()}, Config{Logger: quiet})
	if err := l.load(b.Context(), store.Epochs{Current: 7}); err != nil {
		b.Fatal(err)
	}
	revision := int64(1)
	b.ReportAllocs()
	for b.Loop() {
		revision++
		if revision%1000 == 0 {
			l.state.freeze()
		}
		l.apply(store.Batch{Revision: revision, Changes: []store.Change{{
			Name: fmt.Sprintf("links/go.example.com/campaign/%d", revision*7919%1_000_000), Value: []byte(fmt.Sprintf("%0150d", revision)),
		}}})
	}
}

// BenchmarkNext is what a stream pays for what it sends.
func BenchmarkNext(b *testing.B) {
	l := New(newScript(), Config{Logger: quiet})
	if err := l.load(b.Context(), store.Epochs{Current: 7}); err != nil {
		b.Fatal(err)
	}
	const last = 1002
	for revision := int64(2); revision <= last; revision++ {
		l.apply(store.Batch{Revision: revision, Changes: []store.Change{{
			Name: fmt.Sprintf("links/go.example.com/campaign/%d", revision), Value: []byte(fmt.Sprintf("%0150d", revision)),
		}}})
	}
	run := func(name string, missing int64, forget bool) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			c := Cursor{held: Version{7, last - missing}, at: last - missing}
			for b.Loop() {
				if forget {
					clear(l.shared.deltas)
				}
				if f, err := l.Next(b.Context(), c); f == nil || err != nil {
					b.Fatal(f, err)
				}
			}
		})
	}
	run("one revision, shared", 1, false)
	run("100 revisions, shared", 100, false)
	run("100 revisions, alone", 100, true)
	run("1000 revisions, alone", 1000, true)
}
