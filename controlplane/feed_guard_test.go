package controlplane

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/controlplane/internal/snapshot"
	"github.com/affleet/affleet/controlplane/internal/store"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// many writes n links of go.test, or deletes them, by the hundred, and gives
// the last version.
func (r *testReplica) many(n int, destination string) (v *linkv1.Version) {
	r.t.Helper()
	for from := 0; from < n; from += 100 {
		links := map[string]string{}
		for i := from; i < min(from+100, n); i++ {
			links[fmt.Sprintf("/many/%d", i)] = destination
		}
		v = r.write(links)
	}
	return v
}

// waitHold waits until a replica holds something back.
func waitHold(t *testing.T, r *testReplica) *snapshot.Hold {
	t.Helper()
	deadline := time.After(patience)
	for {
		v := r.log.View()
		if h := v.Hold(); h != nil {
			return h
		}
		select {
		case <-v.Advanced():
		case <-deadline:
			t.Fatal("nothing is held back")
		}
	}
}

func TestWhatRemovesTooMuchWaitsForAnOperatorOnAllReplicas(t *testing.T) {
	client := etcdtest.Start(t)
	a, b := startReplica(t, client, "a"), startReplica(t, client, "b")
	waitPeers(t, a, 1)
	v := a.many(1500, dest(1))
	near, far := newNode(t, "near", "eu").connect(a).until(v), newNode(t, "far", "us").connect(b).until(v)
	v = a.many(600, "")
	hold := waitHold(t, a)
	waitHold(t, b)
	got := <-waitFor(t, a, patience, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 2})
	if status.Code(got.err) != codes.FailedPrecondition || !strings.Contains(got.err.Error(), "held back") {
		t.Fatalf("waiting for it ended with %v", got.err)
	}
	list, err := a.fleetClient().ListNodes(t.Context(), &adminv1.ListNodesRequest{})
	if err != nil || len(list.GetAlarms()) != 1 || !strings.Contains(list.GetAlarms()[0], "affctl fleet release") {
		t.Errorf("the list of nodes has alarms %q, %v", list.GetAlarms(), err)
	}
	st, err := a.fleetClient().GetStatus(t.Context(), &adminv1.GetStatusRequest{})
	if err != nil || len(st.GetReplicas()) != 2 || len(st.GetAlarms()) != 1 {
		t.Fatalf("the status is %v, %v", st, err)
	}
	for _, r := range st.GetReplicas() {
		held := r.GetHeldBack()
		if held.GetVersion().GetRevision() != hold.Revision || held.GetLinksBefore() < 1200 || held.GetLinksAfter() != 900 || r.GetNodes() != 1 || !r.GetFollowing() {
			t.Errorf("replica %s says %v", r.GetReplica(), r)
		}
	}
	for revision, want := range map[int64]codes.Code{0: codes.InvalidArgument, hold.Revision - 1: codes.FailedPrecondition, v.GetRevision() + 1000: codes.OutOfRange} {
		_, err := a.fleetClient().Release(t.Context(), &adminv1.ReleaseRequest{Version: &linkv1.Version{Revision: revision}})
		if status.Code(err) != want {
			t.Errorf("release of %d: %v", revision, err)
		}
	}
	done, err := a.fleetClient().Release(t.Context(), &adminv1.ReleaseRequest{Version: v})
	if err != nil || !done.GetHeldBack() {
		t.Fatalf("released: %v, %v", done, err)
	}
	waits := []<-chan waited{
		waitFor(t, a, patience, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 2}),
		waitFor(t, b, patience, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 2}),
	}
	near.until(v)
	far.until(v)
	for i, wait := range waits {
		if got := <-wait; got.err != nil {
			t.Errorf("waiting for it behind the release, at replica %d, ended with %v", i, got.err)
		}
	}
	if len(near.entries) != 900 || near.hash() != far.hash() {
		t.Fatalf("the nodes hold %d and %d links", len(near.entries), len(far.entries))
	}
}

