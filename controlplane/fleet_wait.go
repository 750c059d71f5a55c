package controlplane

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/affleet/affleet/controlplane/internal/replica"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	"github.com/affleet/affleet/proto/link"
)

// WaitForVersion implements adminv1.FleetServiceServer.
//
// Asked by another replica, it answers when the count of its own nodes differs
// from what the asker knows, so that the asker waits for events and not for
// time.
func (f *fleet) WaitForVersion(ctx context.Context, req *adminv1.WaitForVersionRequest) (*adminv1.WaitForVersionResponse, error) {
	f.enters(ctx, req.GetVersion().GetEpoch())
	if err := f.checkWait(req); err != nil {
		return nil, err
	}
	if known := metadata.ValueFromIncomingContext(ctx, localKey); len(known) > 0 {
		return f.waitLocal(ctx, req, known[0])
	}
	return f.waitAll(ctx, req)
}

// enterTimeout is how long a replica may take to follow etcd into another epoch.
const enterTimeout = 10 * time.Second

// enters waits until this replica serves an epoch, if etcd names it as the
// current one: who has begun it may wait for it at once, at any replica.
func (f *fleet) enters(ctx context.Context, epoch uint64) {
	ctx, cancel := context.WithTimeout(ctx, enterTimeout)
	defer cancel()
	for asked := false; epoch != 0; {
		view := f.log.View()
		if at := view.Head().Epoch; at == 0 || at == epoch {
			return
		}
		if !asked {
			asked = true
			if epochs, err := f.cfg.Operations.Epochs(ctx); err != nil || epochs.Current != epoch {
				return
			}
		}
		select {
		case <-view.Advanced():
		case <-ctx.Done():
			return
		}
	}
}

func (f *fleet) checkWait(req *adminv1.WaitForVersionRequest) error {
	v := req.GetVersion()
	head := f.log.Head()
	switch {
	case v.GetRevision() <= 0:
		return status.Error(codes.InvalidArgument, "version.revision: required")
	case req.GetPercent() < 0 || req.GetPercent() > 100:
		return status.Error(codes.InvalidArgument, "percent: 1 to 100")
	case req.GetMinNodes() < 0:
		return status.Error(codes.InvalidArgument, "min_nodes: not negative")
	case v.GetEpoch() != 0 && head.Epoch != 0 && v.GetEpoch() != head.Epoch:
		return status.Errorf(codes.FailedPrecondition, "version.epoch: the fleet is at epoch %016x, not %016x", head.Epoch, v.GetEpoch())
	}
	return nil
}

// tally is how many nodes there are, and which do not serve a version.
type tally struct {
	nodes   int
	lagging []string
}

// known is the tally as replicas tell each other what they know.
func (t tally) known() string { return fmt.Sprintf("%d/%d", t.nodes-len(t.lagging), t.nodes) }

// missing is how many more nodes have to serve the version, of those that there
// are, for the request to be fulfilled.
func (t tally) missing(req *adminv1.WaitForVersionRequest) int {
	percent := int(req.GetPercent())
	if percent == 0 {
		percent = 100
	}
	return max((t.nodes*percent+99)/100-(t.nodes-len(t.lagging)), 0)
}

// enough says whether the request is fulfilled.
func (t tally) enough(req *adminv1.WaitForVersionRequest) bool {
	return t.nodes >= int(req.GetMinNodes()) && t.missing(req) == 0
}

// count adds the nodes of this replica to t. later is not nil while this replica
// does not know yet what there is up to the version: it is closed when it may.
// From then on w is woken when something has changed that may be enough.
func (f *fleet) count(req *adminv1.WaitForVersionRequest, w *waiter, t *tally) (later <-chan struct{}) {
	view := f.log.View()
	revision := req.GetVersion().GetRevision()
	if view.Seen() < revision {
		later = view.Advanced()
		f.log.Nudge()
	}
	takesDown := view.IsTakeDown(revision)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.nodes {
		if region := req.GetRegion(); region != "" && m.region != region {
			continue
		}
		t.nodes++
		downed := takesDown && m.version.Epoch == view.Head().Epoch && m.downed.has(m.version.Epoch, revision)
		if !downed && !view.Serves(m.version, revision) {
			t.lagging = append(t.lagging, m.name)
		}
	}
	w.reports = 1
	if !w.each {
		w.reports = max(t.missing(req), 1)
	}
	return later
}

