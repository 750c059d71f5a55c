package controlplane

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/affleet/affleet/controlplane/internal/snapshot"
	"github.com/affleet/affleet/controlplane/internal/store"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// operations are an operator's words, kept in etcd. *store.Store is one.
type operations interface {
	Release(ctx context.Context, epoch uint64, upTo int64) error
	Released(ctx context.Context, epoch uint64) (store.Release, error)
	NewEpoch(ctx context.Context, current uint64, adopt []uint64) (epoch uint64, revision int64, err error)
	Epochs(ctx context.Context) (store.Epochs, error)
}

// GetStatus implements adminv1.FleetServiceServer.
func (f *fleet) GetStatus(ctx context.Context, req *adminv1.GetStatusRequest) (*adminv1.GetStatusResponse, error) {
	resp := &adminv1.GetStatusResponse{Replicas: []*adminv1.ReplicaStatus{f.own()}}
	if !localOnly(ctx) {
		resp.Replicas = append(resp.Replicas, f.statusOfPeers(ctx, req)...)
	}
	slices.SortFunc(resp.Replicas, func(a, b *adminv1.ReplicaStatus) int {
		return cmp.Compare(a.GetReplica(), b.GetReplica())
	})
	for _, r := range resp.GetReplicas() {
		resp.Alarms = each(resp.Alarms, r.GetAlarms())
	}
	return resp, nil
}

