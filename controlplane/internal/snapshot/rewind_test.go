package snapshot

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/affleet/affleet/controlplane/internal/store"
)

// restored gives a source that was at revision 4 and is at 2 again, the log that
// has followed it, and a node that serves what is lost.
func restored(t *testing.T) (*script, *Log, *replicaNode) {
	t.Helper()
	src := newScript()
	for _, value := range []string{"1", "2", "3"} {
		src.write(map[string]string{"links/a/x": value})
	}
	l := start(t, src, Config{})
	n := &replicaNode{entries: map[string]string{}}
	next(t, l, n)
	src.set(func() {
		src.revision, src.history, src.progress = 2, nil, 2
		src.state = map[string]string{"links/a/x": "1"}
	})
	return src, l, n
}

// noticed waits until a watch has said often enough that the source went back.
func noticed(src *script) {
	for range 5 {
		time.Sleep(5 * time.Second)
		src.set(func() { src.progress = src.revision })
	}
}

func TestSourceThatWasRestoredIsNotFollowedWhenItHasPassedWhatWasServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := restored(t)
		noticed(src)
		if got := src.rewind; got != (store.Rewind{Epoch: 7, Revision: 2, Seen: 4}) {
			t.Fatalf("noted is %+v", got)
		}
		for range 10 {
			src.write(map[string]string{"links/a/other": "1"})
		}
		time.Sleep(time.Minute)
		if f := next(t, l, n); f != nil {
			t.Fatalf("the node was sent a %s to %v", f.Kind, f.To)
		}
		if _, _, back := l.WentBack(); !back || len(l.Alarms()) != 1 || !l.Following() {
			t.Fatalf("alarms are %q, following: %v", l.Alarms(), l.Following())
		}
		src.begin(8)
		time.Sleep(time.Minute)
		if _, _, back := l.WentBack(); back || l.Head().Epoch != 8 || len(l.Alarms()) != 0 {
			t.Fatalf("in a new epoch the head is %v, alarms are %q", l.Head(), l.Alarms())
		}
	})
}

func TestSourceThatIsAsItWasAgainIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := restored(t)
		noticed(src)
		src.set(func() { // the backup was the wrong one, this is all
			src.revision, src.history, src.rewind = 5, nil, store.Rewind{}
			src.state = map[string]string{"links/a/x": "4"}
			src.states[5] = src.state
		})
		time.Sleep(time.Minute)
		if _, _, back := l.WentBack(); back || len(l.Alarms()) != 0 {
			t.Fatalf("alarms are %q", l.Alarms())
		}
		if next(t, l, n); n.entries["links/a/x"] != "4" {
			t.Fatalf("the node holds %v at %v", n.entries, n.held)
		}
	})
}

func TestLogOfARestoredSourceSendsNodesNoOtherHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, _, n := restored(t)
		behind := start(t, src, Config{})
		if _, err := behind.Resume(n.held, n.hash()); err == nil {
			t.Fatal("a node that is ahead is served")
		}
		behind.NodeAhead(n.held)
		synctest.Wait()
		if revision, seen, back := behind.WentBack(); !back || revision != 2 || seen != 4 {
			t.Fatalf("went back: %d, %d, %v", revision, seen, back)
		}
		for range 10 { // as leases of blocks do
			src.write(map[string]string{"links/a/other": "1"})
		}
		synctest.Wait()
		for name, l := range map[string]*Log{"one that runs": behind, "one that starts": start(t, src, Config{})} {
			if _, _, back := l.WentBack(); !back || l.View().Seen() != src.revision {
				t.Errorf("%s: no alarm at revision %d", name, l.View().Seen())
			}
			if _, err := l.Resume(n.held, n.hash()); !errors.As(err, new(*BehindError)) {
				t.Errorf("%s: a node of the other history is served: %v", name, err)
			}
			newborn := &replicaNode{entries: map[string]string{}}
			if next(t, l, newborn); len(newborn.entries) != 2 {
				t.Errorf("%s: a new node holds %v", name, newborn.entries)
			}
			if _, err := l.Resume(newborn.held, newborn.hash()); err != nil {
				t.Errorf("%s: a node of this history comes back: %v", name, err)
			}
		}
	})
}

func TestNodeAheadOfAMemberThatLagsIsNoRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(map[string]string{"links/a/x": "1"})
		l := start(t, src, Config{})
		src.set(func() { src.revision++ }) // the watch does not say so yet
		l.NodeAhead(Version{7, src.revision})
		synctest.Wait()
		if _, _, back := l.WentBack(); back || src.rewind.Seen != 0 {
			t.Fatalf("alarms are %q", l.Alarms())
		}
		src.set(func() { src.broken = true })
		l.NodeAhead(Version{7, 100})
		time.Sleep(time.Minute)
		src.set(func() { src.broken = false })
		time.Sleep(time.Minute)
		if _, seen, back := l.WentBack(); !back || seen != 100 {
			t.Fatalf("what could not be asked was forgotten: %d, %v", seen, back)
		}
	})
}