const (
	// Where many nodes lag, another replica is told less often: it is told all
	// of their names.
	many   = 16
	gather = 10 * time.Millisecond
)

// waitLocal answers another replica.
func (f *fleet) waitLocal(ctx context.Context, req *adminv1.WaitForVersionRequest, known string) (*adminv1.WaitForVersionResponse, error) {
	w, stop := f.watch()
	defer stop()
	w.each = true
	var gathered <-chan time.Time
	for due := false; ; {
		var t tally
		later := f.count(req, w, &t)
		switch differs := t.known() != known; {
		case differs && (due || known == knowsNothing || len(t.lagging) < many):
			return &adminv1.WaitForVersionResponse{Nodes: int32(t.nodes), Lagging: t.lagging}, nil
		case differs && gathered == nil:
			gathered = time.After(gather)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-w.woken:
		case <-gathered:
			due = true
		case <-later:
		}
	}
}

// waitAll waits for the nodes of all replicas. It answers a little before the
// caller's deadline, so that the caller learns which nodes lag.
func (f *fleet) waitAll(ctx context.Context, req *adminv1.WaitForVersionRequest) (*adminv1.WaitForVersionResponse, error) {
	start := time.Now()
	var timeout <-chan time.Time
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		timeout = time.After(left - min(left/10, 500*time.Millisecond))
	}
	w, stop := f.watch()
	defer stop()
	others := &peerTallies{byPeer: make(map[replica.Peer]tally), woken: w.woken}
	polling, cancel := context.WithCancel(ctx)
	var pollers sync.WaitGroup
	defer pollers.Wait()
	defer cancel()
	pollers.Go(func() {
		f.eachPeer(polling, func(ctx context.Context, p replica.Peer) { f.pollPeer(ctx, p, req, others) })
	})
	for asked := false; ; {
		var t tally
		lacks := !asked && f.lacksPeers(req.GetVersion().GetRevision()) // before the list is used
		silent := others.add(&t, f.listed())
		later := f.count(req, w, &t)
		answer := &adminv1.WaitForVersionResponse{
			Nodes: int32(t.nodes), Waited: durationpb.New(time.Since(start)), Lagging: t.lagging,
		}
		enough := len(silent) == 0 && t.enough(req)
		if enough && lacks {
			asked = true
			f.refreshPeers(ctx)
			continue
		}
		if enough {
			slices.Sort(answer.Lagging)
			return answer, nil
		}
		if err := f.heldBack(ctx, req.GetVersion().GetRevision()); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-timeout:
			answer.SilentReplicas = silent
			return nil, late(req, answer)
		case <-w.woken:
		case <-later:
		}
	}
}

// heldBack is the error for a wait that only an operator can end. What was released at
// another replica, or just now, this one may not have heard of: etcd has.
func (f *fleet) heldBack(ctx context.Context, revision int64) error {
	view := f.log.View()
	hold := view.Hold()
	if hold == nil || revision < hold.From || revision > view.Seen() || view.IsTakeDown(revision) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.cfg.PeerTimeout)
	defer cancel()
	if r, err := f.cfg.Operations.Released(ctx, view.Head().Epoch); err == nil && r.UpTo >= hold.Revision {
		return nil
	}
	with := ""
	switch {
	case revision > hold.Revision:
		with = fmt.Sprintf(" behind revision %d", hold.Revision)
	case revision < hold.Revision:
		with = fmt.Sprintf(" with revision %d", hold.Revision)
	}
	return grpcError(&link.Error{
		Kind: link.FailedPrecondition, Message: fmt.Sprintf("revision %d is written, and held back%s: %s", revision, with, hold.Reason),
		Hint: fmt.Sprintf("look at what was written, and then: affctl fleet release --version %d", max(revision, hold.Revision)),
	})
}