func TestReplicaThatStartsDoesNotServeWhatIsHeldBack(t *testing.T) {
	client := etcdtest.Start(t)
	a := startReplica(t, client, "a")
	a.many(1500, dest(1))
	v := a.many(1500, "")
	hold := waitHold(t, a)
	for deadline := time.Now().Add(patience); ; {
		if held, err := a.store.Held(t.Context(), v.GetEpoch()); err != nil || held == hold.Revision {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("what is held back is not noted")
		}
	}
	a.stop()
	b := startReplica(t, client, "b")
	n := newNode(t, "n1", "eu").connect(b)
	n.take()
	if h := waitHold(t, b); h.Revision != hold.Revision || len(n.entries) < 1200 {
		t.Fatalf("it holds back %+v, the node has %d links", h, len(n.entries))
	}
	if _, err := b.fleetClient().Release(t.Context(), &adminv1.ReleaseRequest{Version: v}); err != nil {
		t.Fatal(err)
	}
	if n.until(v); len(n.entries) != 0 {
		t.Fatalf("the node has %d links", len(n.entries))
	}
}

func TestNodeThatGuardsItselfIsTriedAgainWhenAnOperatorReleases(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	n := newNode(t, "n1", "eu").connect(r).until(r.write(map[string]string{"/one": dest(1)}))
	held := map[string]string{}
	for k, v := range n.entries {
		held[k] = v
	}
	r.write(map[string]string{"/two": dest(2)})
	_, v, _ := n.frame()
	n.reject(v, feedv1.RejectCode_REJECT_CODE_GUARDED)
	n.entries = held
	for range 3 { // heartbeats only: a snapshot would be rejected as well
		if m, err := n.stream.Recv(); err != nil || m.GetHeartbeat() == nil {
			t.Fatalf("a node that guards itself was sent %v, %v", m, err)
		}
	}
	alarms := func() []string {
		st, err := r.fleetClient().GetStatus(t.Context(), &adminv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return st.GetAlarms()
	}
	if got := alarms(); len(got) != 1 || !strings.Contains(got[0], "n1: revision") {
		t.Errorf("the alarms are %q", got)
	}
	if _, err := r.fleetClient().Release(t.Context(), &adminv1.ReleaseRequest{Version: v}); err != nil {
		t.Fatal(err)
	}
	for {
		m, err := n.stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if d := m.GetDelta(); d != nil {
			if !d.GetReleased() || d.GetTo().GetRevision() != v.GetRevision() {
				t.Fatalf("it was sent %v", d)
			}
			break
		}
	}
	n.entries["links/go.test/two"] = dest(2)
	n.acknowledge(v)
	if got := <-waitFor(t, r, patience, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 1}); got.err != nil {
		t.Fatal(got.err)
	}
	if got := alarms(); len(got) != 0 {
		t.Errorf("the alarms are %q", got)
	}
}

func TestTakeDownOvertakesAFrameThatIsUnderWay(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	v := r.write(map[string]string{"/bad": dest(1), "/fine": dest(1)})
	n := newNode(t, "n1", "eu").connect(r).until(v)
	idle := newNode(t, "n2", "eu").connect(r).until(v)
	v = r.write(map[string]string{"/fine": dest(2)})
	_, flight, _ := n.frame() // and not acknowledged
	idle.take()
	if got := <-waitFor(t, r, patience, &adminv1.WaitForVersionRequest{Version: v, Percent: 50, MinNodes: 2}); got.err != nil {
		t.Fatal(got.err) // the replica has to know that it is idle
	}
	v = r.write(map[string]string{"/bad": ""})
	if names := n.down(); !slices.Equal(names, []string{"links/go.test/bad"}) || n.downs[0].GetVersion().GetRevision() != v.GetRevision() {
		t.Fatalf("taken down are %v", n.downs)
	}
	// Who asked for it to be gone is told so now, not when the frame is done.
	if got := <-waitFor(t, r, patience, &adminv1.WaitForVersionRequest{Version: v, Percent: 50, MinNodes: 2}); got.err != nil {
		t.Fatal(got.err)
	}
	n.acknowledge(flight)
	n.until(v)
	if idle.until(v); len(idle.downs) != 0 {
		t.Errorf("a node that was sent the version at once was sent a take-down too: %v", idle.downs)
	}
	if len(n.entries) != 1 || len(n.downs) != 1 {
		t.Errorf("the node holds %v after %v", n.entries, n.downs)
	}
}

