package controlplane

import (
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
		log := snapshot.New(&source{timeline: newTimeline(1)}, snapshot.Config{})
		f := newFeed(log, newFleet(log, fleetConfig{}), feedConfig{})
		in := receiveFrom(lastWords{newPipe(t.Context(), f)})
		synctest.Wait() // nobody was there to take its words
		start := time.Now()
		_, err := f.hello(in)
		if status.Code(err) != codes.Canceled || time.Since(start) != 0 {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}
