package redirect

import (
	"context"
	"net"
)

// Listen opens a TCP address for a Server. Nobody else may serve it.
func Listen(addr string) (net.Listener, error) {
	lc := listenConfig(false)
	return lc.Listen(context.Background(), "tcp", addr)
}
