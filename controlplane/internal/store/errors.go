package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/proto/link"
)

// ErrCompacted says that etcd no longer has the revisions that a watch asks
// for: read everything anew.
var ErrCompacted = errors.New("the revision has been compacted away")

// fail makes an error of etcd's client into a domain error; it is the only
// place that looks at them. ctx is the caller's: once it is done, its error is
// the answer. what is "read", "write" or "watch".
func (s *Store) fail(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s etcd: %w", what, ctx.Err())
	}
	e := &link.Error{Err: fmt.Errorf("%s etcd: %w", what, err)}
	switch {
	case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, rpctypes.ErrFutureRev):
		e.Kind, e.Message, e.Hint = link.OutOfRange, "etcd does not have that revision any more", "start again"
		if errors.Is(err, rpctypes.ErrFutureRev) {
			e.Message = "etcd does not have that revision yet"
		}
	case errors.Is(err, rpctypes.ErrNoSpace):
		e.Kind, e.Message = link.ResourceExhausted, "etcd is full"
		e.Hint = "compact and defragment etcd, or raise its --quota-backend-bytes, then disarm its alarm"
	case errors.Is(err, rpctypes.ErrRequestTooLarge), tooLargeToSend(err):
		e.Kind, e.Message = link.Invalid, "the writes are larger than one transaction of etcd may be"
		e.Hint = "write fewer at once, or import them"
	case unavailable(err):
		e.Kind, e.Message = link.Unavailable, "etcd does not answer"
		if what == "write" {
			e.Message += "; what was being written may or may not have been"
		}
		e.Hint = "is etcd running? the control plane expects it at " + strings.Join(s.client.Endpoints(), ", ")
	default:
		e.Kind, e.Message = link.Internal, "etcd refused to "+what
	}
	return e
}

// unavailable says whether trying again later may help.
func unavailable(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return true
	}
	switch code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	case codes.Internal: // etcd has none: a connection ended within an answer
		return true
	}
	return errors.Is(err, rpctypes.ErrTooManyRequests)
}

// tooLargeToSend recognizes the client's own limit, which is a status of gRPC.
func tooLargeToSend(err error) bool {
	return code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "larger than max")
}

func code(err error) codes.Code {
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return e.Code()
	}
	return status.Code(err)
}

func notFound(name string) *link.Error {
	return &link.Error{Kind: link.NotFound, Resource: name, Message: "does not exist"}
}
