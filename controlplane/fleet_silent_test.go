package controlplane

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// door is a listener behind which nothing is read while it hangs: as of a process
// that is stopped, whose kernel goes on to answer.
type door struct {
	net.Listener
	mu    sync.Mutex
	hangs chan struct{} // closed when it is woken; nil: it does not hang
}

func (d *door) Accept() (net.Conn, error) {
	conn, err := d.Listener.Accept()
	return hanging{conn, d}, err
}

func (d *door) hang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hangs = make(chan struct{})
}

func (d *door) wake() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hangs != nil {
		close(d.hangs)
		d.hangs = nil
	}
}

func (d *door) wait() {
	d.mu.Lock()
	hangs := d.hangs
	d.mu.Unlock()
	if hangs != nil {
		<-hangs
	}
}

type hanging struct {
	net.Conn
	door *door
}

func (h hanging) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	h.door.wait()
	return n, err
}

// list puts a replica into the list that has no lease, and gives how to take it
// off.
func list(t *testing.T, client *clientv3.Client, id, address string) (off func()) {
	t.Helper()
	const replicas = "/aff/v1/replicas/"
	if _, err := client.Put(t.Context(), replicas+id, address); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if _, err := client.Delete(t.Context(), replicas+id); err != nil {
			t.Fatal(err)
		}
	}
}

// twoReplicas are two replicas with a node each, "near" in eu and "far" in us, of
// which only the first serves the version.
func twoReplicas(t *testing.T, client *clientv3.Client) (a, b *testReplica, far *testNode, v *linkv1.Version) {
	t.Helper()
	a, b = startReplica(t, client, "a"), startReplica(t, client, "b")
	waitPeers(t, a, 1)
	v = a.write(map[string]string{"/one": dest(1)})
	near := newNode(t, "near", "eu").connect(a).until(v)
	far = newNode(t, "far", "us").connect(b).until(v)
	v = a.write(map[string]string{"/one": dest(2)})
	near.until(v)
	return a, b, far, v
}

// names wants a wait to have ended without the nodes of a replica, and to say so.
func (w waited) names(t *testing.T, id, address string) {
	t.Helper()
	st := status.Convert(w.err)
	if st.Code() != codes.DeadlineExceeded || !strings.Contains(st.Message(), "replica "+id+" at "+address+" does not answer: its nodes are not counted") {
		t.Fatalf("it ended with %v, %v", w.WaitForVersionResponse, w.err)
	}
	if len(st.Details()) != 1 {
		t.Fatalf("details: %v", st.Details())
	}
	if detail, ok := st.Details()[0].(*adminv1.WaitForVersionResponse); !ok || !slices.Equal(detail.GetSilentReplicas(), []string{id + " at " + address}) {
		t.Fatalf("details: %v", st.Details())
	}
}

func TestWaitIsNotFulfilledWithoutTheNodesOfAReplicaThatDoesNotAnswer(t *testing.T) {
	a, b, far, v := twoReplicas(t, etcdtest.Start(t))
	b.door.hang()
	const timeout = 2500 * time.Millisecond // more than two questions
	all := waitFor(t, a, timeout, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 1})
	half := waitFor(t, a, timeout, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 1, Percent: 50})
	eu := waitFor(t, a, timeout, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 1, Region: "eu"})
	later := waitFor(t, a, patience, &adminv1.WaitForVersionRequest{Version: v})
	for _, done := range []<-chan waited{all, half, eu} {
		got := <-done
		got.names(t, "b", b.door.Addr().String())
	}
	b.door.wake()
	far.until(v)
	if got := <-later; got.err != nil || got.GetNodes() != 2 {
		t.Fatalf("once it answers: %v, %v", got.WaitForVersionResponse, got.err)
	}
}

func TestWaitIsNotFulfilledByWhatAReplicaHasSaidThatDoesNotAnswerAnyMore(t *testing.T) {
	a, b, _, v := twoReplicas(t, etcdtest.Start(t))
	done := waitFor(t, a, 8*time.Second, &adminv1.WaitForVersionRequest{Version: v})
	deadline := time.After(patience)
	for !a.fleet.conns.hasAnswered(b.door.Addr().String()) {
		select {
		case got := <-done:
			t.Fatalf("it ended with %v, %v", got.WaitForVersionResponse, got.err)
		case <-deadline:
			t.Fatal("the other replica was not asked")
		case <-time.After(time.Millisecond):
		}
	}
	b.door.hang()
	got := <-done
	got.names(t, "b", b.door.Addr().String())
	if strings.Contains(got.err.Error(), "far") {
		t.Errorf("it names a node by what is not true any more: %v", got.err)
	}
}

func TestWaitGoesOnUntilASilentReplicaIsNotListedAnyMore(t *testing.T) {
	client := etcdtest.Start(t)
	a := startReplica(t, client, "a")
	v := a.write(map[string]string{"/one": dest(1)})
	near := newNode(t, "near", "eu").connect(a).until(v)
	ln, err := net.Listen("tcp", "127.0.0.1:0") // it accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	off := list(t, client, "b", ln.Addr().String())
	waitPeers(t, a, 1)
	v = a.write(map[string]string{"/one": dest(2)})
	done := waitFor(t, a, patience, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 1})
	near.until(v)
	select {
	case got := <-done:
		t.Fatalf("it ended with %v, %v", got.WaitForVersionResponse, got.err)
	case <-time.After(1500 * time.Millisecond):
	}
	off()
	if got := <-done; got.err != nil || got.GetNodes() != 1 {
		t.Fatalf("%v, %v", got.WaitForVersionResponse, got.err)
	}
}

