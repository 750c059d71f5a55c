package snapshot

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/affleet/affleet/controlplane/internal/store"
)

// meanwhile is a script to which something happens while everything is read:
// before the reading, or behind it.
type meanwhile struct {
	*script
	before, behind func() // nil: nothing; each is called once
}

func (m *meanwhile) Load(ctx context.Context, opts store.LoadOptions, each func(store.Object) error) (int64, error) {
	if f := m.before; f != nil {
		m.before = nil
		f()
	}
	revision, err := m.script.Load(ctx, opts, each)
	if f := m.behind; f != nil {
		m.behind = nil
		f()
	}
	return revision, err
}

func TestEpochThatBeginsBeforeEverythingIsReadIsNotMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(links(10, "1"))
		l := start(t, &meanwhile{script: src, before: func() { src.begin(8) }}, Config{})
		src.write(links(20, "1"))
		time.Sleep(time.Minute)
		if head := l.Head(); head != (Version{8, src.revision}) {
			t.Errorf("the head is %v, want epoch 8 and revision %d", head, src.revision)
		}
	})
}

func TestEpochThatBeginsInWhatIsCompactedIsNotServedAsTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(links(10, "1"))
		m := &meanwhile{script: src}
		l := start(t, m, Config{})
		before := l.Head()
		m.before = func() { src.begin(8); src.write(links(20, "1")) }
		m.behind = func() {
			go func() { // a head of the epoch before must not come
				for v := l.View(); v.epoch == 7; v = l.View() {
					if v.Head() != before {
						t.Errorf("the head is %v", v.Head())
					}
					<-v.Advanced()
				}
			}()
		}
		src.set(func() { src.broken = true })
		synctest.Wait()
		src.write(links(11, "1"))
		src.set(func() { src.broken, src.compacted = false, src.revision })
		time.Sleep(time.Minute)
		if head := l.Head(); head != (Version{8, src.revision}) {
			t.Errorf("the head is %v, want epoch 8 and revision %d", head, src.revision)
		}
	})
}

func TestReleaseWhileAReplicaStartsLeavesNothingElseHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, _, _ := guarded(t, Config{})
		bad := src.write(links(1000, ""))
		synctest.Wait()
		later := start(t, &meanwhile{script: src, behind: func() { src.free(bad) }}, Config{})
		src.write(map[string]string{"links/a/new": "1"})
		serves(t, later, &replicaNode{entries: map[string]string{}}, 1001)
	})
}

// TestWritesThatReleaseThemselvesWhileAReplicaStartsPassThere deletes in steps while
// everything is read: the replica learns of the last release before it sees the first.
func TestWritesThatReleaseThemselvesWhileAReplicaStartsPassThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, _, _ := guarded(t, Config{})
		later := start(t, &meanwhile{script: src, behind: func() {
			for _, n := range []int{700, 1400} {
				src.set(func() { src.release, src.allow = store.Release{Epoch: 7, Write: src.revision + 1}, true })
				src.write(links(n, ""))
			}
		}}, Config{})
		serves(t, later, &replicaNode{entries: map[string]string{}}, 600)
	})
}

func TestReplicaThatStartsHoldsBackWhatAnotherHasReadAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		src.set(func() { src.broken = true })
		synctest.Wait()
		first := src.write(links(100, ""))
		src.free(first)
		bad := src.write(links(1000, ""))
		src.write(map[string]string{"links/b/1": "1"})
		src.write(map[string]string{"links/b/2": "1"})
		src.set(func() { src.broken, src.compacted = false, bad })
		time.Sleep(time.Minute)
		serves(t, l, n, 2000)
		if h := l.View().Hold(); h.From != first+1 {
			t.Errorf("%d is held back from %d on, want %d: what was before that is released", h.Revision, h.From, first+1)
		}
		later := start(t, src, Config{})
		f, err := later.Next(t.Context(), Cursor{})
		if err == nil {
			t.Fatalf("a new node gets %s with %d links of %d", described(f), f.Entries, 2000)
		}
		if h := later.View().Hold(); h == nil {
			t.Error("nothing is held back")
		}
		src.free(l.View().Hold().Revision)
		serves(t, l, n, 1002)
		src.free(src.revision)
		serves(t, later, &replicaNode{entries: map[string]string{}}, 1002)
	})
}

func TestLaneTakesAsMuchAtTheSecondVersionThatIsHeldBackAsAtTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, _ := guarded(t, Config{Guard: Guard{MaxEntries: 2010}})
		hold := func(name string) int64 {
			m := make(map[string]string)
			for i := range 100 {
				m[fmt.Sprintf("links/%s/%04d", name, i)] = "1"
			}
			return src.write(m)
		}
		bad := hold("b")
		for i := range maxHeldDeletes / 4 {
			src.write(between(4*i, 4*i+4))
			synctest.Wait()
			time.Sleep(time.Second)
		}
		src.free(src.revision)
		synctest.Wait()
		if h := l.View().Hold(); h != nil || bad == 0 {
			t.Fatalf("held back is %+v", h)
		}
		more := make(map[string]string)
		for i := range 2000 {
			more[fmt.Sprintf("links/c/%04d", i)] = "1"
		}
		src.write(more)
		at := src.write(between(1500, 1501))
		synctest.Wait()
		if h := l.View().Hold(); h == nil || h.Revision != at-1 {
			t.Fatalf("held back is %+v", h)
		}
		if d := l.View().LastTakeDown(); d.Revision != at {
			t.Errorf("the last take-down is of revision %d, want %d", d.Revision, at)
		}
	})
}
