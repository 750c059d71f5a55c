package dataplane

import (
	"context"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/affleet/affleet/dataplane/internal/redirect"
)

// door is an address for redirects: a listener, or the claim to one.
type door struct {
	certs *redirect.Certs // nil: plain HTTP
	ln    net.Listener
	claim *redirect.Claim // until ln is there
}

func newDoor(addr string, shared bool) (d *door, err error) {
	d = &door{}
	if shared {
		d.claim, err = redirect.NewClaim(addr)
	} else {
		d.ln, err = redirect.Listen(addr)
	}
	return d, err
}

func (d *door) addr() net.Addr {
	if d.ln == nil {
		return d.claim.Addr()
	}
	return d.ln.Addr()
}

// open makes a listener of a claim.
func (d *door) open() (err error) {
	if d.ln == nil {
		d.ln, err = d.claim.Listen()
	}
	return err
}

func (d *door) close() error {
	if d.ln == nil {
		return d.claim.Close()
	}
	return d.ln.Close()
}

// openDoors opens the node's addresses, or claims them.
func (n *Node) openDoors() error {
	plain, err := newDoor(n.cfg.Listen, n.cfg.ReusePort)
	if err != nil {
		return err
	}
	n.doors = append(n.doors, plain)
	if n.cfg.ListenTLS == "" {
		return nil
	}
	secure, err := newDoor(n.cfg.ListenTLS, n.cfg.ReusePort)
	if err != nil {
		return err
	}
	n.doors = append(n.doors, secure)
	secure.certs, err = redirect.OpenCerts(n.cfg.TLSCerts)
	return err
}

// How long a state must not have changed before a claimed address is opened,
// and how long that is waited for where it changes all the time.
const (
	settled   = 300 * time.Millisecond
	unsettled = 5 * time.Second
)

// settle waits until the node has a state that is not older than what the one
// that it takes over from serves. The first state is a snapshot from some time
// ago, and what came since follows at once; nothing says that it is all.
func (n *Node) settle(ctx context.Context) {
	select {
	case <-n.Ready():
	case <-ctx.Done():
		return
	}
	tick := time.NewTicker(settled / 10)
	defer tick.Stop()
	version, since, start := n.live.Load().Version(), time.Now(), time.Now()
	for time.Since(since) < settled && time.Since(start) < unsettled {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if v := n.live.Load().Version(); v != version {
			version, since = v, time.Now()
		}
	}
}

// serve answers redirects until ctx ends. A claimed address is opened only when
// the node has a state that is up to date: whoever serves it now goes on for
// that long.
func (n *Node) serve(ctx context.Context) error {
	if n.cfg.ReusePort {
		n.settle(ctx)
	}
	for i, d := range n.doors {
		err := ctx.Err()
		if err == nil {
			err = d.open()
		}
		if err != nil {
			for _, d := range n.doors {
				_ = d.close()
			}
			if ctx.Err() != nil {
				err = nil
			}
			return err
		}
		n.cfg.Log.Info("listening", "listen", d.addr().String(), "tls", i > 0)
	}
	close(n.opened)
	doors, ctx := errgroup.WithContext(ctx)
	for _, d := range n.doors {
		doors.Go(func() error {
			if d.certs != nil {
				return n.redirects.ServeTLS(ctx, d.ln, d.certs, n.cfg.Drain)
			}
			return n.redirects.Serve(ctx, d.ln, n.cfg.Drain)
		})
	}
	return doors.Wait()
}