func TestTakeDownReachesNodesWhileVersionsAreHeldBack(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	r.write(map[string]string{"/bad": dest(1)})
	v := r.many(1500, dest(1))
	n := newNode(t, "n1", "eu").connect(r).until(v)
	r.many(1400, "")
	waitHold(t, r)
	for n.hello.GetVersion().GetRevision() < r.log.Head().Revision {
		n.take()
	}
	v = r.write(map[string]string{"/bad": ""})
	if names := n.down(); !slices.Equal(names, []string{"links/go.test/bad"}) {
		t.Fatalf("taken down is %v", names)
	}
	got := <-waitFor(t, r, patience, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 1})
	if got.err != nil {
		t.Fatalf("waiting for the take-down: %v", got.err)
	}
	list, err := r.fleetClient().ListNodes(t.Context(), &adminv1.ListNodesRequest{})
	if err != nil || list.GetNodes()[0].GetTakenDownRevision() != v.GetRevision() {
		t.Errorf("the node is listed as %v, %v", list, err)
	}
	late := newNode(t, "n2", "eu").connect(r)
	if late.take(); len(late.downs) == 0 { // it may come before the end of the snapshot
		late.down()
	}
	if d := late.downs[len(late.downs)-1]; d.GetEntries()[0].GetKey() != "links/go.test/bad" {
		t.Fatalf("a node that connects later is told of %v", late.downs)
	}
}

func TestWriteThatAllowsItselfToShrinkIsServed(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	v := r.many(1500, dest(1))
	n := newNode(t, "n1", "eu").connect(r).until(v)
	for from := 0; from < 1500; from += 100 {
		var writes []store.Write
		for i := from; i < from+100; i++ {
			writes = append(writes, store.Write{Verb: store.Delete, Name: fmt.Sprintf("links/go.test/many/%d", i)})
		}
		_, revision, err := r.store.WriteWith(t.Context(), "test", writes, store.WriteOptions{AllowShrink: v.GetEpoch()})
		if err != nil {
			t.Fatal(err)
		}
		v.Revision = revision
	}
	if n.until(v); len(n.entries) != 0 {
		t.Fatalf("the node has %d links", len(n.entries))
	}
}

