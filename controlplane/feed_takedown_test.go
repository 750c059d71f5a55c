package controlplane

import (
	"maps"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/controlplane/internal/snapshot"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// TestRejectedDeltaLeavesNoTakeDownUntold sends a node a delta that takes a link down,
// and another take-down ahead of its answer: the delta is rejected.
func TestRejectedDeltaLeavesNoTakeDownUntold(t *testing.T) {
	r := startReplica(t, etcdtest.Start(t), "a")
	v := r.write(map[string]string{"/bad": dest(1), "/worse": dest(1), "/fine": dest(1)})
	n := newNode(t, "n1", "eu").connect(r).until(v)
	first := r.write(map[string]string{"/bad": ""})
	held := maps.Clone(n.entries)
	_, flight, _ := n.frame()
	n.entries = held
	second := r.write(map[string]string{"/worse": ""})
	if names := n.down(); !slices.Equal(names, []string{"links/go.test/worse"}) {
		t.Fatalf("taken down is %v", names)
	}
	if got := <-waitFor(t, r, patience, &adminv1.WaitForVersionRequest{Version: second, MinNodes: 1}); got.err != nil {
		t.Fatal(got.err)
	}
	early := waitFor(t, r, 300*time.Millisecond, &adminv1.WaitForVersionRequest{Version: first, MinNodes: 1})
	if got := <-early; status.Code(got.err) != codes.DeadlineExceeded {
		t.Fatalf("the first is said to be refused, before the node has answered: %v, %v", got.WaitForVersionResponse, got.err)
	}
	n.silent = true // its answers are below
	n.reject(flight, feedv1.RejectCode_REJECT_CODE_GUARDED)
	again := append(n.down(), n.down()...)
	if !slices.Equal(again, []string{"links/go.test/bad", "links/go.test/worse"}) {
		t.Fatalf("told again is %v", again)
	}
	early = waitFor(t, r, 300*time.Millisecond, &adminv1.WaitForVersionRequest{Version: first, MinNodes: 1})
	if got := <-early; status.Code(got.err) != codes.DeadlineExceeded {
		t.Fatalf("the first is said to be refused, before the node has said so: %v, %v", got.WaitForVersionResponse, got.err)
	}
	n.silent = false
	n.takenDown(n.downs[len(n.downs)-2])
	n.takenDown(n.downs[len(n.downs)-1])
	if got := <-waitFor(t, r, patience, &adminv1.WaitForVersionRequest{Version: first, MinNodes: 1}); got.err != nil {
		t.Fatal(got.err)
	}
}

// A node that leaves a part of one to its version, and serves the epoch before, answers
// with what it serves.
func TestAnswerOfAnotherEpochAcknowledgesNoTakeDown(t *testing.T) {
	var d downs
	d.begin(8, 3)
	d.sent(&snapshot.TakeDown{Revision: 5})
	d.sent(&snapshot.TakeDown{Revision: 6})
	if refused, ok := d.answered(snapshot.Version{Epoch: 7, Revision: 10}); ok {
		t.Errorf("it is said to refuse %v", refused)
	}
	refused, ok := d.answered(snapshot.Version{Epoch: 8, Revision: 6})
	if want := (span{8, 3, 6}); !ok || refused != want {
		t.Errorf("behind it, a node is said to refuse %v, %v; want %v", refused, ok, want)
	}
}
