package redirect

import (
	"golang.org/x/sys/unix"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// mostAhead is how many connections are read before the first of them is answered:
// their heads fit into a core's first cache.
const mostAhead = 16

// serveAll answers what some connections have sent, one after the other. All of it
// is read before, and each link asked for: of a million, it is not in a cache, and
// to wait for memory is a tenth of what an answer takes. That is on its way while
// others are read.
//
// Between reading and answering nothing happens to a connection but that others are
// answered, and no answer of its own is held: it does not end, or leave the loop.
func (l *loop) serveAll(events []unix.EpollEvent) {
	const ended = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	if len(events) == 1 {
		l.serve(l.conns[events[0].Fd], events[0].Events&ended != 0, nil)
		return
	}
	t := l.group.srv.cfg.Live.Load()
	for i := range events {
		l.arrivals[i].read(l.conns[events[i].Fd], t)
		if i > 0 {
			l.arrivals[i-1].link.Entry()
		}
	}
	l.arrivals[len(events)-1].link.Entry()
	for i := range events {
		a := &l.arrivals[i]
		first := a
		if a.n < 0 {
			first = nil
		} else {
			l.work.in, a.in = a.in, l.work.in
		}
		l.serve(l.conns[events[i].Fd], events[i].Events&ended != 0, first)
	}
}

// read reads from a connection that has nothing unanswered.
func (a *arrival) read(c *conn, t *table.Table) {
	a.n, a.link = -1, table.Ahead{}
	if c.rest != nil {
		return
	}
	a.n, a.errno = recv(uintptr(c.fd), a.in)
	if host, path := glimpse(a.in[:a.n]); path != nil && t != nil {
		a.link = t.Ahead(host, path)
	}
}