func TestReplicaThatRefusesConnectionsCountsAsGoneOnlyWhereItHasAnswered(t *testing.T) {
	client := etcdtest.Start(t)
	a, b, far, v := twoReplicas(t, client)
	address := b.door.Addr().String()
	if list, err := a.fleetClient().ListNodes(t.Context(), &adminv1.ListNodesRequest{}); err != nil || len(list.GetNodes()) != 2 {
		t.Fatalf("listed are %v, %v", list.GetNodes(), err)
	}
	off := list(t, client, "b", address) // as long as a lease that does not end
	b.stop()
	far.cancel()
	got := <-waitFor(t, a, patience, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 1})
	if got.err != nil || got.GetNodes() != 1 {
		t.Fatalf("where it has answered: %v, %v", got.WaitForVersionResponse, got.err)
	}
	if waited := got.GetWaited().AsDuration(); waited < time.Second {
		t.Errorf("its nodes had %v to find another replica", waited)
	}
	off()
	waitPeers(t, a, 0)
	list(t, client, "c", address) // perhaps alive, behind a wall
	waitPeers(t, a, 1)
	got = <-waitFor(t, a, 4*time.Second, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 1})
	got.names(t, "c", address)
}

func TestListsOfNodesNameAReplicaThatDoesNotAnswer(t *testing.T) {
	a, b, _, _ := twoReplicas(t, etcdtest.Start(t))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	alarm := "replica b at " + b.door.Addr().String() + " does not answer: its nodes are not listed"
	b.door.hang()
	list, err := a.fleetClient().ListNodes(ctx, &adminv1.ListNodesRequest{})
	if err != nil || len(list.GetNodes()) != 1 || !slices.Contains(list.GetAlarms(), alarm) {
		t.Errorf("listed are %v, %v", list, err)
	}
	watch, err := a.fleetClient().WatchNodes(ctx, &adminv1.WatchNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	until := func(what string, ok func(*adminv1.WatchNodesResponse) bool) {
		t.Helper()
		for {
			got, err := watch.Recv()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if ok(got) {
				return
			}
		}
	}
	until("silent", func(got *adminv1.WatchNodesResponse) bool { return slices.Contains(got.GetAlarms(), alarm) })
	b.door.wake()
	until("heard", func(got *adminv1.WatchNodesResponse) bool {
		return len(got.GetAlarms()) == 0 && len(got.GetNodes()) == 2
	})
	b.stop()
	until("off the list", func(got *adminv1.WatchNodesResponse) bool {
		return len(got.GetAlarms()) == 0 && len(got.GetNodes()) == 1
	})
}

// TestAReplicaThatIsCutOffFromEtcdIsNamedByTheOthers: also when its lease has ended,
// with nodes that nobody else would know of. One that has stopped is not missed.
func TestAReplicaThatIsCutOffFromEtcdIsNamedByTheOthers(t *testing.T) {
	etcd := etcdtest.New(t)
	a := startReplica(t, etcd.Client(), "a")
	stopped := startReplica(t, etcd.Client(), "c")
	between := startNetwork(t, etcd.Endpoint())
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + between.ln.Addr().String()}, DialKeepAliveTime: time.Second, DialKeepAliveTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	b := startReplica(t, client, "b")
	b.fleet.join(&feedv1.Hello{Node: "edge-1"})
	a.fleet.cfg.PeerTimeout = patience // however busy the machine is
	stopped.stop()
	between.drops.Store(true)
	const alarm = "replica b does not reach etcd: it takes no writes, and its nodes get none, however little they seem to lag; is etcd running?"
	for deadline := time.Now().Add(patience); b.log.Following() || len(a.fleet.listed()) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("b follows: %v, and listed are %v", b.log.Following(), a.fleet.listed())
		}
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	for range 2 { // whoever has been asked once is asked again, and by whom does not matter
		_, _ = a.fleet.GetStatus(left, &adminv1.GetStatusRequest{}) // of who does not wait for the answer
		_, _ = a.fleet.ListNodes(left, &adminv1.ListNodesRequest{})
		st, err := a.fleetClient().GetStatus(t.Context(), &adminv1.GetStatusRequest{})
		if err != nil || !slices.Equal(st.GetAlarms(), []string{alarm}) || len(st.GetReplicas()) != 2 || st.GetReplicas()[1].GetReplica() != "b" || st.GetReplicas()[1].GetFollowing() {
			t.Errorf("the status is %v, %v", st, err)
		}
		nodes, err := a.fleetClient().ListNodes(t.Context(), &adminv1.ListNodesRequest{})
		if err != nil || !slices.Equal(nodes.GetAlarms(), []string{alarm}) || len(nodes.GetNodes()) != 1 {
			t.Errorf("the list of nodes is %v, %v", nodes, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	watch, err := a.fleetClient().WatchNodes(ctx, &adminv1.WatchNodesRequest{Interval: durationpb.New(100 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	watched := func(nodes int, alarms ...string) {
		t.Helper()
		for {
			got, err := watch.Recv()
			if err != nil {
				t.Fatalf("whoever watches is not told of %d nodes and %q: %v", nodes, alarms, err)
			}
			if slices.Equal(got.GetAlarms(), alarms) && len(got.GetNodes()) == nodes {
				return
			}
		}
	}
	watched(1, alarm)
	b.stop()
	watched(0)
	st, err := a.fleetClient().GetStatus(t.Context(), &adminv1.GetStatusRequest{})
	if err != nil || len(st.GetAlarms()) != 0 || len(st.GetReplicas()) != 1 {
		t.Errorf("when it is gone, the status is %v, %v", st, err)
	}
}
