package snapshot

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"
)

// miss makes a log miss what write writes, and read it anew, at once: the source
// compacts it away while it is down.
func miss(t *testing.T, src *script, write func()) {
	t.Helper()
	src.set(func() { src.broken = true })
	synctest.Wait()
	write()
	src.set(func() { src.broken, src.compacted = false, src.revision })
	time.Sleep(time.Minute)
}

// from gives a node that another replica has brought to a revision.
func from(t *testing.T, src *script, revision int64) *replicaNode {
	t.Helper()
	return &replicaNode{held: Version{7, revision}, entries: maps.Clone(src.states[revision])}
}

func described(f *Frame) string {
	if f == nil {
		return "nothing"
	}
	return fmt.Sprintf("a %v of %v", f.Kind, f.To)
}

func TestNoSnapshotIsLabelledWithARevisionBetweenThoseThatWereReadAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		before := src.revision
		var last int64
		miss(t, src, func() {
			for i := range 4 { // each of them would pass the guard
				changes := map[string]string{}
				for j := range 150 {
					changes[fmt.Sprintf("links/a/%04d", 150*i+j)] = ""
				}
				last = src.write(changes)
			}
		})
		if h := l.View().Hold(); h == nil || h.Revision != last || l.View().Seen() != last {
			t.Fatalf("held back is %+v, seen is %d of %d", h, l.View().Seen(), last)
		}
		serves(t, l, n, 2000)
		for revision := before + 1; revision < last; revision++ {
			other := from(t, src, revision)
			c, err := l.Resume(other.held, other.hash())
			if err != nil {
				t.Fatal(err)
			}
			f, err := l.Next(t.Context(), c)
			if _, behind := errors.AsType[*BehindError](err); !behind {
				t.Fatalf("a node at %d, which this replica has never served, is sent %s, %v", revision, described(f), err)
			}
			if _, known := l.View().HashAt(other.held); known {
				t.Errorf("the set hash of revision %d is said to be known", revision)
			}
		}
		// What this replica has served is still sent, and the release ends it all.
		newborn := &replicaNode{entries: map[string]string{}}
		if f := serves(t, l, newborn, 2000); f.To.Revision != before {
			t.Fatalf("a new node is sent revision %d, the head is %d", f.To.Revision, before)
		}
		other := from(t, src, last-1)
		src.free(last)
		synctest.Wait()
		var err error
		if other.cursor, err = l.Resume(other.held, other.hash()); err != nil {
			t.Fatal(err)
		}
		for _, n := range []*replicaNode{n, other, newborn} {
			serves(t, l, n, 1400)
			compare(t, src, n)
		}
	})
}

func TestNobodyIsSaidToServeARevisionOfSeveralThatWereReadAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		before := src.revision
		var written []int64
		miss(t, src, func() {
			written = append(written, src.write(nil), src.write(map[string]string{"links/a/new": "1"}), src.write(nil))
		})
		for _, revision := range written {
			if l.View().Serves(n.held, revision) {
				t.Errorf("a node at %d is said to serve revision %d, and one of %d was the write", before, revision, written)
			}
		}
		if !l.View().Serves(n.held, before) {
			t.Error("a node is said not to serve what it holds")
		}
		other := from(t, src, written[1])
		var err error
		if other.cursor, err = l.Resume(other.held, other.hash()); err != nil {
			t.Fatal(err)
		}
		for _, n := range []*replicaNode{n, other} {
			serves(t, l, n, 2001)
			compare(t, src, n)
			if !l.View().Serves(n.held, written[2]) {
				t.Errorf("a node at %v is said not to serve all of %d", n.held, written)
			}
		}
	})
}

func TestRevisionOfAPastEpochDoesNotCountInTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript() // restored, to a lower revision than nodes hold
		src.epoch, src.past = 8, []uint64{7}
		at := src.write(map[string]string{"links/a/x": "1"})
		l := start(t, src, Config{})
		old := Version{7, at + 20}
		c, err := l.Resume(old, (&replicaNode{}).hash())
		if err != nil {
			t.Fatal(err)
		}
		for what, c := range map[string]Cursor{
			"has reconnected": c, "has stayed": {held: old, at: old.Revision}, "has rejected a delta": c.Distrusted(old.Revision),
		} {
			f, err := l.Next(t.Context(), c)
			if err != nil || f.Kind != Snapshot || f.To != (Version{8, at}) {
				t.Fatalf("a node of the epoch before that %s is sent %s, %v", what, described(f), err)
			}
			// It can come back with what it was sent.
			if _, err := l.Resume(f.To, f.Hash); err != nil {
				t.Fatalf("a node that %s and comes again: %v", what, err)
			}
		}
	})
}

func TestChangeThatWasMissedAndUndoneIsNotTakenForNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		before := src.write(map[string]string{"links/a/kept": "1"})
		l := start(t, src, Config{})
		n := &replicaNode{entries: map[string]string{}}
		next(t, l, n)
		var between, last int64
		miss(t, src, func() {
			between = src.write(map[string]string{"links/a/new": "1"})
			last = src.write(map[string]string{"links/a/new": ""})
		})
		if l.View().Serves(n.held, between) {
			t.Errorf("a node at %d is said to serve revision %d", before, between)
		}
		other := from(t, src, between)
		if _, known := l.View().HashAt(other.held); known {
			t.Errorf("the set hash of revision %d, which this replica has never had, is said to be known", between)
		}
		var err error
		if other.cursor, err = l.Resume(other.held, other.hash()); err != nil {
			t.Fatal(err)
		}
		for _, n := range []*replicaNode{n, other} {
			serves(t, l, n, 1)
			compare(t, src, n)
			if n.held.Revision != last {
				t.Errorf("a node ends at %v, the source at %d", n.held, last)
			}
		}
	})
}
