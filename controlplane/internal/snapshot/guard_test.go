package snapshot

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/affleet/affleet/controlplane/internal/store"
)

// links gives n links that are there, or are to be deleted.
func links(n int, value string) map[string]string {
	m := make(map[string]string)
	for i := range n {
		m[fmt.Sprintf("links/a/%04d", i)] = value
	}
	return m
}

// guarded starts a log of 2000 links, and a node that serves them.
func guarded(t *testing.T, cfg Config) (*script, *Log, *replicaNode) {
	t.Helper()
	src := newScript()
	src.write(links(2000, "1"))
	l := start(t, src, cfg)
	n := &replicaNode{entries: map[string]string{}}
	next(t, l, n)
	return src, l, n
}

// serves takes all that there is for a node, and checks how many links that
// makes.
func serves(t *testing.T, l *Log, n *replicaNode, want int) (last *Frame) {
	t.Helper()
	synctest.Wait()
	for f := next(t, l, n); f != nil; f = next(t, l, n) {
		last = f
	}
	if len(n.entries) != want {
		t.Fatalf("the node serves %d links, want %d; held back is %+v", len(n.entries), want, l.View().Hold())
	}
	return last
}

func TestRevisionThatRemovesTooMuchIsHeldBackUntilItIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		src.write(links(400, ""))
		serves(t, l, n, 1600) // a fifth may go
		time.Sleep(5 * time.Minute)
		bad := src.write(links(800, ""))
		src.write(map[string]string{"links/a/new": "1"})
		serves(t, l, n, 1600)
		if h := l.View().Hold(); h == nil || h.Revision != bad || l.View().Seen() != bad+1 || len(l.Alarms()) != 1 {
			t.Fatalf("held back is %+v, alarms are %q", h, l.Alarms())
		}
		newborn := &replicaNode{entries: map[string]string{}}
		serves(t, l, newborn, 1600)
		src.free(bad - 1)
		serves(t, l, n, 1600)
		src.free(bad)
		f := serves(t, l, n, 1201)
		if !f.Released {
			t.Error("the nodes' guards are not told of the release")
		}
		serves(t, l, newborn, 1201)
		if l.View().Hold() != nil || len(l.Alarms()) != 0 || !maps.Equal(n.entries, src.state) {
			t.Errorf("after the release: %+v", l.View().Hold())
		}
		src.write(map[string]string{"links/a/0801": "2"})
		if f := serves(t, l, n, 1201); f.Released {
			t.Error("what came after the release is marked, too")
		}
	})
}

func TestManySmallRevisionsCannotRemoveTooMuchWithinTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		for i := range 600 {
			src.write(map[string]string{fmt.Sprintf("links/a/%04d", i): ""})
		}
		serves(t, l, n, 1600)
		h := l.View().Hold()
		if h == nil {
			t.Fatal("600 of 2000 links went one by one")
		}
		// What comes behind is measured anew from what is released.
		src.free(h.Revision)
		serves(t, l, n, 1400)
	})
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		for i := range 600 {
			time.Sleep(2 * time.Second)
			src.write(map[string]string{fmt.Sprintf("links/a/%04d", i): ""})
		}
		serves(t, l, n, 1400) // in 20 minutes they may
	})
}

func TestReleaseOfOneVersionDoesNotReleaseTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		first := src.write(links(1000, ""))
		second := src.write(links(1500, ""))
		serves(t, l, n, 2000)
		src.free(first)
		serves(t, l, n, 1000)
		if h := l.View().Hold(); h == nil || h.Revision != second {
			t.Fatalf("held back is %+v", h)
		}
		src.free(second)
		serves(t, l, n, 500)
	})
}

func TestWriteThatAllowsItselfToShrinkPassesAndReleasesNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		allow := func(f func() int64) {
			src.mu.Lock()
			src.release = store.Release{Epoch: src.epoch, Write: src.revision + 1}
			src.allow = true
			src.mu.Unlock()
			f()
		}
		allow(func() int64 { return src.write(links(1000, "")) })
		if f := serves(t, l, n, 1000); !f.Released {
			t.Error("the nodes' guards are not told")
		}
		bad := src.write(links(1500, ""))
		allow(func() int64 { return src.write(map[string]string{"links/a/1999": ""}) })
		serves(t, l, n, 1000)
		if h := l.View().Hold(); h == nil || h.Revision != bad {
			t.Fatalf("held back is %+v", h)
		}
	})
}

func TestReadAnewIsGuardedAndImportsAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		l := start(t, src, Config{})
		n := &replicaNode{entries: map[string]string{}}
		next(t, l, n)
		for i := range 300 { // as an import does, from nothing
			m := make(map[string]string)
			for j := range 100 {
				m[fmt.Sprintf("links/a/%d-%d", i, j)] = "1"
			}
			src.write(m)
			if i == 10 {
				serves(t, l, n, 1100)
			}
		}
		if f := serves(t, l, n, 30000); !f.Released {
			t.Error("a node's own guard is not told that it grew in small steps")
		}
		src.set(func() { src.broken = true })
		synctest.Wait()
		gone := make(map[string]string)
		for key := range src.state {
			if len(gone) < 29000 {
				gone[key] = ""
			}
		}
		src.write(gone)
		src.set(func() { src.broken, src.compacted = false, src.revision })
		time.Sleep(time.Minute)
		serves(t, l, n, 30000)
		if l.View().Hold() == nil {
			t.Fatal("nothing is held back")
		}
		src.free(l.View().Hold().Revision)
		serves(t, l, n, 1000)
	})
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		src.write(func() map[string]string {
			m := make(map[string]string)
			for i := range 20000 {
				m[fmt.Sprintf("links/b/%d", i)] = "1"
			}
			return m
		}())
		serves(t, l, n, 2000) // eleven times as many, at once
	})
}

func TestSmallFleetsAreNotGuarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(links(900, "1"))
		l := start(t, src, Config{})
		n := &replicaNode{entries: map[string]string{}}
		next(t, l, n)
		src.write(links(900, ""))
		serves(t, l, n, 0)
	})
}

func TestLimitsInAllAreHeldBack(t *testing.T) {
	for name, guard := range map[string]Guard{"entries": {MaxEntries: 2010}, "bytes": {MaxBytes: 2010 * 13}} {
		synctest.Test(t, func(t *testing.T) {
			src, l, n := guarded(t, Config{Guard: guard})
			m := make(map[string]string)
			for i := range 11 {
				m[fmt.Sprintf("links/b/%04d", i)] = "1"
			}
			bad := src.write(m)
			serves(t, l, n, 2000)
			if h := l.View().Hold(); h == nil || h.Revision != bad {
				t.Fatalf("%s: held back is %+v", name, h)
			}
		})
	}
}

func TestReplicaThatStartsHoldsBackWhatAnotherDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, _, _ := guarded(t, Config{})
		bad := src.write(links(1000, ""))
		synctest.Wait()
		if src.held != bad {
			t.Fatalf("noted as held back is %d, want %d", src.held, bad)
		}
		later := start(t, src, Config{})
		n := &replicaNode{entries: map[string]string{}}
		serves(t, later, n, 2000)
		src.free(bad)
		serves(t, later, n, 1000)
	})
}

