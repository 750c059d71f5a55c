package controlplane

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/controlplane/internal/snapshot"
)

func TestManyNodesThatStartAtOnceCostOneSnapshot(t *testing.T) {
	const nodes = 500
	r := startReplicaWith(t, etcdtest.Start(t), "a", feedConfig{Snapshots: 4})
	r.many(1000, dest(1))
	waitHead(t, r, r.write(map[string]string{"/x": dest(1)}))
	var starting sync.WaitGroup
	var mu sync.Mutex
	away := 0
	for i := range nodes {
		n := newNode(t, fmt.Sprintf("n%d", i), "eu")
		n.connect(r)
		starting.Go(func() {
			for {
				kind, _ := n.take()
				if kind == "snapshot" {
					return
				}
				if kind != "retry" || n.retry.GetAfter().AsDuration() <= 0 {
					t.Errorf("a new node got a %s", kind)
					return
				}
				mu.Lock()
				away++
				mu.Unlock()
				time.Sleep(n.retry.GetAfter().AsDuration() / 100) // ends no test, only makes it long enough
				n.connect(r)
			}
		})
	}
	starting.Wait()
	if got := r.log.Builds(); got > 2 {
		t.Errorf("%d nodes cost %d snapshots", nodes, got)
	}
	if sent := r.feed.metrics.sent[snapshot.Snapshot].Load(); sent != nodes {
		t.Errorf("%d snapshots were sent", sent)
	}
	t.Logf("%d nodes: %d builds, %d times sent away, %d bytes", nodes, r.log.Builds(), away, r.feed.metrics.bytes.Load())
}

func TestNodeThatServesWaitsForItsSnapshotAndGetsTakeDownsMeanwhile(t *testing.T) {
	r := startReplicaWith(t, etcdtest.Start(t), "a", feedConfig{Snapshots: 1})
	v := r.write(map[string]string{"/bad": dest(1), "/fine": dest(1)})
	n := newNode(t, "n1", "eu").connect(r).until(v)
	n.cancel()
	taken := r.feed.admit.take()
	<-r.feed.admit.tokens
	n.hello.SetHash.Lo++ // it needs a snapshot
	n.connect(r)
	v = r.write(map[string]string{"/bad": ""})
	if names := n.down(); !slices.Equal(names, []string{"links/go.test/bad"}) {
		t.Fatalf("taken down is %v", names)
	}
	if kind, _ := newNode(t, "n2", "eu").connect(r).take(); kind != "retry" {
		t.Fatalf("a new node got a %s", kind)
	}
	taken.giveBack()
	taken.giveBack()
	if kind, _ := n.take(); kind != "snapshot" {
		t.Fatalf("it got a %s", kind)
	}
	n.until(v)
}

func TestTokenComesBackFromANodeThatDoesNotRead(t *testing.T) {
	a := newAdmission(&feedConfig{Snapshots: 1, SnapshotTime: time.Millisecond})
	<-a.tokens
	a.take()
	select {
	case <-a.tokens:
	case <-time.After(patience):
		t.Fatal("it does not come back")
	}
}

func TestTurnsAreSpreadAndBounded(t *testing.T) {
	a := newAdmission(&feedConfig{Snapshots: 10})
	now := time.Now()
	last := time.Duration(0)
	for i := range 200 {
		turn := a.turn(now)
		if turn < minRetry || turn > maxRetry || i > 2 && turn <= last {
			t.Fatalf("turn %d is after %s, the one before after %s", i, turn, last)
		}
		last = turn
	}
	for range 10_000 {
		if turn := a.turn(now); turn > maxRetry {
			t.Fatalf("a turn is after %s", turn)
		}
	}
}

func TestTooManyStreamsAreSentAway(t *testing.T) {
	client := etcdtest.Start(t)
	for name, cfg := range map[string]feedConfig{"in all": {MaxStreams: 2}, "of one address": {MaxStreamsPerAddress: 2}} {
		r := startReplicaWith(t, client, name[:2], cfg)
		v := r.write(map[string]string{"/one": dest(1)})
		one := newNode(t, "n1", "eu").connect(r).until(v)
		newNode(t, "n2", "eu").connect(r).until(v)
		if kind, _ := newNode(t, "n3", "eu").connect(r).take(); kind != "retry" {
			t.Fatalf("%s: a third node got a %s", name, kind)
		}
		one.cancel()
		third := newNode(t, "n3", "eu")
		for deadline := time.Now().Add(patience); ; {
			if kind, _ := third.connect(r).take(); kind == "snapshot" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: there is no room after one has left", name)
			}
		}
		r.stop()
	}
}
