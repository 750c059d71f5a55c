package controlplane

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/controlplane/internal/store"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

const (
	maxClaims   = 256 // of one call
	maxLeases   = 512 // calls that wait for etcd; more are refused
	sweepCaps   = time.Hour
	firstSweep  = time.Minute
	leaseBudget = 1024 // claims that are answered together
)

// caps is the CapService. The calls that come while etcd is being written are
// answered together by the next write, so that many nodes cost few transactions.
type caps struct {
	feedv1.UnimplementedCapServiceServer
	store *store.Store
	log   *slog.Logger
	queue chan *capCall
}

// capCall is a call that waits.
type capCall struct {
	ctx    context.Context // of who waits
	claims []store.CapClaim
	answer chan capAnswer // holds one
	gone   error          // of run: why nobody waited any more when it was answered
}

type capAnswer struct {
	granted []store.CapGrant
	err     error
}

// newCaps makes the CapService; it answers while run runs.
func newCaps(s *store.Store, log *slog.Logger) *caps {
	return &caps{store: s, log: log, queue: make(chan *capCall, maxLeases)}
}

// Lease answers a node.
func (c *caps) Lease(ctx context.Context, req *feedv1.LeaseRequest) (*feedv1.LeaseResponse, error) {
	if len(req.GetClaims()) > maxClaims {
		return nil, status.Errorf(codes.InvalidArgument, "%d claims in one call, and at most %d are allowed", len(req.GetClaims()), maxClaims)
	}
	call := &capCall{ctx: ctx, answer: make(chan capAnswer, 1)}
	for _, claim := range req.GetClaims() {
		call.claims = append(call.claims, store.CapClaim{
			Link: claim.GetLink(), Period: claim.GetPeriod(), Number: claim.GetNumber(),
			Owed: claim.GetOwed(), Returned: claim.GetReturned(), Wanted: claim.GetWanted(), Creation: claim.GetCreation(),
		})
	}
	select {
	case c.queue <- call:
	default:
		return nil, status.Error(codes.ResourceExhausted, "too many leases wait for etcd")
	}
	select {
	case a := <-call.answer:
		if a.err != nil {
			return nil, grpcError(a.err)
		}
		resp := &feedv1.LeaseResponse{}
		for _, g := range a.granted {
			resp.Grants = append(resp.Grants, &feedv1.CapGrant{Granted: g.Clicks, Creation: g.Creation})
		}
		return resp, nil
	case <-ctx.Done():
		return nil, grpcError(ctx.Err()) // what was leased for it is lost, and not granted twice
	}
}

// run answers calls, and removes old counters now and then, until ctx ends. It
// waits for a call, the time to sweep, or the end.
func (c *caps) run(ctx context.Context) error {
	sweep := time.NewTimer(firstSweep)
	defer sweep.Stop()
	for {
		select {
		case call := <-c.queue:
			c.answer(ctx, c.gather(call))
		case <-sweep.C:
			if err := c.store.SweepCaps(ctx); err != nil && ctx.Err() == nil {
				c.log.Warn("old counters of caps are not removed", "reason", err)
			}
			sweep.Reset(sweepCaps)
		case <-ctx.Done():
			return nil
		}
	}
}

// gather takes the calls that wait.
func (c *caps) gather(first *capCall) []*capCall {
	calls, claims := []*capCall{first}, len(first.claims)
	for claims < leaseBudget {
		select {
		case call := <-c.queue:
			calls, claims = append(calls, call), claims+len(call.claims)
		default:
			return calls
		}
	}
	return calls
}

// answer answers calls with what one write leases.
func (c *caps) answer(ctx context.Context, calls []*capCall) {
	var all []store.CapClaim
	for _, call := range calls {
		if call.gone = call.ctx.Err(); call.gone != nil {
			call.claims = settled(call.claims)
		}
		all = append(all, call.claims...)
	}
	granted, err := c.store.LeaseCaps(ctx, all)
	for _, call := range calls {
		a := capAnswer{err: err}
		if err == nil {
			n := len(call.claims)
			a = capAnswer{granted: granted[:n:n], err: call.gone}
			granted = granted[n:]
		}
		call.answer <- a
	}
}

// settled is what counts of a call that nobody waits for any more: what it gives
// back, and what is owed where nothing is wanted, since a node that ends does not
// say it again. One that wants more asks again for that, and owes the same.
func settled(claims []store.CapClaim) (kept []store.CapClaim) {
	for _, claim := range claims {
		if claim.Wanted > 0 {
			claim.Owed, claim.Wanted = 0, 0
		}
		if claim.Owed > 0 || claim.Returned > 0 {
			kept = append(kept, claim)
		}
	}
	return kept
}
