package controlplane

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/affleet/affleet/controlplane/internal/store"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// userHeader is the metadata by which a client says who writes.
const userHeader = "aff-user"

// maxUser bounds what is recorded of it, in bytes.
const maxUser = 128

// admin is the LinkService: the same code for every kind of resource, over the
// store. It holds no state; all of it may be used from any goroutine.
type admin struct {
	adminv1.UnimplementedLinkServiceServer
	store *store.Store
	epoch func(context.Context) (uint64, error)
	gate  *gate // nil: open
}

// newAdmin makes the LinkService. epoch gives the fleet's epoch for the
// versions in its answers; store.Epoch asks etcd each time.
func newAdmin(store *store.Store, epoch func(context.Context) (uint64, error), gate *gate) *admin {
	return &admin{store: store, epoch: epoch, gate: gate}
}

// identity is who a call's writes are recorded for.
func identity(ctx context.Context) string {
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		if user := md.Get(userHeader); len(user) > 0 && user[0] != "" {
			return strings.ToValidUTF8(user[0][:min(len(user[0]), maxUser)], "?")
		}
	}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		if host, _, err := net.SplitHostPort(p.Addr.String()); err == nil {
			return host
		}
		return p.Addr.String()
	}
	return "unknown"
}

func (a *admin) version(ctx context.Context, revision int64) (*linkv1.Version, error) {
	epoch, err := a.epoch(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the epoch: %w", err)
	}
	return &linkv1.Version{Epoch: epoch, Revision: revision}, nil
}

// etag is empty for what was not written.
func etag(revision int64) string {
	if revision == 0 {
		return ""
	}
	return store.Etag(revision)
}

// writeOptions are those of a request.
type writeOptions struct{ dryRun, allowShrink bool }

// write makes one transaction.
func (a *admin) write(ctx context.Context, writes []store.Write, opts writeOptions) ([]store.Result, *linkv1.Version, error) {
	began, err := a.gate.pass(slices.ContainsFunc(writes, mayCreate))
	if err != nil {
		return nil, nil, grpcError(err)
	}
	version, err := a.version(ctx, 0) // first: what is written must be answered
	if err != nil {
		return nil, nil, grpcError(err)
	}
	with := store.WriteOptions{DryRun: opts.dryRun}
	if opts.allowShrink {
		with.AllowShrink = version.GetEpoch()
	}
	results, revision, err := a.store.WriteWith(ctx, identity(ctx), writes, with)
	if err == nil && !opts.dryRun && slices.ContainsFunc(results, func(r store.Result) bool { return r.Outcome != store.Unchanged }) {
		err = a.gate.wrote(revision, began)
	}
	version.Revision = revision
	return results, version, grpcError(err)
}

// mayCreate says whether a write may add to what there is.
func mayCreate(w store.Write) bool {
	return w.Verb == store.Create || w.Verb == store.Put || w.Verb == store.Update && w.AllowMissing
}

// The three verbs as writes of a transaction.

func createWrite(req *adminv1.CreateRequest) store.Write {
	return store.Write{Verb: store.Create, Resource: req.GetResource()}
}

func updateWrite(req *adminv1.UpdateRequest) store.Write {
	return store.Write{
		Verb: store.Update, Resource: req.GetResource(), Mask: req.GetUpdateMask().GetPaths(),
		Etag: req.GetEtag(), AllowMissing: req.GetAllowMissing(),
	}
}

func deleteWrite(req *adminv1.DeleteRequest) store.Write {
	return store.Write{Verb: store.Delete, Name: req.GetName(), Etag: req.GetEtag(), AllowMissing: req.GetAllowMissing()}
}

// Create writes a resource that does not exist.
func (a *admin) Create(ctx context.Context, req *adminv1.CreateRequest) (*adminv1.CreateResponse, error) {
	done, version, err := a.write(ctx, []store.Write{createWrite(req)}, writeOptions{dryRun: req.GetValidateOnly()})
	if err != nil {
		return nil, err
	}
	return &adminv1.CreateResponse{Resource: done[0].Resource, Version: version, Etag: etag(done[0].Revision)}, nil
}

// Update changes a resource, or creates it if the request allows that.
func (a *admin) Update(ctx context.Context, req *adminv1.UpdateRequest) (*adminv1.UpdateResponse, error) {
	done, version, err := a.write(ctx, []store.Write{updateWrite(req)}, writeOptions{dryRun: req.GetValidateOnly()})
	if err != nil {
		return nil, err
	}
	return &adminv1.UpdateResponse{Resource: done[0].Resource, Version: version, Etag: etag(done[0].Revision)}, nil
}

