package controlplane

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/affleet/affleet/controlplane/internal/replica"
)

// A replica that is listed and does not answer is silent: it may have nodes, and
// nobody else knows what they serve. Whoever lists nodes is told so, and whoever
// waits for a version waits for it, until
//
//   - it answers;
//   - it is listed no longer: its lease has ended, 10 s after its process at the
//     latest, or the replica has taken itself off the list, as one does that stops;
//   - it is known to be gone, which is sooner: see goneAfter.
//
// A replica that cannot be reached may live, and go on with its nodes. So it is
// with a connection that is refused, which a firewall or a wrong advertised
// address may do for ever: that counts only at an address that has answered.

// goneAfter is how many times in a row an address has to refuse a connection
// until nobody is there, a PeerTimeout apart. The first time, nodes that were cut
// off with the replica may not have found another one, and a process that is
// being stopped still has them for half a second.
const goneAfter = 2

// listed are the other replicas, as they are known now.
func (f *fleet) listed() []replica.Peer {
	if f.cfg.Peers == nil {
		return nil
	}
	return f.cfg.Peers.Peers()
}

// at is a replica, for people.
func at(p replica.Peer) string { return p.ID + " at " + p.Address }

// doesNotAnswer says that a replica is silent.
func doesNotAnswer(at string) string { return "replica " + at + " does not answer" }

// notListed is the alarm for a list of nodes that lacks those of a replica.
func notListed(p replica.Peer) string { return doesNotAnswer(at(p)) + ": its nodes are not listed" }

// closed says whether an address that has answered refuses connections now.
func (f *fleet) closed(ctx context.Context, p replica.Peer) bool {
	return f.conns.hasAnswered(p.Address) && refused(ctx, p.Address, f.cfg.PeerTimeout)
}

// refused says whether nobody listens at an address: at none of those that its
// host stands for.
func refused(ctx context.Context, address string, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ips, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return false
	}
	var d net.Dialer
	for _, ip := range ips {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(ip, port))
		if err == nil {
			_ = conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return false
		}
	}
	return len(ips) > 0
}
