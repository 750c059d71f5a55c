package feed

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// The replica has told a later take-down first: it tells the others when the delta
// that has them is rejected.
func TestTakeDownThatIsLeftToItsVersionIsNotAcknowledgedBehindALaterOne(t *testing.T) {
	v := func(revision int64) table.Version { return table.Version{Epoch: epoch, Revision: revision} }
	for name, reason := range map[string]struct {
		guard Guard
		mark  mark
	}{
		"guard":    {Guard{Floor: 10}, mark{}},
		"tripwire": {Guard{Shrink: 100}, mark{originTakeDown, v(12), maxCrashes, time.Now()}},
	} {
		t.Run(name, func(t *testing.T) {
			s := many(20)
			live := &table.Live{}
			a := newApplier(live, reason.guard)
			a.wire = &tripwire{path: filepath.Join(t.TempDir(), noteName), marks: []mark{reason.mark}}
			t.Cleanup(a.wire.close)
			for _, f := range s.snapshot(10) {
				a.take(wire(t, f))
			}
			answered := func(want int64, left bool, m *feedv1.SubscribeResponse) {
				t.Helper()
				if o := a.take(wire(t, m)); o.takenDown.GetRevision() != want || (o.guarded != nil) != left {
					t.Errorf("%v is answered %v, and left to its version: %v; want %d", m.GetTakeDown().GetVersion(), o.takenDown, o.guarded, want)
				}
			}
			most := takeDown(12, deleted("/1"), deleted("/2"), deleted("/3"), deleted("/4"), deleted("/5"))
			answered(15, false, takeDown(15, deleted("/0")))
			answered(11, false, takeDown(11, deleted("/none")))
			answered(11, true, most)
			wantAnswer(t, live, "/1", "https://x.test/", link.ToDestination)
			answered(11, false, takeDown(15, deleted("/0")))
			answered(11, true, most)

			d := s.delta(10, 13, map[string]string{"/1": "", "/2": "", "/3": "", "/4": "", "/5": ""})
			d.GetDelta().Released = true
			if o := a.take(wire(t, d)); o.applied == nil {
				t.Fatalf("its version is answered %+v", o.rejection)
			}
			answered(15, false, takeDown(15, deleted("/0")))
		})
	}
}

func TestNothingIsAcknowledgedUntilAllThatIsLeftToItsVersionIsServed(t *testing.T) {
	for _, order := range [][]int64{{12, 14}, {14, 12}} {
		live := &table.Live{}
		a := newApplier(live, Guard{Floor: 10})
		s := many(20)
		for _, f := range s.snapshot(10) {
			a.take(wire(t, f))
		}
		left := map[int64]*feedv1.SubscribeResponse{
			12: takeDown(12, deleted("/0"), deleted("/1"), deleted("/2"), deleted("/3"), deleted("/4")),
			14: takeDown(14, deleted("/5"), deleted("/6"), deleted("/7"), deleted("/8"), deleted("/9")),
		}
		for _, revision := range order {
			if o := a.take(wire(t, left[revision])); o.guarded == nil || o.takenDown.GetRevision() != 10 {
				t.Fatalf("%v: %d is answered %+v", order, revision, o)
			}
		}
		for _, to := range []int64{12, 14} {
			gone := map[string]string{}
			for _, e := range left[to].GetTakeDown().GetEntries() {
				gone[strings.TrimPrefix(e.GetKey(), "links/go.test")] = ""
			}
			d := s.delta(heldVersion(live).Revision, to, gone)
			d.GetDelta().Released = true
			if o := a.take(wire(t, d)); o.applied == nil {
				t.Fatalf("version %d is answered %+v", to, o.rejection)
			}
			want := int64(12)
			if to == 14 {
				want = 15
			}
			if o := a.take(wire(t, takeDown(15, deleted("/10")))); o.takenDown.GetRevision() != want {
				t.Errorf("%v: with version %d served, the next one is answered %v, want %d", order, to, o.takenDown, want)
			}
		}
	}
}

// A new epoch has begun: its take-downs come in the middle of the snapshot that takes
// the node there.
func TestTakeDownOfAnotherEpochThatIsLeftToItsVersionIsNotAcknowledged(t *testing.T) {
	live := &table.Live{}
	a := newApplier(live, Guard{Floor: 10})
	s := many(20)
	for _, f := range s.snapshot(10) {
		a.take(wire(t, f))
	}
	next := func(revision int64) *linkv1.Version { return &linkv1.Version{Epoch: epoch + 1, Revision: revision} }
	answered := func(want, v *linkv1.Version, left bool, entries ...*feedv1.Entry) {
		t.Helper()
		m := takeDown(0, entries...)
		m.GetTakeDown().Version = v
		if o := a.take(wire(t, m)); !proto.Equal(o.takenDown, want) || (o.guarded != nil) != left {
			t.Errorf("%v is answered %v, and left to its version: %v; want %v", v, o.takenDown, o.guarded, want)
		}
	}
	var entries []*feedv1.Entry
	for path, destination := range s {
		entries = append(entries, entry(path, destination))
	}
	frames := snapshotOf(next(3), entries...)
	a.take(wire(t, frames[0]))
	answered(next(4), next(4), false, deleted("/0"))
	answered(version(10), next(5), true, deleted("/1"), deleted("/2"), deleted("/3"), deleted("/4"), deleted("/5"))
	answered(version(10), next(6), false, deleted("/0"))
	for _, f := range frames[1:] {
		a.take(wire(t, f))
	}
	if v := live.Load().Version(); v != versionOf(next(3)) {
		t.Fatalf("the node is at %v", v)
	}
	answered(next(3), next(6), false, deleted("/0"))
	wantAnswer(t, live, "/0", "", link.ToNotFound)
	wantAnswer(t, live, "/1", "https://x.test/", link.ToDestination)
	d := s.delta(3, 5, map[string]string{"/0": "", "/1": "", "/2": "", "/3": "", "/4": "", "/5": ""})
	d.GetDelta().From, d.GetDelta().To, d.GetDelta().Released = next(3), next(5), true
	if o := a.take(wire(t, d)); o.applied == nil {
		t.Fatalf("its version is answered %+v", o.rejection)
	}
	answered(next(6), next(6), false, deleted("/0"))
}