func TestRestoredEtcdIsRefusedUntilAnOperatorBeginsANewEpoch(t *testing.T) {
	server := etcdtest.New(t)
	client := server.Client()
	r := startReplica(t, client, "a")
	v := r.write(map[string]string{"/kept": dest(1)})
	restore := server.Backup()
	var n *testNode
	for i := range 20 {
		v = r.write(map[string]string{"/lost": dest(i)})
	}
	n = newNode(t, "n1", "eu").connect(r).until(v)
	restore()
	g := &gate{log: r.log}
	var err error
	for deadline := time.Now().Add(patience); ; {
		began, passErr := g.pass(true)
		if err = passErr; err != nil {
			break
		}
		if _, revision, writeErr := r.store.Write(t.Context(), "test", []store.Write{{Verb: store.Put, Resource: &linkv1.Resource{Kind: &linkv1.Resource_Link{
			Link: &linkv1.Link{Domain: "go.test", Path: "/new", Destination: dest(2)},
		}}}}, false); writeErr == nil {
			if err = g.wrote(revision, began); err == nil {
				t.Fatalf("a write at revision %d, below %d, is taken for one", revision, v.GetRevision())
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("etcd does not come back")
		}
	}
	if !strings.Contains(err.Error(), "restored from a backup") {
		t.Errorf("the write was refused with %v", err)
	}
	if _, err := g.pass(false); err == nil {
		t.Error("the next write is not refused")
	}
	if alarms := r.log.Alarms(); len(alarms) != 1 || !strings.Contains(alarms[0], "affctl fleet new-epoch") {
		t.Errorf("the alarms are %q", alarms)
	}
	_, err = r.fleetClient().NewEpoch(t.Context(), &adminv1.NewEpochRequest{Current: v.GetEpoch() + 1})
	if status.Code(err) != codes.Aborted {
		t.Errorf("a new epoch after another than the current one: %v", err)
	}
	begun, err := r.fleetClient().NewEpoch(t.Context(), &adminv1.NewEpochRequest{Current: v.GetEpoch()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.fleetClient().WaitForVersion(t.Context(), &adminv1.WaitForVersionRequest{Version: begun.GetVersion(), Region: "nowhere"}); err != nil {
		t.Errorf("who has begun an epoch waits for it: %v", err)
	}
	n.hello.Version.Revision = 0 // the next one may be lower
	kind, got := n.take()
	if seen := r.log.View().Seen(); got.GetRevision() > seen {
		t.Errorf("the node got revision %d, etcd is at %d", got.GetRevision(), seen)
	}
	if kind != "snapshot" || got.GetEpoch() != begun.GetVersion().GetEpoch() {
		t.Fatalf("the node got a %s to %v, the epoch is %v", kind, got, begun)
	}
	if _, lost := n.entries["links/go.test/lost"]; lost || n.entries["links/go.test/kept"] == "" {
		t.Fatalf("the node holds %v", n.entries)
	}
	if alarms := r.log.Alarms(); len(alarms) != 0 {
		t.Errorf("the alarms are %q", alarms)
	}
	n.until(r.write(map[string]string{"/after": dest(3)}))
}

func TestReplicaThatStartsBehindARestoreRefusesWritesAndNodesOfTheOtherHistory(t *testing.T) {
	server := etcdtest.New(t)
	client := server.Client()
	a := startReplica(t, client, "a")
	a.write(map[string]string{"/kept": dest(1)})
	restore := server.Backup()
	var v *linkv1.Version
	for i := range 20 {
		v = a.write(map[string]string{"/lost": dest(i)})
	}
	n := newNode(t, "n1", "eu").connect(a).until(v)
	a.stop()
	restore()

	b := startReplica(t, client, "b")
	if _, err := (&gate{log: b.log}).pass(true); err != nil {
		t.Fatalf("nobody knows of a restore yet: %v", err)
	}
	if kind, _ := n.connect(b).take(); kind != "behind" {
		t.Fatalf("the node got a %s", kind)
	}
	wait := func(r *testReplica) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			_, err := (&gate{log: r.log}).pass(true)
			if err != nil && strings.Contains(err.Error(), "restored from a backup") {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("replica %s takes writes: %v", r.id, err)
			}
		}
	}
	wait(b)
	if alarms := b.log.Alarms(); len(alarms) != 1 || !strings.Contains(alarms[0], "affctl fleet new-epoch") {
		t.Errorf("the alarms are %q", alarms)
	}
	var passed *linkv1.Version
	for passed.GetRevision() <= v.GetRevision() { // leases end, caps are counted: no gate is asked
		passed = b.write(map[string]string{"/other": dest(int(passed.GetRevision()))})
	}
	waitHead(t, b, passed)
	c := startReplica(t, client, "c")
	for _, r := range []*testReplica{b, c} {
		wait(r)
		if kind, _ := n.connect(r).take(); kind != "behind" {
			t.Fatalf("etcd has passed the node's revision, and the node got a %s from %s", kind, r.id)
		}
	}
	newNode(t, "n2", "eu").connect(c).until(passed) // who has nothing gets what there is

	begun, err := c.fleetClient().NewEpoch(t.Context(), &adminv1.NewEpochRequest{Current: v.GetEpoch()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.fleetClient().WaitForVersion(t.Context(), &adminv1.WaitForVersionRequest{Version: begun.GetVersion(), Region: "nowhere"}); err != nil {
		t.Fatal(err)
	}
	n.hello.Version.Revision = 0 // the next one may be lower
	if kind, _ := n.connect(b).take(); kind != "snapshot" || n.entries["links/go.test/other"] == "" {
		t.Fatalf("in the new epoch the node got a %s", kind)
	}
	if _, err := (&gate{log: b.log}).pass(true); err != nil || len(b.log.Alarms()) != 0 {
		t.Errorf("in the new epoch a write is refused: %v, alarms are %q", err, b.log.Alarms())
	}
}
