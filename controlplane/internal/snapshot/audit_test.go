package snapshot

import (
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/affleet/affleet/proto/link"
)

func TestAuditFindsAndMendsALogThatLostAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(map[string]string{"links/a/x": "1", "links/a/y": "1"})
		l := start(t, src, Config{})
		n := &replicaNode{entries: map[string]string{}}
		next(t, l, n)
		time.Sleep(10 * time.Minute)
		if last, bad := l.Audited(); bad != 0 || time.Since(last) > 2*time.Minute {
			t.Fatalf("nothing is wrong, and the audit says %v, %d", last, bad)
		}
		src.set(func() { // as if a watch had left something out
			src.revision++
			src.state["links/a/x"] = "2"
			delete(src.state, "links/a/y")
			src.states[src.revision] = maps.Clone(src.state)
			src.progress = src.revision
		})
		time.Sleep(10 * time.Minute)
		if _, bad := l.Audited(); bad != 1 {
			t.Fatalf("%d mismatches", bad)
		}
		if f := next(t, l, n); f == nil || f.Kind != Delta || !maps.Equal(n.entries, src.state) {
			t.Fatalf("the node holds %v", n.entries)
		}
	})
}

func TestAuditOfAMovingSourceFindsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		l := start(t, src, Config{AuditInterval: -1})
		for i := range 50 {
			src.write(links(20+i%3, string(rune('a'+i%5))))
			if err := l.Audit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if _, bad := l.Audited(); bad != 0 || l.metrics.audits.Load() != 50 {
			t.Fatalf("%d of %d audits found something", bad, l.metrics.audits.Load())
		}
	})
}

func TestNewEpochIsServedToNodesOfThoseBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(map[string]string{"links/a/x": "1"})
		src.write(map[string]string{"links/a/x": "2"})
		src.write(map[string]string{"links/a/x": "3"})
		l := start(t, src, Config{})
		n := &replicaNode{entries: map[string]string{}}
		next(t, l, n)
		src.set(func() { // restored
			src.revision, src.history, src.compacted = 2, nil, 0
			src.state = map[string]string{"links/a/x": "1"}
			src.progress = 2
		})
		for range 5 {
			time.Sleep(5 * time.Second)
			src.set(func() { src.progress = 2 })
		}
		if _, _, back := l.WentBack(); !back || len(l.Alarms()) != 1 {
			t.Fatalf("no alarm: %q", l.Alarms())
		}
		src.set(func() { src.epoch, src.past = 8, []uint64{7} })
		time.Sleep(time.Minute)
		if l.Head() != (Version{8, src.revision}) || len(l.Alarms()) != 0 {
			t.Fatalf("the head is %v, alarms are %q", l.Head(), l.Alarms())
		}
		n.held.Revision = 0 // the model's nodes know no epochs
		f, err := l.Next(t.Context(), Cursor{held: Version{7, 4}, at: 4})
		if err != nil || f.Kind != Snapshot || !f.Released {
			t.Fatalf("a node of the epoch before was not sent a snapshot that is released: %v", err)
		}
		n.apply(t, f)
		if n.entries["links/a/x"] != "1" {
			t.Fatalf("it holds %v", n.entries)
		}
		if _, err := l.Resume(Version{9, 1}, link.SetHash{}); err == nil {
			t.Error("a node of an epoch that nobody knows is served")
		}
	})
}

func TestEpochThatBeginsWhileTheSourceIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(map[string]string{"links/a/x": "1"})
		l := start(t, src, Config{})
		src.begin(8)
		synctest.Wait()
		if got := l.Head(); got.Epoch != 8 || got.Revision != src.revision {
			t.Fatalf("the head is %v", got)
		}
		src.write(map[string]string{"links/a/x": "2"})
		synctest.Wait()
		if got := l.Head(); got.Revision != src.revision {
			t.Fatalf("the head is %v, the source at %d", got, src.revision)
		}
	})
}

func TestWriteAnsweredAtALowerRevisionRaisesTheAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		at := src.write(map[string]string{"links/a/x": "1"})
		l := start(t, src, Config{})
		if err := l.Wrote(at+1, l.View()); err != nil {
			t.Fatal(err)
		}
		if err := l.Wrote(at, l.View()); err == nil {
			t.Fatal("it was taken for a write")
		}
		if revision, seen, back := l.WentBack(); !back || revision != at || seen != at {
			t.Fatalf("went back: %d, %d, %v", revision, seen, back)
		}
	})
}
