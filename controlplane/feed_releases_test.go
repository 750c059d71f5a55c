package controlplane

import (
	"fmt"
	"slices"
	"testing"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	"github.com/affleet/affleet/proto/aff/afftest"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// releases are nodes of other releases than this one.
var releases = map[string]func(*testNode){
	// It says more in each message, and says something else before each.
	"a later one": func(n *testNode) {
		n.says = func(m *feedv1.SubscribeRequest) []*feedv1.SubscribeRequest {
			afftest.Grow(m.ProtoReflect())
			if m.GetHello() != nil {
				return []*feedv1.SubscribeRequest{m}
			}
			more := &feedv1.SubscribeRequest{}
			afftest.Grow(more.ProtoReflect())
			return []*feedv1.SubscribeRequest{more, m}
		}
	},
	// From before take-downs, to which it says nothing, and before all fields that came since.
	"an earlier one": func(n *testNode) {
		n.silent = true
		n.says = func(m *feedv1.SubscribeRequest) []*feedv1.SubscribeRequest {
			if a := m.GetApplied(); a != nil {
				a.Links = 0
			}
			if s := m.GetStatus(); s != nil {
				s.UnservedEntries = 0
			}
			return []*feedv1.SubscribeRequest{m}
		}
	},
}

func TestNodeOfAnotherReleaseIsServed(t *testing.T) {
	for name, of := range releases {
		t.Run(name, func(t *testing.T) {
			r := startReplicaWith(t, etcdtest.Start(t), "a", feedConfig{MaxUnread: 200}) // some take-downs that nobody answers
			v := r.write(map[string]string{"/bad": dest(1), "/one": dest(1)})
			n := newNode(t, "n1", "eu")
			of(n)
			if kind, _ := n.connect(r).take(); kind != "snapshot" {
				t.Fatalf("a new node got a %s", kind)
			}
			n.until(v)
			held := len(n.entries)

			// A delta, and take-downs ahead of more.
			for i := range 20 {
				path := fmt.Sprintf("/%d", i)
				n.until(r.write(map[string]string{path: dest(1)}))
				v = r.write(map[string]string{path: ""})
			}
			n.until(v)
			if len(n.entries) != held {
				t.Fatalf("the node holds %d entries, not %d", len(n.entries), held)
			}
			if got := <-waitFor(t, r, patience, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 1}); got.err != nil {
				t.Fatal(got.err)
			}

			// A delta that it rejects, without a word why.
			v = r.write(map[string]string{"/two": dest(2)})
			_, flight, _ := n.frame()
			n.reject(flight, feedv1.RejectCode_REJECT_CODE_UNSPECIFIED)
			if kind, _ := n.take(); kind != "snapshot" {
				t.Fatalf("a rejected delta was answered with a %s", kind)
			}
			n.until(v)

			// What it holds is compared with what it should.
			status := &feedv1.Status{Version: n.hello.GetVersion(), SetHash: n.hello.GetSetHash(), Links: 3, UnservedEntries: 2}
			n.say(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Status{Status: status}})
			n.until(r.write(map[string]string{"/two": dest(3)})) // the status was read before its answer
			if n := r.feed.metrics.mismatches.Load(); n != 0 {
				t.Errorf("%d times the node is said to hold something else", n)
			}

			// It comes again, with what it holds.
			n.cancel()
			v = r.write(map[string]string{"/two": dest(4)})
			waitHead(t, r, v)
			if kind, got := n.connect(r).take(); kind != "delta" || got.GetRevision() != v.GetRevision() {
				t.Fatalf("the node that comes again got a %s to %v", kind, got)
			}
			if got := <-waitFor(t, r, patience, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 1}); got.err != nil {
				t.Fatal(got.err)
			}
			list, err := r.fleet.ListNodes(t.Context(), &adminv1.ListNodesRequest{})
			if err != nil || len(list.GetNodes()) != 1 || !list.GetNodes()[0].GetSetHashMatch() {
				t.Errorf("the node is listed as %v, %v", list, err)
			}
		})
	}
}

// A take-down that a node of an earlier release passes over is refused by it once it
// serves the version, and not before; one of a later release acknowledges it.
func TestTakeDownCountsForANodeOfAnotherReleaseOnceItRefusesIt(t *testing.T) {
	for name, of := range releases {
		t.Run(name, func(t *testing.T) {
			r := startReplica(t, etcdtest.Start(t), "a")
			n := newNode(t, "n1", "eu")
			of(n)
			n.connect(r).until(r.write(map[string]string{"/bad": dest(1), "/one": dest(1)}))
			first := r.write(map[string]string{"/one": dest(2)})
			_, flight, _ := n.frame() // under way, so that the take-down comes ahead of its version
			if flight.GetRevision() != first.GetRevision() {
				t.Fatalf("under way is %v", flight)
			}
			v := r.write(map[string]string{"/bad": ""})
			if names := n.down(); !slices.Equal(names, []string{"links/go.test/bad"}) {
				t.Fatalf("taken down is %v", names)
			}
			wait := waitFor(t, r, patience, &adminv1.WaitForVersionRequest{Version: v, MinNodes: 1})
			if n.silent {
				if serves := lagging(r, v.GetRevision()); len(serves) != 1 {
					t.Errorf("a node that has not answered does not lag: %v", serves)
				}
				n.acknowledge(flight)
				n.until(v)
			}
			if got := <-wait; got.err != nil {
				t.Fatal(got.err)
			}
		})
	}
}

// lagging are the nodes of a replica that do not serve a revision, and have not taken
// it down.
func lagging(r *testReplica, revision int64) []string {
	w, stop := r.fleet.watch()
	defer stop()
	var t tally
	v := versionProto(r.log.Head())
	v.Revision = revision
	r.fleet.count(&adminv1.WaitForVersionRequest{Version: v}, w, &t)
	return t.lagging
}
