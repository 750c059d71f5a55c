package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/controlplane/internal/snapshot"
	"github.com/affleet/affleet/controlplane/internal/store"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

const (
	// progressEvery is the time between messages of an import that has no
	// errors to tell.
	progressEvery = 200 * time.Millisecond
	// How many errors one message holds, and about how many bytes of them:
	// whichever comes first. Clients take 4 MiB by default.
	maxRowErrors  = 1000
	rowErrorBytes = 1 << 20
)

// Import writes the rows of the stream and tells of each that failed, and how
// many did not, as it goes. A client reads while it sends. An import that ends
// early ends with the error that ended it, and after a last message that has
// all outcomes until then; it is not marked as done.
func (a *admin) Import(stream adminv1.LinkService_ImportServer) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	first, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return grpcError(err)
	}
	began, err := a.gate.pass(true)
	if err != nil {
		return grpcError(err)
	}
	version, err := a.version(ctx, 0)
	if err != nil {
		return grpcError(err)
	}
	rows := make(chan []*linkv1.Resource)
	if first == nil {
		close(rows)
	} else {
		// Nobody waits for this goroutine: what it waits in, Recv, ends only
		// when the handler returns, and then surely.
		go receiveRows(ctx, cancel, stream, first.GetResources(), rows)
	}
	opts := first.GetOptions()
	p := &importProgress{stream: stream, gate: a.gate, began: began, progress: &adminv1.ImportProgress{Version: version}, sent: time.Now()}
	err = a.store.Import(ctx, identity(ctx), store.ImportOptions{
		StopOnError: opts.GetStopOnError(), CreateOnly: opts.GetCreateOnly(), DryRun: opts.GetValidateOnly(),
	}, rows, p.add)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return grpcError(cause) // the client's doing: it does not listen any more
	}
	if sendErr := p.send(err == nil); sendErr != nil {
		return grpcError(sendErr)
	}
	return grpcError(err)
}

// receiveRows hands over the rows of each message until the client closes its
// side: then it closes rows. If the stream fails it cancels ctx.
func receiveRows(ctx context.Context, cancel context.CancelCauseFunc, stream adminv1.LinkService_ImportServer,
	first []*linkv1.Resource, rows chan<- []*linkv1.Resource,
) {
	for next := first; ; {
		select {
		case rows <- next:
		case <-ctx.Done():
			return
		}
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			close(rows)
			return
		}
		if err != nil {
			cancel(err)
			return
		}
		next = req.GetResources()
	}
}

// importProgress adds outcomes up and tells the client now and then. It is
// used by the handler's goroutine only.
type importProgress struct {
	stream   adminv1.LinkService_ImportServer
	gate     *gate
	began    *snapshot.View
	progress *adminv1.ImportProgress
	errors   []*adminv1.RowError
	bytes    int   // of errors
	told     int64 // rows that the client knows of
	sent     time.Time
}

// add counts outcomes; no results means that there will be none for a while.
func (p *importProgress) add(results []store.RowResult) error {
	for i := range results {
		if r := &results[i]; r.Revision != 0 && (r.Outcome == store.Created || r.Outcome == store.Updated) {
			if err := p.gate.wrote(r.Revision, p.began); err != nil {
				return err
			}
		}
		p.count(&results[i])
		if len(p.errors) >= maxRowErrors || p.bytes >= rowErrorBytes {
			if err := p.send(false); err != nil {
				return err
			}
		}
	}
	if _, err := p.gate.pass(true); err != nil {
		return err
	}
	if p.told < p.progress.GetRows() && (len(results) == 0 || time.Since(p.sent) >= progressEvery) {
		return p.send(false)
	}
	return nil
}

func (p *importProgress) count(r *store.RowResult) {
	to := p.progress
	to.Rows++
	to.Version.Revision = max(to.Version.GetRevision(), r.Revision)
	switch {
	case r.Err != nil:
		to.Failed++
		e := rowError(r)
		p.errors, p.bytes = append(p.errors, e), p.bytes+proto.Size(e)
	case r.Outcome == store.Created:
		to.Created++
	case r.Outcome == store.Updated:
		to.Updated++
	default:
		to.Unchanged++
	}
}

func (p *importProgress) send(done bool) error {
	err := p.stream.Send(&adminv1.ImportResponse{Errors: p.errors, Progress: p.progress, Done: done})
	p.errors, p.bytes, p.told, p.sent = nil, 0, p.progress.GetRows(), time.Now()
	if err != nil {
		return fmt.Errorf("send progress: %w", err)
	}
	return nil
}

// rowError tells of a row's first problem with all of their messages.
func rowError(r *store.RowResult) *adminv1.RowError {
	e := &adminv1.RowError{Row: r.Row, Name: r.Name, Code: int32(status.Code(grpcError(r.Err)))}
	problems := link.Problems(r.Err)
	first := *problems[0]
	first.Resource, first.Field = "", "" // told beside the message
	told := append([]*link.Error{&first}, problems[1:]...)
	e.Message, e.Field, e.Hint = errorMessage(told), problems[0].Field, problems[0].Hint
	if e.GetCode() == int32(codes.Internal) {
		e.Message = "internal error; the log of the control plane says more"
	}
	return e
}
