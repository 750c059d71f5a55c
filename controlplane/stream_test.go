package controlplane

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/controlplane/internal/snapshot"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// lastWords is a stream that is gone the moment it has said something.
type lastWords struct{ *pipe }

func (s lastWords) Recv() (*feedv1.SubscribeRequest, error) {
	s.cancel()
	return &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: &feedv1.Hello{Node: "n", Region: "r"}}}, nil
}

func TestStreamThatIsGoneIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipe{down: make(chan []byte), up: make(chan *feedv1.SubscribeRequest)}
		p.ctx, p.cancel = context.WithCancel(t.Context())
		in := receiveFrom(lastWords{p})
		synctest.Wait() // nobody was there to take its words
		log := snapshot.New(&source{timeline: newTimeline(1)}, snapshot.Config{})
		start := time.Now()
		_, err := newFeed(log, newFleet(log, fleetConfig{}), feedConfig{}).hello(in)
		if status.Code(err) != codes.Canceled || time.Since(start) != 0 {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}