// own is how this replica fares.
func (f *fleet) own() *adminv1.ReplicaStatus {
	view := f.log.View()
	last, mismatches := f.log.Audited()
	r := &adminv1.ReplicaStatus{
		Replica: f.cfg.Replica, Build: f.cfg.Build,
		Head: versionProto(view.Head()), SeenRevision: view.Seen(), Following: f.log.Following(),
		Links: view.Links(), Entries: view.Entries(), Bytes: view.Bytes(),
		AuditMismatches: int64(mismatches), Alarms: f.alarms(),
	}
	if !last.IsZero() {
		r.AuditTime = timestamppb.New(last)
	}
	if upTo := view.Released(); upTo != 0 {
		r.Released = &linkv1.Version{Epoch: view.Head().Epoch, Revision: upTo}
	}
	if h := view.Hold(); h != nil {
		revisions, after := view.Waiting()
		r.HeldBack = &adminv1.HeldBack{
			Version: &linkv1.Version{Epoch: view.Head().Epoch, Revision: h.Revision}, Reason: h.Reason,
			Since: timestamppb.New(h.Since), LinksBefore: view.Links(), LinksAfter: after, Revisions: revisions,
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r.Nodes = int64(len(f.nodes))
	if guards := f.guarding(); len(guards) > 0 {
		r.Alarms = append(r.Alarms, fmt.Sprintf("%d nodes hold back by their own guards what they were sent, %s: %s", len(guards), guards[0].name, guards[0].lastRejection))
	}
	return r
}

// guarding are the nodes that hold back what they were sent, by name. f.mu is held.
func (f *fleet) guarding() (nodes []*member) {
	for _, m := range f.nodes {
		if m.guards {
			nodes = append(nodes, m)
		}
	}
	slices.SortFunc(nodes, func(a, b *member) int { return strings.Compare(a.name, b.name) })
	return nodes
}

// statusOfPeers asks the other replicas how they fare, all at once, and those that
// have left and still answer.
func (f *fleet) statusOfPeers(ctx context.Context, req *adminv1.GetStatusRequest) []*adminv1.ReplicaStatus {
	f.refreshPeers(ctx)
	peers, listed := f.peersAndLeft()
	all := make([]*adminv1.ReplicaStatus, len(peers))
	call, cancel := context.WithTimeout(asLocal(ctx, knowsNothing), f.cfg.PeerTimeout)
	defer cancel()
	var asking sync.WaitGroup
	for i, p := range peers {
		asking.Go(func() {
			client, done, err := f.ask(p, i < listed)
			defer done()
			if err == nil {
				var got *adminv1.GetStatusResponse
				if got, err = client.GetStatus(call, req); err == nil && len(got.GetReplicas()) == 1 {
					all[i] = got.GetReplicas()[0]
					return
				}
			}
			if i < listed {
				all[i] = &adminv1.ReplicaStatus{Replica: p.ID, Alarms: []string{doesNotAnswer(at(p))}}
			}
			f.silent(ctx, p, i < listed, err)
		})
	}
	asking.Wait()
	return slices.DeleteFunc(all, func(r *adminv1.ReplicaStatus) bool { return r == nil })
}

// Release implements adminv1.FleetServiceServer.
func (f *fleet) Release(ctx context.Context, req *adminv1.ReleaseRequest) (*adminv1.ReleaseResponse, error) {
	revision := req.GetVersion().GetRevision()
	view := f.reached(ctx, revision)
	epoch := view.Head().Epoch
	switch asked := req.GetVersion().GetEpoch(); {
	case revision <= 0:
		return nil, grpcError(&link.Error{Kind: link.Invalid, Field: "version.revision", Message: "is missing"})
	case epoch == 0:
		return nil, grpcError(&link.Error{Kind: link.Unavailable, Message: "this replica has no state yet", Hint: "is etcd running?"})
	case asked != 0 && asked != epoch:
		return nil, grpcError(&link.Error{Kind: link.FailedPrecondition, Field: "version.epoch", Message: fmt.Sprintf("is %016x, and the fleet is at %016x", asked, epoch)})
	case revision > view.Seen():
		return nil, grpcError(&link.Error{
			Kind: link.OutOfRange, Field: "version.revision", Message: fmt.Sprintf("is %d, and etcd is at %d: what is not written cannot be released", revision, view.Seen()),
		})
	}
	if h := view.Hold(); h != nil && revision < h.Revision {
		return nil, grpcError(&link.Error{
			Kind: link.FailedPrecondition, Field: "version.revision", Message: fmt.Sprintf("is %d, and what is held back begins with %d", revision, h.Revision),
			Hint: fmt.Sprintf("affctl fleet release --version %d", h.Revision),
		})
	}
	if err := f.cfg.Operations.Release(ctx, epoch, revision); err != nil {
		return nil, grpcError(err)
	}
	f.cfg.Logger.Warn("a version is released", "revision", revision, "by", identity(ctx))
	return &adminv1.ReleaseResponse{Version: &linkv1.Version{Epoch: epoch, Revision: revision}, HeldBack: view.Hold() != nil}, nil
}

// reached gives the view once this replica has heard of a revision, which its
// watch may tell with a delay; or what it has after the time for an answer.
func (f *fleet) reached(ctx context.Context, revision int64) *snapshot.View {
	timeout := time.NewTimer(f.cfg.PeerTimeout)
	defer timeout.Stop()
	for {
		view := f.log.View()
		if view.Seen() >= revision {
			return view
		}
		f.log.Nudge()
		select {
		case <-view.Advanced():
		case <-timeout.C:
			return view
		case <-ctx.Done():
			return view
		}
	}
}

// NewEpoch implements adminv1.FleetServiceServer.
func (f *fleet) NewEpoch(ctx context.Context, req *adminv1.NewEpochRequest) (*adminv1.NewEpochResponse, error) {
	if req.GetCurrent() == 0 {
		epochs, err := f.cfg.Operations.Epochs(ctx)
		if err != nil {
			return nil, grpcError(err)
		}
		return nil, grpcError(&link.Error{
			Kind: link.Invalid, Field: "current", Message: fmt.Sprintf("is missing; in etcd it is %016x", epochs.Current),
		})
	}
	epoch, revision, err := f.cfg.Operations.NewEpoch(ctx, req.GetCurrent(), req.GetAdopt())
	if err != nil {
		return nil, grpcError(err)
	}
	adopted := make([]string, 0, len(req.GetAdopt()))
	for _, e := range req.GetAdopt() {
		adopted = append(adopted, fmt.Sprintf("%016x", e))
	}
	f.cfg.Logger.Warn("an operator has begun a new epoch", "epoch", fmt.Sprintf("%016x", epoch), "after", fmt.Sprintf("%016x", req.GetCurrent()),
		"adopted", strings.Join(adopted, ","), "by", identity(ctx))
	return &adminv1.NewEpochResponse{Version: &linkv1.Version{Epoch: epoch, Revision: revision}}, nil
}