// late is the error for a wait that ended before enough nodes serve.
func late(req *adminv1.WaitForVersionRequest, answer *adminv1.WaitForVersionResponse) error {
	const few = 10
	slices.Sort(answer.Lagging)
	names := strings.Join(answer.Lagging[:min(len(answer.Lagging), few)], ", ")
	if len(answer.Lagging) > few {
		names += ", ..."
	}
	message := fmt.Sprintf("%d of %d nodes serve revision %d", int(answer.Nodes)-len(answer.Lagging), answer.Nodes, req.GetVersion().GetRevision())
	if names != "" {
		message += "; lagging: " + names
	}
	for _, at := range answer.GetSilentReplicas() {
		message += "; " + doesNotAnswer(at) + ": its nodes are not counted"
	}
	if answer.Nodes < req.GetMinNodes() {
		message += fmt.Sprintf("; waiting for at least %d nodes", req.GetMinNodes())
	}
	st := status.New(codes.DeadlineExceeded, message)
	if detailed, err := st.WithDetails(answer); err == nil {
		st = detailed
	}
	return st.Err()
}

// peerTallies are the counts of the other replicas.
type peerTallies struct {
	mu     sync.Mutex
	byPeer map[replica.Peer]tally // of those that have answered
	woken  chan struct{}
}

// set notes what a replica says; nil: it does not answer, or not any more.
func (o *peerTallies) set(p replica.Peer, t *tally) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.byPeer, p)
	if t != nil {
		o.byPeer[p] = *t
	}
	poke(o.woken)
}

// add adds the counts of the replicas that are listed to t, and names those that
// there is none of: without them the tally is not complete.
func (o *peerTallies) add(t *tally, listed []replica.Peer) (silent []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range listed {
		other, answered := o.byPeer[p]
		if !answered {
			silent = append(silent, at(p))
			continue
		}
		t.nodes += other.nodes
		t.lagging = append(t.lagging, other.lagging...)
	}
	return silent
}

// longPoll bounds one question to another replica: one that hangs is found out,
// and what it has said last is not believed much longer.
const longPoll = 3 * time.Second

// pollPeer keeps the tally of another replica up to date until ctx ends. The
// first question is answered at once, the next ones when something changed. A
// replica that is gone has no nodes.
func (f *fleet) pollPeer(ctx context.Context, p replica.Peer, req *adminv1.WaitForVersionRequest, others *peerTallies) {
	defer others.set(p, nil)
	known, timeout := knowsNothing, f.cfg.PeerTimeout
	refusals := 0 // in a row
	for ctx.Err() == nil {
		t, err := f.askPeer(ctx, p, req, known, timeout)
		switch {
		case err == nil:
			refusals = 0
			f.conns.heard(p.Address)
			others.set(p, t)
			known, timeout = t.known(), longPoll
		case known != knowsNothing && status.Code(err) == codes.DeadlineExceeded:
			known, timeout = knowsNothing, f.cfg.PeerTimeout // nothing changed, or it hangs
		default:
			f.skip(ctx, p, err)
			var none *tally
			if refusals++; !f.closed(ctx, p) {
				refusals = 0
			} else if refusals >= goneAfter {
				none = &tally{}
			}
			others.set(p, none)
			known, timeout = knowsNothing, f.cfg.PeerTimeout
			sleep(ctx, f.cfg.PeerTimeout)
		}
	}
}

// askPeer asks another replica for its tally, when it is not the known one.
func (f *fleet) askPeer(ctx context.Context, p replica.Peer, req *adminv1.WaitForVersionRequest, known string, timeout time.Duration) (*tally, error) {
	client, err := f.peer(p)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(asLocal(ctx, known), timeout)
	defer cancel()
	got, err := client.WaitForVersion(ctx, req)
	if err != nil {
		return nil, err
	}
	return &tally{nodes: int(got.GetNodes()), lagging: got.GetLagging()}, nil
}
