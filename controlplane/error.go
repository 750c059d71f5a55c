package controlplane

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/affleet/affleet/controlplane/internal/store"
	"github.com/affleet/affleet/proto/link"
)

// errorDomain is the domain of every ErrorInfo.
const errorDomain = "affleet"

// errorCodes gives each kind of domain error its code, and the reason in its
// ErrorInfo.
var errorCodes = map[link.ErrorKind]struct {
	code   codes.Code
	reason string
}{
	link.Invalid:            {codes.InvalidArgument, "INVALID"},
	link.Unimplemented:      {codes.Unimplemented, "UNIMPLEMENTED"},
	link.NotFound:           {codes.NotFound, "NOT_FOUND"},
	link.AlreadyExists:      {codes.AlreadyExists, "ALREADY_EXISTS"},
	link.Aborted:            {codes.Aborted, "ABORTED"},
	link.FailedPrecondition: {codes.FailedPrecondition, "FAILED_PRECONDITION"},
	link.OutOfRange:         {codes.OutOfRange, "OUT_OF_RANGE"},
	link.Unavailable:        {codes.Unavailable, "UNAVAILABLE"},
	link.ResourceExhausted:  {codes.ResourceExhausted, "RESOURCE_EXHAUSTED"},
}

// grpcError makes any error a gRPC status; it is the one place that does. A
// domain error, or several joined, becomes a status with a BadRequest that has
// a violation for each field at fault, and an ErrorInfo for the resource, the
// hint and the etag of the first of them. What is a status stays one; the
// context's errors have their own codes. Everything else is INTERNAL: the
// caller learns nothing more, and the log learns the cause.
func grpcError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*link.Error](err); ok {
		return domainError(err) // first: its cause may be a status, of etcd's
	}
	_, isStatus := status.FromError(err)
	switch {
	case isStatus:
		return err
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the call was canceled")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the call took longer than its deadline")
	case errors.Is(err, store.ErrCompacted):
		return domainError(&link.Error{
			Kind: link.OutOfRange, Message: "etcd has compacted the revision away",
			Hint: "export or list again, and watch from that revision on",
		})
	}
	return internalError(err)
}

func internalError(err error) error {
	slog.Error("internal error", "error", err)
	return status.Error(codes.Internal, "internal error; the log of the control plane says more")
}

func domainError(err error) error {
	problems := link.Problems(err)
	first := problems[0]
	as, ok := errorCodes[first.Kind]
	if !ok {
		return internalError(errors.Join(err, first.Err))
	}
	details := []protoadapt.MessageV1{protoadapt.MessageV1Of(errorInfo(as.reason, first))}
	if fields := badRequest(problems); fields != nil {
		details = append(details, protoadapt.MessageV1Of(fields))
	}
	st := status.New(as.code, errorMessage(problems))
	if full, err := st.WithDetails(details...); err == nil {
		st = full
	}
	return st.Err()
}

func errorInfo(reason string, e *link.Error) *errdetails.ErrorInfo {
	info := &errdetails.ErrorInfo{Reason: reason, Domain: errorDomain, Metadata: make(map[string]string)}
	for key, value := range map[string]string{"resource": e.Resource, "hint": e.Hint, "etag": e.Etag} {
		if value != "" {
			info.Metadata[key] = said(value)
		}
	}
	return info
}

// badRequest has a violation for each problem that has a field.
func badRequest(problems []*link.Error) *errdetails.BadRequest {
	var all errdetails.BadRequest
	for _, p := range problems {
		if p.Field == "" {
			continue
		}
		all.FieldViolations = append(all.FieldViolations, &errdetails.BadRequest_FieldViolation{
			Field: p.Field, Description: said(p.Message),
		})
	}
	if all.FieldViolations == nil {
		return nil
	}
	return &all
}

// maxMessages is how many problems a status's message spells out.
const maxMessages = 10

func errorMessage(problems []*link.Error) string {
	var lines []string
	for _, p := range problems[:min(len(problems), maxMessages)] {
		lines = append(lines, said(p.Error()))
	}
	if len(problems) > maxMessages {
		lines = append(lines, "and more")
	}
	return strings.Join(lines, "; ")
}

// maxSaid is how many bytes of a text a status says: it may name what the caller sent,
// of any length, and comes in headers, of which clients bound the size.
const maxSaid = 4 << 10

func said(s string) string {
	if len(s) > maxSaid {
		s = s[:maxSaid] + "..."
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
