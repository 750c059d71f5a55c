package controlplane

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// inbox is what a node says, received by a goroutine of its own: that ends with
// the stream, which ends when its handler returns.
type inbox struct {
	first  chan *feedv1.SubscribeRequest             // the first message
	handle chan func(*feedv1.SubscribeRequest) error // holds one: takes in the others
	failed chan error                                // holds one
}

func receiveFrom(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]) *inbox {
	in := &inbox{
		first: make(chan *feedv1.SubscribeRequest), handle: make(chan func(*feedv1.SubscribeRequest) error, 1), failed: make(chan error, 1),
	}
	go func() { in.failed <- in.receive(stream) }()
	return in
}

func (in *inbox) receive(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]) error {
	ctx := stream.Context()
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	var handle func(*feedv1.SubscribeRequest) error
	select {
	case in.first <- m:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	select {
	case handle = <-in.handle:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	for {
		if m, err = stream.Recv(); err != nil {
			return err
		}
		if err := handle(m); err != nil {
			return err
		}
	}
}
