package controlplane

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// request is a message to be received whose decoding may fail: codec keeps the
// error here, because what gRPC makes of one is always INTERNAL.
type request struct {
	message any
	err     error
}

// receive receives a message. One that cannot be decoded, for example because
// a string in it is not UTF-8, is the caller's mistake.
func receive(recv func(any) error, message any) error {
	r := request{message: message}
	if err := recv(&r); err != nil {
		return err
	}
	if r.err == nil {
		return nil
	}
	// Protobuf marks its errors with a space that differs from build to build.
	text := strings.TrimPrefix(strings.ReplaceAll(r.err.Error(), "\u00a0", " "), "proto: ")
	return status.Error(codes.InvalidArgument, "the request cannot be read: "+text)
}

// receiving gives a service whose requests are received so. Its server needs
// newCodec.
func receiving(service grpc.ServiceDesc) *grpc.ServiceDesc {
	methods := append([]grpc.MethodDesc(nil), service.Methods...)
	for i := range methods {
		handle := methods[i].Handler
		methods[i].Handler = func(srv any, ctx context.Context, recv func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			return handle(srv, ctx, func(m any) error { return receive(recv, m) }, interceptor)
		}
	}
	streams := append([]grpc.StreamDesc(nil), service.Streams...)
	for i := range streams {
		handle := streams[i].Handler
		streams[i].Handler = func(srv any, stream grpc.ServerStream) error {
			return handle(srv, receivingStream{stream})
		}
	}
	service.Methods, service.Streams = methods, streams
	return &service
}

type receivingStream struct{ grpc.ServerStream }

func (s receivingStream) RecvMsg(m any) error { return receive(s.ServerStream.RecvMsg, m) }
