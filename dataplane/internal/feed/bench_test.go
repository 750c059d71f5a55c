package feed

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// million gives a snapshot of a million links as it is sent.
func million(b *testing.B) (messages [][]byte) {
	b.Helper()
	const n, chunk = 1_000_000, 7500
	add := func(m *feedv1.SubscribeResponse) {
		messages = append(messages, wire(b, m))
	}
	var hash link.SetHash
	var size int64
	var chunks [][]byte
	var entries []*feedv1.Entry
	for i := range n {
		r := &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
			Domain: "go.example.com", Path: fmt.Sprintf("/campaign/%d", i), Affiliate: fmt.Sprintf("aff_%d", i%1000),
			Destination: fmt.Sprintf("https://store.example.com/products/%d?ref=aff_%d", i*7919%1_000_003, i%1000),
		}}}
		value, err := link.Marshal(r)
		if err != nil {
			b.Fatal(err)
		}
		e := &feedv1.Entry{Key: fmt.Sprintf("links/go.example.com/campaign/%d", i), Value: value}
		hash = hash.Add(link.HashEntry([]byte(e.Key), e.Value))
		size += int64(len(e.Key) + len(e.Value))
		if entries = append(entries, e); len(entries) == chunk || i == n-1 {
			plain, _ := proto.Marshal(&feedv1.SnapshotChunk{Entries: entries})
			chunks = append(chunks, s2.Encode(nil, plain))
			entries = nil
		}
	}
	add(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_SnapshotBegin{SnapshotBegin: &feedv1.SnapshotBegin{Version: version(10), Entries: n, Bytes: size}}})
	for _, c := range chunks {
		add(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_SnapshotChunk{SnapshotChunk: &feedv1.SnapshotChunk{Compressed: c, Compression: feedv1.Compression_COMPRESSION_S2}}})
	}
	add(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_SnapshotEnd{SnapshotEnd: &feedv1.SnapshotEnd{Version: version(10), Entries: n, SetHash: hashProto(hash)}}})
	return messages
}

func apply(b *testing.B, messages [][]byte) *table.Live {
	b.Helper()
	live := &table.Live{}
	a := newApplier(live, Guard{})
	for _, m := range messages {
		if o := a.take(m); o.rejection != nil || o.err != nil {
			b.Fatal(o)
		}
	}
	return live
}

// BenchmarkMillion is a node's part: taking in a snapshot of a million links, a
// take-down, and the last-known-good file. For a delta, see BenchmarkDelta.
func BenchmarkMillion(b *testing.B) {
	messages := million(b)
	live := apply(b, messages)
	path := filepath.Join(b.TempDir(), currentName)
	b.Run("snapshot", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			apply(b, messages)
		}
	})
	b.Run("take-down", func(b *testing.B) {
		held := live.Load()
		m := wire(b, takeDown(11, &feedv1.Entry{Key: "links/go.example.com/campaign/7"}))
		b.ReportAllocs()
		for b.Loop() {
			live.Store(held)
			a := newApplier(live, Guard{})
			if o := a.take(m); o.takenDown == nil {
				b.Fatal(o)
			}
		}
		live.Store(held)
	})
	b.Run("guard of a snapshot", func(b *testing.B) {
		held := live.Load()
		next := held.Edit()
		next.Delete([]byte("links/go.example.com/campaign/7"))
		g := Guard{}
		g.setDefaults()
		for b.Loop() {
			if err := g.change(held, next, -1); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read journal", func(b *testing.B) {
		path := filepath.Join(b.TempDir(), journalName)
		j := &journal{path: path, log: slog.Default()}
		held := live.Load()
		hash := held.Hash()
		for i := range journalRecords {
			e := entry(fmt.Sprint("/new/", i), "https://x.test/")
			hash = hash.Add(link.HashEntry([]byte(e.Key), e.Value))
			d, err := proto.Marshal(&feedv1.Delta{
				From: version(10 + int64(i)), To: version(11 + int64(i)), Puts: []*feedv1.Entry{e}, SetHash: hashProto(hash), Entries: int64(held.Len() + 1 + i),
			})
			if err != nil {
				b.Fatal(err)
			}
			j.add(table.Version{Epoch: epoch, Revision: 11 + int64(i)}, d)
		}
		j.close()
		for b.Loop() {
			j := &journal{path: path, log: slog.Default()}
			if t := read(j, held); t.Version().Revision != 10+journalRecords {
				b.Fatal(t.Version())
			}
		}
	})
	b.Run("write file", func(b *testing.B) {
		for b.Loop() {
			if err := writeStateFile(path, "", live.Load(), time.Time{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read file", func(b *testing.B) {
		for b.Loop() {
			if _, err := readFile(path); err != nil {
				b.Fatal(err)
			}
		}
	})
}
