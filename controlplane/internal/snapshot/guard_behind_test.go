package snapshot

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// between deletes some of the links of guarded.
func between(from, to int) map[string]string {
	m := make(map[string]string)
	for i := from; i < to; i++ {
		m[fmt.Sprintf("links/a/%04d", i)] = ""
	}
	return m
}

// TestReleaseOfAVersionReleasesNoWorseOneThatTheLogHasLost writes more behind a version
// that is held back than the log takes, and then something that is to be held back, too.
func TestReleaseOfAVersionReleasesNoWorseOneThatTheLogHasLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{LogBytes: 100_000})
		bad := src.write(between(0, 500))
		for i := range 500 {
			src.write(map[string]string{fmt.Sprintf("links/c/%d", i%50): fmt.Sprintf("%0500d", i)})
		}
		synctest.Wait()
		if !l.View().lost {
			t.Fatal("the log has all that is held back")
		}
		time.Sleep(3 * time.Minute)
		worse := src.write(between(500, 1900))
		src.write(map[string]string{"links/a/behind": "1"})
		src.free(bad)
		serves(t, l, n, 2000)
		if h := l.View().Hold(); h == nil || h.Revision != worse || h.From != bad+1 {
			t.Fatalf("held back is %+v, want %d, from %d", h, worse, bad+1)
		}
		// One that starts knows no better than what was released.
		serves(t, start(t, src, Config{}), &replicaNode{entries: map[string]string{}}, 1500)
		src.free(worse)
		if f := serves(t, l, n, 151); !f.Released {
			t.Error("the nodes' guards are not told of the release")
		}
		if h := l.View().Hold(); h != nil {
			t.Errorf("held back is %+v", h)
		}
	})
}

func TestAQuietTimeDoesNotLetMoreLinksGo(t *testing.T) {
	for _, quiet := range []time.Duration{0, 90 * time.Second, 3 * time.Minute, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			src, l, n := guarded(t, Config{})
			time.Sleep(quiet)
			src.write(between(0, 300))
			synctest.Wait()
			time.Sleep(time.Second)
			bad := src.write(between(300, 600)) // with the others 30% within a second
			serves(t, l, n, 1700)
			if h := l.View().Hold(); h == nil || h.Revision != bad {
				t.Errorf("after %s without a write, held back is %+v", quiet, h)
			}
		})
	}
}

func TestAClockThatIsPutBackMakesTheWindowNoLonger(t *testing.T) {
	w := watchman{Guard: Guard{Shrink: 0.2, Floor: 1, Window: time.Minute}}
	now, links := time.Now(), int64(2000)
	w.rebase(mark{at: now, links: links})
	remove := func(n int64) string {
		before := mark{at: now, links: links}
		r := &record{mark: mark{at: now, links: links - n}, changes: slices.Repeat([]change{{key: linkPrefix + "a/1", had: true}}, int(n))}
		reason := w.check(before, r)
		if reason == "" {
			w.passed(before, r.mark)
			links -= n
		}
		return reason
	}
	if reason := remove(300); reason != "" {
		t.Fatal(reason)
	}
	now = now.Add(-time.Hour)
	if remove(300) == "" {
		t.Error("30% went at once, with the clock put back in between")
	}
	for range 3 { // a window has two halves
		now = now.Add(time.Minute)
		if reason := remove(1); reason != "" {
			t.Fatal(reason)
		}
	}
	if reason := remove(300); reason != "" {
		t.Errorf("three minutes later: %s", reason)
	}
}

// TestReplicasJudgeAlikeWhereverTheyBegan starts a replica half a minute behind
// another, and has them see changes at times that keep it so.
func TestReplicasJudgeAlikeWhereverTheyBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, a, _ := guarded(t, Config{})
		time.Sleep(30 * time.Second)
		b := start(t, src, Config{})
		for _, seconds := range []int{40, 30, 40, 30} {
			time.Sleep(time.Duration(seconds) * time.Second)
			src.write(map[string]string{"links/b": fmt.Sprint(seconds)})
			synctest.Wait()
		}
		for from := 0; from < 1000; from += 4 { // in a minute an eighth of them, in two a quarter
			time.Sleep(time.Second)
			src.write(between(from, from+4))
			synctest.Wait()
		}
		of, also := a.View().Hold(), b.View().Hold()
		if of == nil || also == nil || of.Revision != also.Revision {
			t.Errorf("one replica holds back %+v, the other %+v", of, also)
		}
	})
}

// TestNodeThatWasSlowTakesWhatPassedInSteps has a third of the links go over some
// minutes, and a fourth replaced: no step is more than the guard lets pass.
func TestNodeThatWasSlowTakesWhatPassedInSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		late := &replicaNode{held: n.held, entries: n.entries, cursor: n.cursor.Distrusted(0)}
		for step := range 3 {
			src.write(between(step*200, step*200+200))
			synctest.Wait()
			time.Sleep(3 * time.Minute)
		}
		f, err := l.Next(t.Context(), n.cursor)
		if err != nil || f.Kind != Delta || !f.Released {
			t.Fatalf("a %v, its guard is told: %v, %v", f.Kind, f.Released, err)
		}
		if f, err = l.Next(t.Context(), late.cursor); err != nil || f.Kind != Snapshot || !f.Released {
			t.Fatalf("a %v, its guard is told: %v, %v", f.Kind, f.Released, err)
		}
		serves(t, l, n, 1400)
		src.write(between(600, 610))
		if f := serves(t, l, n, 1390); f.Released {
			t.Error("a step alone goes round the node's guard")
		}
	})
}

// TestNodeThatHoldsSomethingElseIsLeftToItsGuard has a node come with the links of
// another history, and one whose links are found to be others.
func TestNodeThatHoldsSomethingElseIsLeftToItsGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		src.write(between(0, 200))
		synctest.Wait()
		hash := n.hash()
		hash.Hi++
		other, err := l.Resume(n.held, hash)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []Cursor{other, other.Distrusted(0), n.cursor.Other(), n.cursor.Other().Distrusted(0)} {
			if f, err := l.Next(t.Context(), c); err != nil || f.Kind != Snapshot || f.Released {
				t.Errorf("a %v, its guard is told to let it pass: %v, %v", f.Kind, f.Released, err)
			}
		}
	})
}

func TestLinksThatAreReplacedCountAsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		m := between(0, 500)
		for i := range 500 {
			m[fmt.Sprintf("links/b/%04d", i)] = "1"
		}
		bad := src.write(m)
		serves(t, l, n, 2000)
		if h := l.View().Hold(); h == nil || h.Revision != bad {
			t.Fatalf("held back is %+v", h)
		}
		src.free(bad)
		if serves(t, l, n, 2000); n.entries["links/b/0000"] == "" {
			t.Error("it is not served once it is released")
		}
	})
}
