package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
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

// turn is a write, and the status with which nodes answer that serve it.
type turn struct {
	what  string
	want  int
	write func(context.Context) (*linkv1.Version, error)
}

// everywhere makes a write, waits until all nodes answer with its status and count as
// serving it, and gives how long the first of that took.
func (f *fleet) everywhere(r replica, when string, w turn) (took time.Duration) {
	f.t.Helper()
	start := time.Now()
	version, err := w.write(soon(f.t))
	f.must(err)
	acknowledged := time.Since(start)
	for i, addr := range f.NodeAddr {
		f.eventually(fmt.Sprintf("%s, %s: node %d answers with %d", when, w.what, i+1, w.want), func() bool { return status(addr, "/a") == w.want })
	}
	took = time.Since(start)
	f.served(r, version, len(f.NodeAddr))
	f.t.Logf("%s, %s: acknowledged after %v, on all nodes after %v", when, w.what, acknowledged.Round(time.Millisecond), took.Round(time.Millisecond))
	return took
}

// block, unblock, off and on are made and taken back, each within a second. On a busy
// machine something may take longer, and not each of three times.
func (f *fleet) turnEverything(r replica, when string) {
	f.t.Helper()
	block := func(ctx context.Context) (*linkv1.Version, error) {
		w, err := r.links.Update(ctx, &adminv1.UpdateRequest{AllowMissing: true, Resource: &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{
			Id: "loop", Match: &linkv1.Block_Prefix{Prefix: "127.0.0.0/8"}, Action: linkv1.BlockAction_BLOCK_ACTION_REFUSE, Reason: "a test",
		}}}})
		return w.GetVersion(), err
	}
	set := func(off bool) func(ctx context.Context) (*linkv1.Version, error) {
		return func(ctx context.Context) (*linkv1.Version, error) {
			w, err := r.links.Update(ctx, &adminv1.UpdateRequest{AllowMissing: true, Resource: &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{Scope: "*", Off: off}}}})
			return w.GetVersion(), err
		}
	}
	unblock := func(ctx context.Context) (*linkv1.Version, error) {
		w, err := r.links.Delete(ctx, &adminv1.DeleteRequest{Name: "blocks/loop"})
		return w.GetVersion(), err
	}
	turns := []turn{
		{"block", http.StatusForbidden, block},
		{"kill switch off", http.StatusFound, set(true)},
		{"kill switch on", http.StatusForbidden, set(false)},
		{"unblock", http.StatusFound, unblock},
	}
	least := slices.Repeat([]time.Duration{math.MaxInt64}, len(turns))
	for try := 0; try < 3 && slices.Max(least) > reach; try++ {
		for i, w := range turns {
			least[i] = min(least[i], f.everywhere(r, when, w))
		}
	}
	for i, w := range turns {
		if least[i] > reach {
			f.t.Errorf("%s, %s: it took %v until all nodes answer with %d, and %v are allowed", when, w.what, least[i], w.want, reach)
		}
	}
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
