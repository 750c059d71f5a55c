package controlplane

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/controlplane/internal/replica"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
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
