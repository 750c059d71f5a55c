package controlplane

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

func (r *testReplica) fleetClient() adminv1.FleetServiceClient {
	return adminv1.NewFleetServiceClient(r.conn)
}

// waitPeers waits until a replica knows so many others.
func waitPeers(t *testing.T, r *testReplica, n int) {
	t.Helper()
	deadline := time.After(patience)
	for {
		peers, changed := r.fleet.peers()
		if len(peers) == n {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("replica %s knows %v", r.id, peers)
		}
	}
}

type waited struct {
	*adminv1.WaitForVersionResponse
	err error
}

// waitFor asks in the background.
func waitFor(t *testing.T, r *testReplica, timeout time.Duration, req *adminv1.WaitForVersionRequest) <-chan waited {
	done := make(chan waited, 1)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	go func() {
		got, err := r.fleetClient().WaitForVersion(ctx, req)
		done <- waited{got, err}
	}()
	return done
}

func TestNodesOfAllReplicasAreListed(t *testing.T) {
	client := etcdtest.Start(t)
	a, b := startReplica(t, client, "a"), startReplica(t, client, "b")
	waitPeers(t, a, 1)
	v := a.write(map[string]string{"/one": dest(1)})
	newNode(t, "n2", "us").connect(a).until(v)
	n1 := newNode(t, "n1", "eu")
	n1.hello.Build, n1.hello.ListenAddress = "v1", "127.0.0.1:8080"
	n1.connect(b).until(v)
	n1.say(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Status{Status: &feedv1.Status{
		Version: v, SetHash: n1.hello.SetHash, Links: 1, RequestsPerSecond: 5, SpoolClicks: 3,
	}}})
	if got := <-waitFor(t, a, patience, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 2}); got.err != nil {
		t.Fatal(got.err)
	}
	var nodes []*adminv1.Node
	for range 1000 { // the status has no answer to wait for
		list, err := a.fleetClient().ListNodes(t.Context(), &adminv1.ListNodesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if nodes = list.GetNodes(); len(nodes) == 2 && nodes[0].GetLinks() == 1 {
			break
		}
	}
	if len(nodes) != 2 || nodes[0].GetName() != "n1" || nodes[1].GetName() != "n2" {
		t.Fatalf("listed are %v", nodes)
	}
	n := nodes[0]
	if n.GetRegion() != "eu" || n.GetReplica() != "b" || n.GetBuild() != "v1" || n.GetListenAddress() != "127.0.0.1:8080" ||
		!n.GetSetHashMatch() || n.GetLagRevisions() != 0 || n.GetLag().AsDuration() != 0 || n.GetLinks() != 1 ||
		n.GetRequestsPerSecond() != 5 || n.GetSpoolClicks() != 3 || n.GetVersion().GetRevision() != v.GetRevision() || n.GetConnectTime() == nil {
		t.Errorf("n1 is listed as %v", n)
	}
	list, err := b.fleetClient().ListNodes(t.Context(), &adminv1.ListNodesRequest{Region: "us"})
	if err != nil || len(list.GetNodes()) != 1 {
		t.Errorf("in us are %v, %v", list.GetNodes(), err)
	}
}

func TestWaitEndsWithTheLastAcknowledgementOverAllReplicas(t *testing.T) {
	client := etcdtest.Start(t)
	a, b := startReplica(t, client, "a"), startReplica(t, client, "b")
	waitPeers(t, a, 1)
	v := a.write(map[string]string{"/one": dest(1)})
	near := newNode(t, "near", "eu").connect(a).until(v)
	far := newNode(t, "far", "us").connect(b).until(v)
	v = a.write(map[string]string{"/one": dest(2)})
	all := waitFor(t, a, patience, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 2})
	half := waitFor(t, a, patience, &adminv1.WaitForVersionRequest{Version: v, Percent: 50, MinNodes: 2})
	eu := waitFor(t, b, patience, &adminv1.WaitForVersionRequest{Version: &linkv1.Version{Revision: v.GetRevision()}, Region: "eu"})
	if _, v, ok := far.frame(); !ok {
		t.Fatal("the frame does not verify")
	} else {
		near.until(v)
		if got := <-half; got.err != nil || !slices.Equal(got.GetLagging(), []string{"far"}) {
			t.Fatalf("for half of them: %v, %v", got.WaitForVersionResponse, got.err)
		}
		if got := <-eu; got.err != nil || got.GetNodes() != 1 {
			t.Fatalf("for eu: %v, %v", got.WaitForVersionResponse, got.err)
		}
		select {
		case got := <-all:
			t.Fatalf("it did not wait for all: %v, %v", got.WaitForVersionResponse, got.err)
		case <-time.After(50 * time.Millisecond):
		}
		far.acknowledge(v)
	}
	if got := <-all; got.err != nil || got.GetNodes() != 2 || len(got.GetLagging()) != 0 || got.GetWaited().AsDuration() <= 0 {
		t.Fatalf("for all: %v, %v", got.WaitForVersionResponse, got.err)
	}
}