// Delete removes a resource.
func (a *admin) Delete(ctx context.Context, req *adminv1.DeleteRequest) (*adminv1.DeleteResponse, error) {
	_, version, err := a.write(ctx, []store.Write{deleteWrite(req)}, writeOptions{dryRun: req.GetValidateOnly(), allowShrink: req.GetAllowShrink()})
	if err != nil {
		return nil, err
	}
	return &adminv1.DeleteResponse{Version: version}, nil
}

// BatchWrite makes up to 100 writes in one transaction.
func (a *admin) BatchWrite(ctx context.Context, req *adminv1.BatchWriteRequest) (*adminv1.BatchWriteResponse, error) {
	writes := make([]store.Write, len(req.GetWrites()))
	for i, w := range req.GetWrites() {
		switch verb := w.GetVerb().(type) {
		case *adminv1.Write_Create:
			writes[i] = createWrite(verb.Create)
		case *adminv1.Write_Update:
			writes[i] = updateWrite(verb.Update)
		case *adminv1.Write_Delete:
			writes[i] = deleteWrite(verb.Delete)
		default:
			return nil, grpcError(&link.Error{
				Kind: link.Invalid, Field: fmt.Sprintf("writes[%d].verb", i), Message: "is missing",
				Hint: "set create, update or delete",
			})
		}
	}
	done, version, err := a.write(ctx, writes, writeOptions{dryRun: req.GetValidateOnly(), allowShrink: req.GetAllowShrink()})
	if err != nil {
		return nil, err
	}
	results := make([]*adminv1.WriteResult, len(done))
	for i, r := range done {
		results[i] = &adminv1.WriteResult{Resource: r.Resource, Etag: etag(r.Revision)}
	}
	return &adminv1.BatchWriteResponse{Results: results, Version: version}, nil
}

// Get reads one resource.
func (a *admin) Get(ctx context.Context, req *adminv1.GetRequest) (*adminv1.GetResponse, error) {
	object, revision, err := a.store.Get(ctx, req.GetName())
	if err != nil {
		return nil, grpcError(err)
	}
	resource, err := object.Resource()
	if err != nil {
		return nil, grpcError(err)
	}
	version, err := a.version(ctx, revision)
	if err != nil {
		return nil, grpcError(err)
	}
	return &adminv1.GetResponse{Resource: resource, Version: version, Etag: etag(object.Revision)}, nil
}

// List reads one page.
func (a *admin) List(ctx context.Context, req *adminv1.ListRequest) (*adminv1.ListResponse, error) {
	filter, err := storeFilter(req.GetFilter())
	if err != nil {
		return nil, grpcError(err)
	}
	page, err := a.store.List(ctx, store.Query{Filter: filter, PageSize: int(req.GetPageSize()), PageToken: req.GetPageToken()})
	if err != nil {
		return nil, grpcError(err)
	}
	version, err := a.version(ctx, page.Revision)
	if err != nil {
		return nil, grpcError(err)
	}
	answer := &adminv1.ListResponse{NextPageToken: page.Next, Version: version}
	for i := range page.Objects {
		resource, err := page.Objects[i].Resource()
		if err != nil {
			return nil, grpcError(err)
		}
		answer.Resources = append(answer.Resources, resource)
	}
	return answer, nil
}

var storeKinds = map[adminv1.Kind]link.Kind{
	adminv1.Kind_KIND_UNSPECIFIED: link.Links,
	adminv1.Kind_KIND_LINK:        link.Links,
	adminv1.Kind_KIND_DOMAIN:      link.Domains,
	adminv1.Kind_KIND_AFFILIATE:   link.Affiliates,
	adminv1.Kind_KIND_BLOCK:       link.Blocks,
	adminv1.Kind_KIND_POLICY:      link.Policies,
}

// storeFilter checks a filter. A kind that this release does not know is 0,
// which the check refuses.
func storeFilter(f *adminv1.Filter) (store.Filter, error) {
	filter := store.Filter{
		Kind: storeKinds[f.GetKind()], Domain: f.GetDomain(), PathPrefix: f.GetPathPrefix(),
		Affiliate: f.GetAffiliate(), Labels: f.GetLabels(),
	}
	return filter, filter.Check()
}

// storeFilters checks filters; without any, there is one for each kind, in the
// order in which an import succeeds.
func storeFilters(fs []*adminv1.Filter) ([]store.Filter, error) {
	var filters []store.Filter
	for _, f := range fs {
		filter, err := storeFilter(f)
		if err != nil {
			return nil, err
		}
		filters = append(filters, filter)
	}
	if len(filters) == 0 {
		for _, kind := range link.Kinds {
			filters = append(filters, store.Filter{Kind: kind})
		}
	}
	return filters, nil
}

// matchesAny says whether one of the filters matches. Of what was deleted, only
// the name is known.
func matchesAny(filters []store.Filter, o *store.Object) bool {
	for _, f := range filters {
		if o.Value == nil && f.MatchName(o.Name) || o.Value != nil && f.Match(o) {
			return true
		}
	}
	return false
}
