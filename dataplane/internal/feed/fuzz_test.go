package feed

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// heldTable is revision 10 of s.
func heldTable(t testing.TB, s state) *table.Table {
	t.Helper()
	return heldTableAt(t, s, 10)
}

func heldTableAt(t testing.TB, s state, revision int64) *table.Table {
	t.Helper()
	live := &table.Live{}
	a := newApplier(live, Guard{})
	for _, f := range s.snapshot(revision) {
		a.take(wire(t, f))
	}
	if live.Load() == nil {
		t.Fatal("the snapshot was not taken")
	}
	return live.Load()
}

func wire(t testing.TB, f *feedv1.SubscribeResponse) []byte {
	t.Helper()
	b, err := proto.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzFrames takes any messages after each other: whatever they are, the table
// changes only by a frame that verifies, and never to an older version.
func FuzzFrames(f *testing.F) {
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
	base := heldTable(f, s)
	join := func(frames ...*feedv1.SubscribeResponse) (all []byte) {
		for _, m := range frames {
			b := wire(f, m)
			all = append(append(all, byte(len(b)), byte(len(b)>>8)), b...)
		}
		return all
	}
	f.Add(join(s.snapshot(11)...))
	f.Add(join(s.snapshot(9)...))
	next := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
	f.Add(join(next.delta(10, 11, map[string]string{"/c": "https://x.test/c", "/a": ""})))
	f.Add(join(heartbeat(10, 1), &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Behind{Behind: &feedv1.Behind{Reason: "x"}}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		live := &table.Live{}
		live.Store(base)
		a := newApplier(live, Guard{})
		for len(data) >= 2 {
			n := min(int(data[0])|int(data[1])<<8, len(data)-2)
			before := live.Load()
			o := a.take(data[2 : 2+n])
			data = data[2+n:]
			after := live.Load()
			switch {
			case o.applied == nil && after != before:
				t.Fatalf("the table changed without an answer: %+v", o)
			case o.applied != nil && o.applied != after:
				t.Fatal("another table is live than the one that was applied")
			case after.Version().Epoch != before.Version().Epoch || after.Version().Revision < before.Version().Revision:
				t.Fatalf("the table went from %v to %v", before.Version(), after.Version())
			}
			if base.Len() != 2 || base.Hash() != s.hash() {
				t.Fatal("the table that was edited changed")
			}
			if o.err != nil {
				return
			}
		}
	})
}

// FuzzStateFile reads any bytes as a last-known-good file: they are refused, or
// are a table that reads the same when it is written again.
func FuzzStateFile(f *testing.F) {
	var b bytes.Buffer
	if err := writeState(&b, heldTable(f, state{"/a": "https://x.test/a", "/b": "https://x.test/b"}), time.Time{}, runtime.Gosched); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:64])
	f.Fuzz(func(t *testing.T, data []byte) {
		first, err := readBytes(data)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := writeState(&again, first, time.Time{}, runtime.Gosched); err != nil {
			t.Fatal(err)
		}
		second, err := readBytes(again.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if first.Version() != second.Version() || first.Hash() != second.Hash() || first.Len() != second.Len() {
			t.Fatal("a table is another one after it was written and read")
		}
	})
}

// FuzzBlock reads entries as a file or a chunk holds them, without the checksums
// that keep a fuzzer out.
func FuzzBlock(f *testing.F) {
	frames := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}.snapshot(10)
	for _, frame := range frames[1:3] {
		b, _ := proto.Marshal(frame.GetSnapshotChunk())
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		plain, _, err := decodeChunk(data, nil)
		if err != nil {
			return
		}
		list, err := appendEntries(nil, plain)
		if err != nil {
			return
		}
		_ = putAll(table.NewBuilder(len(list)), list, table.MaxHeld, &unserved{})
	})
}
