package controlplane

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/controlplane/internal/replica"
	"github.com/affleet/affleet/controlplane/internal/snapshot"
	"github.com/affleet/affleet/controlplane/internal/store"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// countedPeers counts how often the list is read.
type countedPeers struct {
	peers
	reads atomic.Int64
}

func (c *countedPeers) Refresh(ctx context.Context) error {
	c.reads.Add(1)
	return c.peers.Refresh(ctx)
}

func TestWaitReadsTheListOfReplicasOnlyWhenThatHasChanged(t *testing.T) {
	a, _, far, _ := twoReplicas(t, etcdtest.Start(t))
	counted := &countedPeers{peers: a.fleet.cfg.Peers}
	a.fleet.cfg.Peers = counted
	near := newNode(t, "another", "eu").connect(a)
	writes := 0
	waits := func() {
		t.Helper()
		writes++
		v := a.write(map[string]string{"/one": dest(10 + writes)})
		done := waitFor(t, a, patience, &adminv1.WaitForVersionRequest{Version: v, Region: "us"})
		near.until(v)
		far.until(v)
		if got := <-done; got.err != nil {
			t.Fatal(got.err)
		}
	}
	for range 10 {
		waits() // this one may read it: what the log began with is newer than the list
		counted.reads.Store(0)
		before := a.log.View().Replicas()
		for range 4 {
			waits()
		}
		if a.log.View().Replicas() != before {
			continue // a lease has ended, of a second only, where the machine is busy
		}
		if n := counted.reads.Load(); n != 0 {
			t.Errorf("the list was read %d times", n)
		}
		return
	}
	t.Fatal("the list of replicas changes all the time")
}

func TestWaitAsksAReplicaThatTheListDoesNotHaveYet(t *testing.T) {
	client := etcdtest.Start(t)
	a := startReplica(t, client, "a")
	deaf, err := replica.New(client, replica.Config{ID: "a", Address: a.door.Addr().String()}) // it follows nothing
	if err != nil {
		t.Fatal(err)
	}
	if err := deaf.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.fleet.cfg.Peers = deaf
	b := startReplica(t, client, "b")
	v := a.write(map[string]string{"/one": dest(1)})
	near := newNode(t, "near", "eu").connect(a).until(v)
	far := newNode(t, "far", "us").connect(b).until(v)
	v = a.write(map[string]string{"/one": dest(2)})
	near.until(v)
	done := waitFor(t, a, patience, &adminv1.WaitForVersionRequest{Version: v})
	select {
	case got := <-done:
		t.Fatalf("it ended with %v, %v, before the other replica's node serves it", got.WaitForVersionResponse, got.err)
	case <-time.After(300 * time.Millisecond):
	}
	far.until(v)
	if got := <-done; got.err != nil || got.GetNodes() != 2 {
		t.Fatalf("%v, %v", got.WaitForVersionResponse, got.err)
	}
}

// Revisions of two epochs have nothing to do with each other: after a restore of etcd,
// a node may have taken down far more of the epoch before.
func TestWhatANodeTookDownInAnotherEpochCountsForNoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFake(t, feedConfig{})
		write := func(disabled bool) (revision int64) {
			r.change(func() {
				r.next(store.Batch{Changes: []store.Change{{Name: "links/go.test/1", Value: linkValue(1, "x", disabled)}}})
				revision = r.revision
			})
			synctest.Wait()
			return revision
		}
		before := write(false)
		down := write(true)
		const now, past = scheduleEpoch, scheduleEpoch - 1
		for _, node := range []struct {
			held  snapshot.Version
			downs span
			lags  bool
		}{
			{snapshot.Version{Epoch: now, Revision: before}, span{now, before, down}, false},
			{snapshot.Version{Epoch: now, Revision: before}, span{now, before, before}, true},
			{snapshot.Version{Epoch: now, Revision: before}, span{past, before, down + 100}, true},
			{snapshot.Version{Epoch: past, Revision: before}, span{past, before, down + 100}, true},
			{snapshot.Version{Epoch: past, Revision: down + 50}, span{past, before, down + 100}, true},
		} {
			f := r.feed.fleet
			m := f.join(&feedv1.Hello{Node: "n", Region: "r", Version: versionProto(node.held)})
			f.takenDown(m, node.downs)
			var got tally
			w, stop := f.watch()
			f.count(&adminv1.WaitForVersionRequest{Version: &linkv1.Version{Epoch: now, Revision: down}}, w, &got)
			stop()
			f.leave(m)
			if got.nodes != 1 || (len(got.lagging) == 1) != node.lags {
				t.Errorf("a node at %v that refuses %v: %v lag of %d", node.held, node.downs, got.lagging, got.nodes)
			}
		}
	})
}