func TestWhatIsHeldBackStaysSoWhenEtcdHasCompactedWhatWasServedInstead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, _, n := guarded(t, Config{})
		bad := src.write(links(1000, ""))
		synctest.Wait()
		src.write(map[string]string{"links/a/more": "1"})
		src.set(func() { src.compacted = bad })
		l := start(t, src, Config{})
		if h := l.View().Hold(); h == nil || h.Revision != bad || len(l.Alarms()) != 1 || l.Head().Revision >= bad {
			t.Fatalf("held back is %+v, alarms are %q, the head is %v", h, l.Alarms(), l.Head())
		}
		newborn := &replicaNode{entries: map[string]string{}}
		var behind *BehindError
		if f, err := l.Next(t.Context(), newborn.cursor); !errors.As(err, &behind) || behind.Head != (Version{}) {
			t.Fatalf("a node without a state was sent something: %v, %v", f != nil, err)
		}
		var err error
		if n.cursor, err = l.Resume(n.held, n.hash()); err != nil {
			t.Fatal(err)
		}
		serves(t, l, n, 2000) // what it has
		taken := src.write(map[string]string{"links/a/1999": ""})
		synctest.Wait()
		if downs := l.View().TakeDowns(n.held.Revision); len(downs) != 1 || downs[0].names[0] != "links/a/1999" {
			t.Errorf("taken down is %+v", downs)
		}
		if l.View().Serves(n.held, bad) || l.View().Serves(n.held, n.held.Revision+1) {
			t.Error("the node is said to serve what is held back")
		}
		src.free(bad)
		serves(t, l, n, 2000) // what came behind it may be as bad
		if h := l.View().Hold(); h == nil || h.Revision != bad+1 {
			t.Fatalf("held back is %+v", h)
		}
		if h := start(t, src, Config{}).View().Hold(); h == nil || h.From != bad+1 {
			t.Fatalf("a replica that starts holds back %+v", h)
		}
		src.free(taken)
		if f := serves(t, l, n, 1000); f.Kind != Snapshot || !f.Released {
			t.Errorf("the node got a %s, released: %v", f.Kind, f.Released)
		}
		serves(t, l, newborn, 1000)
		if !maps.Equal(n.entries, src.state) || len(l.Alarms()) != 0 {
			t.Errorf("after the release the alarms are %q", l.Alarms())
		}
		src.write(map[string]string{"links/a/1998": "2"})
		serves(t, l, n, 1000)
	})
}

func TestSnapshotFromBetweenTwoWritesThatReleaseThemselvesIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, old := guarded(t, Config{})
		allow := func(changes map[string]string) {
			src.mu.Lock()
			src.release, src.allow = store.Release{Epoch: src.epoch, Write: src.revision + 1}, true
			src.mu.Unlock()
			src.write(changes)
			synctest.Wait()
		}
		allow(links(1000, ""))
		if _, err := l.Next(t.Context(), old.cursor.Distrusted(src.revision)); err != nil { // builds it
			t.Fatal(err)
		}
		builds := l.Builds()
		allow(map[string]string{"links/a/1999": ""})
		f, err := l.Next(t.Context(), old.cursor.Distrusted(0))
		if err != nil || f.Kind != Snapshot || l.Builds() != builds {
			t.Fatalf("the node was sent a %s, %d builds, %v", f.Kind, l.Builds(), err)
		}
		if !f.Released {
			t.Error("the node's guard is not told that a write has released what is gone")
		}
	})
}

func TestMoreIsHeldBackThanTheLogTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{LogBytes: 100_000})
		bad := src.write(links(1000, ""))
		for i := range 500 {
			src.write(map[string]string{fmt.Sprintf("links/c/%d", i%50): fmt.Sprintf("%0500d", i)})
		}
		synctest.Wait()
		if v := l.View(); !v.lost || v.logBytes() > 100_000 {
			t.Fatalf("lost: %v, %d bytes", v.lost, v.logBytes())
		}
		serves(t, l, n, 2000)
		serves(t, l, &replicaNode{entries: map[string]string{}}, 2000)
		if err := l.Audit(t.Context()); err != nil || l.metrics.auditMismatches.Load() != 0 {
			t.Fatalf("audit: %v", err)
		}
		src.free(bad)
		serves(t, l, n, 1050)
		serves(t, l, &replicaNode{entries: map[string]string{}}, 1050)
		if !maps.Equal(n.entries, src.state) {
			t.Error("the node holds something else than the source")
		}
	})
}

func TestNodeAheadOfAHoldIsNotSentBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		bad := src.write(links(1000, ""))
		synctest.Wait()
		other := &replicaNode{held: Version{7, bad}, entries: maps.Clone(src.state)} // of a replica that let it pass
		var err error
		if other.cursor, err = l.Resume(other.held, other.hash()); err != nil {
			t.Fatal(err)
		}
		if f := next(t, l, other); f != nil {
			t.Fatalf("it was sent a %v to %v", f.Kind, f.To)
		}
		if _, err := l.Next(t.Context(), other.cursor.Distrusted(bad)); err == nil {
			t.Fatal("a node that needs what is held back was sent something")
		}
		src.free(bad)
		serves(t, l, n, 1000)
	})
}
