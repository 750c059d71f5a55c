package footprint

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/deploy/bench/linkset"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/statefile"
)

func TestStateFileAndSnapshotHoldTheSameLinks(t *testing.T) {
	const links = 30_000
	s, err := writeState(filepath.Join(t.TempDir(), "state"), links)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	header, all, err := statefile.All(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != links+linkset.Affiliates || header.Entries != s.entries || header.Hash != s.hash {
		t.Errorf("the file has %d entries and says %+v; there are %d with %v", len(all), header, s.entries, s.hash)
	}
	last := set.Link(links - 1)
	if all[link.LinkName(last.GetDomain(), last.GetPath())] == nil {
		t.Error("the last link is not there")
	}

	var chunks, bytes int64
	if err := newPlane(s).snapshot(func(m *feedv1.SubscribeResponse) error {
		switch f := m.GetFrame().(type) {
		case *feedv1.SubscribeResponse_SnapshotBegin:
			if f.SnapshotBegin.GetEntries() != s.entries || f.SnapshotBegin.GetBytes() != s.bytes {
				t.Errorf("the snapshot begins with %v", f.SnapshotBegin)
			}
		case *feedv1.SubscribeResponse_SnapshotChunk:
			chunks++
			plain, err := s2.Decode(nil, f.SnapshotChunk.GetCompressed())
			if err != nil {
				return err
			}
			var chunk feedv1.SnapshotChunk
			if err := proto.Unmarshal(plain, &chunk); err != nil {
				return err
			}
			for _, e := range chunk.GetEntries() {
				if string(all[e.GetKey()]) != string(e.GetValue()) {
					t.Fatalf("%s is %q in the snapshot", e.GetKey(), e.GetValue())
				}
				delete(all, e.GetKey())
				bytes += int64(len(e.GetKey()) + len(e.GetValue()))
			}
		case *feedv1.SubscribeResponse_SnapshotEnd:
			if f.SnapshotEnd.GetSetHash().GetHi() != s.hash.Hi || f.SnapshotEnd.GetSetHash().GetLo() != s.hash.Lo {
				t.Errorf("the snapshot ends with %v", f.SnapshotEnd)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(all) > 0 || bytes != s.bytes || chunks < 2 {
		t.Errorf("%d entries are not in the %d chunks, which have %d bytes of %d", len(all), chunks, bytes, s.bytes)
	}
}

func TestReportSaysWhichGoalsAreReached(t *testing.T) {
	r := Result{Made: "Made by hand.", Rows: []Row{
		{Links: 1_000_000, What: "a file", GoalResident: 200, GoalPeak: 400, Samples: []Sample{{1.5, 190, 401}, {0.5, 180, 403}, {1, 210, 390}}},
		{Links: 10_000_000, What: "a file", GoalResident: 1600, Samples: []Sample{{10, 1500, 3000}}},
	}}
	for _, want := range []string{
		"| 1000000 | a file | **1.00** (0.50 - 1.50) | **190** (180 - 210) | 200, reached | 190 | **401** (390 - 403) | 400, **not reached** | 3 |",
		"| 10000000 | a file | **10.00** | **1500** | 1600, reached | 150 | **3000** | - | 1 |",
	} {
		if text := r.Markdown(); !strings.Contains(text, want) {
			t.Errorf("the report has no line %s\n%s", want, text)
		}
	}
}
