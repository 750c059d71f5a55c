// Package feedserver serves a FeedService that is made for one measurement, in place
// of a control plane's.
package feedserver

import (
	"net"

	"google.golang.org/grpc"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// Start serves feed on a listener, which it closes, until stop is called.
func Start(ln net.Listener, feed feedv1.FeedServiceServer) (stop func()) {
	server := grpc.NewServer()
	feedv1.RegisterFeedServiceServer(server, feed)
	ended := make(chan struct{})
	go func() {
		_ = server.Serve(ln) // until Stop
		close(ended)
	}()
	return func() {
		server.Stop()
		<-ended
	}
}
