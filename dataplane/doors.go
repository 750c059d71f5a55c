package dataplane

import (
	"context"
	"net"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/affleet/affleet/dataplane/internal/redirect"
	"github.com/affleet/affleet/dataplane/internal/table"
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
// that it takes over from serves, or until that one is gone. A state from the disk
// may be from any time: what counts is to have been level with a control plane. What
// came since that said where its head was follows at once; nothing says that it is all.
func (n *Node) settle(ctx context.Context) {
	select {
	case <-n.Ready():
	case <-ctx.Done():
		return
	}
	if n.served() {
		n.cfg.Log.Info("another process serves the address: it is taken over as soon as the state is level with a control plane's, or when that process ends")
	}
	tick := time.NewTicker(settled / 10)
	defer tick.Stop()
	caughtUp := n.feed.CaughtUp() // nil: it has been
	var start, since time.Time
	var version table.Version
	for n.served() && (caughtUp != nil || time.Since(since) < settled && time.Since(start) < unsettled) {
		select {
		case <-caughtUp:
			caughtUp, start = nil, time.Now()
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if v := n.live.Load().Version(); v != version || since.Before(start) {
			version, since = v, time.Now()
		}
	}
}

// served says whether another process serves one of the addresses that this one
// has claimed.
func (n *Node) served() bool {
	return slices.ContainsFunc(n.doors, func(d *door) bool { return d.claim.Served() })
}

// serve answers redirects until ctx ends. A claimed address that is served is opened
// only when the node has a state that is up to date: whoever serves it goes on for
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
