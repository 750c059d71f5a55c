package store

import (
	"errors"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/proto/link"
)

func TestErrorsOfAWriteSayWhatIsKnownOfIt(t *testing.T) {
	s := &Store{client: clientv3.NewCtxClient(t.Context())}
	for _, c := range []struct {
		err  error
		kind link.ErrorKind
		says string
	}{
		{status.Error(codes.Unavailable, "connection refused"), link.Unavailable, "may or may not have been"},
		{status.Error(codes.Internal, "stream terminated by RST_STREAM with error code: INTERNAL_ERROR"), link.Unavailable, "may or may not have been"},
		{rpctypes.ErrTooManyRequests, link.Unavailable, "may or may not have been"},
		{rpctypes.ErrNoSpace, link.ResourceExhausted, "is full"},
		{rpctypes.ErrRequestTooLarge, link.Invalid, "one transaction"},
		{status.Error(codes.ResourceExhausted, "trying to send message larger than max"), link.Invalid, "one transaction"},
		{rpctypes.ErrPermissionDenied, link.Internal, "refused to write"},
	} {
		var e *link.Error
		if err := s.fail(t.Context(), "write", c.err); !errors.As(err, &e) || e.Kind != c.kind || !strings.Contains(e.Message, c.says) {
			t.Errorf("of %v: %v", c.err, err)
		}
	}
}