func TestWaitNamesTheNodesThatLagWhenTimeIsUp(t *testing.T) {
	client := etcdtest.Start(t)
	a, b := startReplica(t, client, "a"), startReplica(t, client, "b")
	waitPeers(t, a, 1)
	v := a.write(map[string]string{"/one": dest(1)})
	newNode(t, "near", "eu").connect(a).until(v)
	newNode(t, "far", "us").connect(b).until(v)
	v.Revision += 1000
	got := <-waitFor(t, a, 3*time.Second, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 3})
	st := status.Convert(got.err)
	if st.Code() != codes.DeadlineExceeded || !strings.Contains(st.Message(), "lagging: far, near") || !strings.Contains(st.Message(), "at least 3") {
		t.Fatalf("it ended with %v", got.err)
	}
	if len(st.Details()) != 1 {
		t.Fatalf("details: %v", st.Details())
	}
	if detail, ok := st.Details()[0].(*adminv1.WaitForVersionResponse); !ok || !slices.Equal(detail.GetLagging(), []string{"far", "near"}) || detail.GetNodes() != 2 {
		t.Fatalf("details: %v", st.Details())
	}
}

func TestWaitForARevisionThatChangedNothingEnds(t *testing.T) {
	client := etcdtest.Start(t)
	r := startReplica(t, client, "a")
	v := r.write(map[string]string{"/one": dest(1)})
	newNode(t, "n1", "eu").connect(r).until(v)
	other, err := client.Put(t.Context(), "/elsewhere", "x")
	if err != nil {
		t.Fatal(err)
	}
	v.Revision = other.Header.Revision
	if got := <-waitFor(t, r, patience, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 1}); got.err != nil {
		t.Fatal(got.err)
	}
}

func TestWaitGoesOnWithoutAReplicaThatDied(t *testing.T) {
	client := etcdtest.Start(t)
	a, b := startReplica(t, client, "a"), startReplica(t, client, "b")
	waitPeers(t, a, 1)
	v := a.write(map[string]string{"/one": dest(1)})
	newNode(t, "near", "eu").connect(a).until(v)
	far := newNode(t, "far", "us").connect(b).until(v)
	v = a.write(map[string]string{"/one": dest(2)})
	done := waitFor(t, a, patience, &adminv1.WaitForVersionRequest{Version: v, Region: "us", MinNodes: 1})
	b.stop()
	far.connect(a).until(v)
	if got := <-done; got.err != nil || got.GetNodes() != 1 {
		t.Fatalf("%v, %v", got.WaitForVersionResponse, got.err)
	}
}

func TestWaitRefusesWhatItCannotWaitFor(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	for want, req := range map[codes.Code]*adminv1.WaitForVersionRequest{
		codes.InvalidArgument:    {},
		codes.FailedPrecondition: {Version: &linkv1.Version{Epoch: r.log.Head().Epoch + 1, Revision: 1}},
	} {
		if got := <-waitFor(t, r, patience, req); status.Code(got.err) != want {
			t.Errorf("%v: %v", req, got.err)
		}
	}
}

func TestWatchShowsNodesOfAllReplicasAsTheyChange(t *testing.T) {
	client := etcdtest.Start(t)
	a, b := startReplica(t, client, "a"), startReplica(t, client, "b")
	waitPeers(t, a, 1)
	v := a.write(map[string]string{"/one": dest(1)})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	watch, err := a.fleetClient().WatchNodes(ctx, &adminv1.WatchNodesRequest{Interval: durationpb.New(100 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	until := func(what string, ok func([]*adminv1.Node) bool) {
		t.Helper()
		for {
			got, err := watch.Recv()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if ok(got.GetNodes()) {
				return
			}
		}
	}
	until("none", func(n []*adminv1.Node) bool { return len(n) == 0 })
	newNode(t, "near", "eu").connect(a).until(v)
	far := newNode(t, "far", "us").connect(b).until(v)
	until("both", func(n []*adminv1.Node) bool {
		return len(n) == 2 && n[0].GetVersion().GetRevision() == v.GetRevision() && n[1].GetVersion().GetRevision() == v.GetRevision()
	})
	far.cancel()
	until("one", func(n []*adminv1.Node) bool { return len(n) == 1 })
	bad, err := a.fleetClient().WatchNodes(ctx, &adminv1.WatchNodesRequest{Interval: durationpb.New(time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bad.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an interval of 1 ms: %v", err)
	}
}

func TestListsOfNodesAndTheStatusSayThatEtcdIsNotFollowed(t *testing.T) {
	etcd := etcdtest.New(t)
	r, other := startReplica(t, etcd.Client(), "a"), startReplica(t, etcd.Client(), "b")
	list := func() []string {
		t.Helper()
		got, err := r.fleetClient().ListNodes(t.Context(), &adminv1.ListNodesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetAlarms()
	}
	if got := list(); len(got) != 0 {
		t.Fatalf("while it is followed, the alarms are %q", got)
	}
	for deadline := time.Now().Add(patience); len(r.fleet.listed()) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not find the other one")
		}
	}
	etcd.Stop()
	for deadline := time.Now().Add(patience); r.log.Following() || other.log.Following(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not notice")
		}
	}
	const cutOff = " does not reach etcd: it takes no writes, and its nodes get none, however little they seem to lag; is etcd running?"
	want := []string{"replica a" + cutOff, "replica b" + cutOff}
	if got := list(); !slices.Equal(got, want) {
		t.Errorf("the list of nodes has alarms %q", got)
	}
	if st, err := r.fleetClient().GetStatus(t.Context(), &adminv1.GetStatusRequest{}); err != nil || !slices.Equal(st.GetAlarms(), want) {
		t.Errorf("the status has alarms %q, %v", st.GetAlarms(), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	watch, err := r.fleetClient().WatchNodes(ctx, &adminv1.WatchNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for { // it is told of the others as they answer
		got, err := watch.Recv()
		if err != nil {
			t.Fatalf("whoever watches is not told: %v", err)
		}
		if slices.Equal(got.GetAlarms(), want) {
			break
		}
	}
}
