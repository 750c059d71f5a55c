package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/affleet/affleet/deploy/processes"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// importWithoutEnd imports links until stop is called; rows is how many there are
// so far.
func importWithoutEnd(t *testing.T, r replica) (rows func() int64, stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := r.links.Import(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var done atomic.Int64
	var wait sync.WaitGroup
	wait.Go(func() { // ends with the stream
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			done.Store(m.GetProgress().GetRows())
		}
	})
	wait.Go(func() {
		const most = 1_000_000
		for i := 0; i < most; i += 1000 {
			req := &adminv1.ImportRequest{}
			for j := range 1000 {
				req.Resources = append(req.Resources, linkTo(fmt.Sprintf("/import/%d", i+j), "https://store.com/"))
			}
			if err := stream.Send(req); err != nil {
				if !errors.Is(err, io.EOF) && ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
		}
	})
	if !processes.Eventually(func() bool { return done.Load() > 5000 }) {
		t.Fatal("the import does not come forward")
	}
	return done.Load, func() {
		cancel()
		wait.Wait()
	}
}

// reach is how long a write may take to be served everywhere, from its call on.
const reach = time.Second

// everywhere makes a write, and waits until all nodes answer with a status and
// count as serving it.
func (f *fleet) everywhere(r replica, what string, want int, write func(context.Context) (*linkv1.Version, error)) {
	f.t.Helper()
	start := time.Now()
	version, err := write(soon(f.t))
	f.must(err)
	acknowledged := time.Since(start)
	for i, addr := range f.NodeAddr {
		f.eventually(fmt.Sprintf("%s: node %d answers with %d", what, i+1, want), func() bool { return status(addr, "/a") == want })
	}
	took := time.Since(start)
	f.served(r, version, len(f.NodeAddr))
	f.t.Logf("%s: acknowledged after %v, on all nodes after %v", what, acknowledged.Round(time.Millisecond), took.Round(time.Millisecond))
	if took > reach {
		f.t.Errorf("%s: it took %v until all nodes answer with %d, and %v are allowed", what, took, want, reach)
	}
}

// block, unblock, off and on are made and taken back, each within a second.
func (f *fleet) turnEverything(r replica, when string) {
	f.t.Helper()
	block := func(ctx context.Context) (*linkv1.Version, error) {
		w, err := r.links.Update(ctx, &adminv1.UpdateRequest{AllowMissing: true, Resource: &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{
			Id: "loop", Match: &linkv1.Block_Prefix{Prefix: "127.0.0.0/8"}, Action: linkv1.BlockAction_BLOCK_ACTION_REFUSE, Reason: "a test",
		}}}})
		return w.GetVersion(), err
	}
	turn := func(off bool) func(ctx context.Context) (*linkv1.Version, error) {
		return func(ctx context.Context) (*linkv1.Version, error) {
			w, err := r.links.Update(ctx, &adminv1.UpdateRequest{AllowMissing: true, Resource: &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{Scope: "*", Off: off}}}})
			return w.GetVersion(), err
		}
	}
	f.everywhere(r, when+", block", http.StatusForbidden, block)
	f.everywhere(r, when+", kill switch off", http.StatusFound, turn(true))
	f.everywhere(r, when+", kill switch on", http.StatusForbidden, turn(false))
	f.everywhere(r, when+", unblock", http.StatusFound, func(ctx context.Context) (*linkv1.Version, error) {
		w, err := r.links.Delete(ctx, &adminv1.DeleteRequest{Name: "blocks/loop"})
		return w.GetVersion(), err
	})
}

// TestKillSwitchAndUnblockReachAllNodesWithinASecondWhateverElseWaits turns them
// while an import runs, and while a version is held back.
func TestKillSwitchAndUnblockReachAllNodesWithinASecondWhateverElseWaits(t *testing.T) {
	f := startFleet(t, 2, 3)
	r := f.replica(0)
	v, err := r.put(t.Context(), "/a", "https://store.com/a")
	f.must(err)
	f.served(r, v, 3)
	f.turnEverything(r, "idle")

	rows, stop := importWithoutEnd(t, r)
	for from := rows(); rows() < from+10_000; {
		f.turnEverything(r, "during an import")
	}
	stop()

	v, err = r.put(t.Context(), "/b", "https://store.com/b")
	f.must(err)
	f.served(r, v, 3)
	f.deleteUntilHeldBack(r)
	f.turnEverything(r, "while a version is held back")
	f.wantRedirect("/import/0", "https://store.com/") // it still is
}

// deleteUntilHeldBack deletes links of the import until a guard holds that back.
func (f *fleet) deleteUntilHeldBack(r replica) {
	f.t.Helper()
	for i := 100; ; i += 100 {
		req := &adminv1.BatchWriteRequest{}
		for j := range 100 {
			req.Writes = append(req.Writes, &adminv1.Write{Verb: &adminv1.Write_Delete{Delete: &adminv1.DeleteRequest{
				Name: fmt.Sprintf("links/*/import/%d", i+j), AllowMissing: true,
			}}})
		}
		_, err := r.links.BatchWrite(soon(f.t), req)
		f.must(err)
		got, err := r.fleet.GetStatus(soon(f.t), &adminv1.GetStatusRequest{})
		f.must(err)
		for _, s := range got.GetReplicas() {
			if s.GetHeldBack() != nil {
				return
			}
		}
		if i > 1_000_000 {
			f.t.Fatal("nothing is held back")
		}
	}
}
