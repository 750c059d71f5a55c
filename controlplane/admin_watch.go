package controlplane

import (
	"context"
	"fmt"

	"google.golang.org/grpc/metadata"

	"github.com/affleet/affleet/controlplane/internal/store"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// How much one message of an export holds: whichever comes first.
const (
	exportRows  = 500
	exportBytes = 1 << 20
)

// Export sends everything that matches, at one revision. What several filters
// match is sent once.
func (a *admin) Export(req *adminv1.ExportRequest, stream adminv1.LinkService_ExportServer) error {
	ctx := stream.Context()
	filters, err := storeFilters(req.GetFilters())
	if err != nil {
		return grpcError(err)
	}
	revision, err := a.store.Revision(ctx)
	if err != nil {
		return grpcError(err)
	}
	version, err := a.version(ctx, revision)
	if err != nil {
		return grpcError(err)
	}
	total := int64(0)
	for _, f := range filters {
		n, err := a.store.Count(ctx, f, revision)
		if err != nil {
			return grpcError(err)
		}
		total += n
	}
	e := &exporter{stream: stream, next: &adminv1.ExportResponse{Version: version, EstimatedTotal: total}}
	for i, f := range filters {
		_, err := a.store.Scan(ctx, f, revision, func(o store.Object) error {
			if matchesAny(filters[:i], &o) {
				return nil
			}
			return e.add(&o)
		})
		if err != nil {
			return grpcError(err)
		}
	}
	return grpcError(e.flush())
}

// exporter fills messages and sends the full ones.
type exporter struct {
	stream adminv1.LinkService_ExportServer
	next   *adminv1.ExportResponse
	bytes  int
	begun  bool
}

func (e *exporter) add(o *store.Object) error {
	resource, err := o.Resource()
	if err != nil {
		return err
	}
	e.next.Resources = append(e.next.Resources, resource)
	e.bytes += len(o.Value)
	if len(e.next.GetResources()) < exportRows && e.bytes < exportBytes {
		return nil
	}
	return e.flush()
}

// flush sends what there is. The first message is sent even when it is empty.
func (e *exporter) flush() error {
	if len(e.next.GetResources()) == 0 && e.begun {
		return nil
	}
	if err := e.stream.Send(e.next); err != nil {
		return fmt.Errorf("send resources: %w", err)
	}
	e.next = &adminv1.ExportResponse{Version: e.next.GetVersion()}
	e.bytes, e.begun = 0, true
	return nil
}

// Watch sends the changes that match, one message for each revision that has
// some. It sends its header as soon as every later write will be seen.
func (a *admin) Watch(req *adminv1.WatchRequest, stream adminv1.LinkService_WatchServer) error {
	ctx := stream.Context()
	filters, err := storeFilters(req.GetFilters())
	if err != nil {
		return grpcError(err)
	}
	after, err := a.watchStart(ctx, req.GetFromRevision())
	if err != nil {
		return grpcError(err)
	}
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return grpcError(err)
	}
	for batch, err := range boundedWatch(ctx, a.store, after) {
		if err != nil {
			return grpcError(err)
		}
		changes, err := matchingChanges(filters, batch)
		if err != nil {
			return grpcError(err)
		}
		if len(changes) == 0 {
			continue
		}
		version, err := a.version(ctx, batch.Revision)
		if err != nil {
			return grpcError(err)
		}
		if err := stream.Send(&adminv1.WatchResponse{Version: version, Changes: changes}); err != nil {
			return grpcError(err)
		}
	}
	return nil
}

// watchStart gives the revision after which a watch begins: what the request
// says, or the current one.
func (a *admin) watchStart(ctx context.Context, from int64) (int64, error) {
	if from < 0 {
		return 0, &link.Error{Kind: link.Invalid, Field: "from_revision", Message: "is negative"}
	}
	head, err := a.store.Revision(ctx)
	if err != nil {
		return 0, err
	}
	if from > head {
		return 0, &link.Error{
			Kind: link.OutOfRange, Field: "from_revision", Message: fmt.Sprintf("is %d, and etcd is at %d", from, head),
			Hint: "was etcd restored? export again, and watch from that revision on",
		}
	}
	if from == 0 {
		from = head
	}
	return from, nil
}

func matchingChanges(filters []store.Filter, batch store.Batch) (changes []*adminv1.Change, err error) {
	for i := range batch.Changes {
		o := &batch.Changes[i]
		if !matchesAny(filters, o) {
			continue
		}
		var resource *linkv1.Resource
		if o.Value != nil {
			if resource, err = o.Resource(); err != nil {
				return nil, err
			}
		}
		changes = append(changes, &adminv1.Change{Name: o.Name, Resource: resource})
	}
	return changes, nil
}
