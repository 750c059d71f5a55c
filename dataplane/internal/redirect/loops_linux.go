package redirect

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// serveLoops is serve with event loops. It gives false when there can be none,
// and has done nothing then.
func (g *group) serveLoops(ctx context.Context, ln *net.TCPListener, last, drain time.Duration) (served bool, err error) {
	listener := duplicate(ln)
	if listener < 0 {
		return false, nil
	}
	g.failed = make(chan error, 1)
	if !g.openLoops(listener) {
		_ = unix.Close(listener)
		return false, nil
	}
	_ = ln.Close() // the runtime's poller need not hear of connections
	g.hushed.Add(len(g.loops))
	g.unbegun.Add(len(g.loops))
	var ended sync.WaitGroup
	for _, l := range g.loops {
		ended.Go(l.run)
	}
	if g.srv.cfg.LoopsFirst {
		g.unbegun.Wait()
		threads := make([]int, 0, len(g.loops))
		for _, l := range g.loops {
			threads = append(threads, l.thread)
		}
		var may bool
		g.othersNice, may = goBefore(threads)
		g.mayRise.Store(may)
	}
	if len(g.loops) == 1 {
		g.srv.lone(g.loops[0])
	}
	select {
	case <-ctx.Done():
		g.wake()
		if last > 0 {
			_ = turnAwayFrom(listener) // best effort, as with turnAway
			time.Sleep(last)
		}
	case err = <-g.failed:
		err = fmt.Errorf("accept on %s: %w", ln.Addr(), err)
		g.wake()
	}
	g.deaf.Store(true)
	g.nudge()
	g.hushed.Wait()
	_ = unix.Close(listener)
	g.drain(drain - last)
	g.over.Store(true)
	g.nudge()
	ended.Wait()
	for _, l := range g.loops {
		l.close()
	}
	return true, err
}

// openLoops opens as many loops as there are to be, or none.
func (g *group) openLoops(listener int) bool {
	for range g.srv.cfg.Loops {
		l, err := newLoop(g, listener)
		if err != nil {
			for _, l := range g.loops {
				l.close()
			}
			g.loops = nil
			return false
		}
		g.loops = append(g.loops, l)
	}
	return true
}

// fail ends the group's serving: a loop cannot accept.
func (g *group) fail(err error) {
	select {
	case g.failed <- err:
	default: // one is enough
	}
}

// handToLoop gives a connection that has said whose it is to a loop.
func (c *conn) handToLoop(first []byte) bool {
	tcp, ok := c.nc.(*net.TCPConn)
	if len(c.group.loops) == 0 || !ok {
		return false
	}
	fd := duplicate(tcp)
	if fd < 0 {
		return false
	}
	c.group.unsettle(c)
	_ = tcp.Close()
	to := c.group.emptiest()
	c.loop, c.fd, c.place, c.rest = to, fd, -1, first
	to.adopt(c)
	return true
}

// duplicate gives another descriptor of a socket, -1 if there is none to be had.
func duplicate(c syscall.Conn) int {
	fd := -1
	_ = control(c, func(from int) (err error) { // it stays -1
		fd, err = unix.FcntlInt(uintptr(from), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	return fd
}

// emptiest is the loop that has the fewest connections.
func (g *group) emptiest() *loop {
	return slices.MinFunc(g.loops, func(a, b *loop) int { return cmp.Compare(a.open.Load(), b.open.Load()) })
}

// connOf makes a connection of the runtime's of a descriptor, which is no more
// valid then.
func connOf(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "connection "+strconv.Itoa(fd))
	defer f.Close()
	return net.FileConn(f)
}

// peerAddr gives the address of a peer, the zero Addr when it is none of TCP.
func peerAddr(peer unix.Sockaddr) netip.Addr {
	switch a := peer.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(a.Addr)
		if a.ZoneId != 0 && !addr.Is4In6() {
			addr = addr.WithZone(zoneName(a.ZoneId))
		}
		return addr.Unmap()
	}
	return netip.Addr{}
}

// zoneName is what the zone of a link-local address is called.
func zoneName(id uint32) string {
	if ifi, err := net.InterfaceByIndex(int(id)); err == nil {
		return ifi.Name
	}
	return strconv.FormatUint(uint64(id), 10)
}
