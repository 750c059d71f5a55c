package redirect

import (
	"bytes"

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
	var last table.Ahead
	for i := range events {
		next := l.arrivals[i].read(l.conns[events[i].Fd], t)
		last.Entry()
		last = next
	}
	last.Entry()
	for i := range events {
		var first *arrival
		if a := &l.arrivals[i]; a.n >= 0 {
			first = a
			l.work.in, a.in = a.in, l.work.in
		}
		l.serve(l.conns[events[i].Fd], events[i].Events&ended != 0, first)
	}
}

// read reads from a connection that has nothing unanswered, and asks for its link.
// It sets n to a negative number when it does not.
func (a *arrival) read(c *conn, t *table.Table) table.Ahead {
	a.n = -1
	if c.rest != nil {
		return table.Ahead{}
	}
	a.n, a.errno = recv(uintptr(c.fd), a.in)
	host, path := glimpse(a.in[:a.n])
	if path == nil || t == nil {
		return table.Ahead{}
	}
	return t.Ahead(host, path)
}

// glimpse guesses what a head asks for, which begins as those of most clients do:
// nil when it does not.
func glimpse(head []byte) (host, path []byte) {
	const method, between = "GET ", " HTTP/1.1\r\nHost: "
	if !bytes.HasPrefix(head, []byte(method)) {
		return nil, nil
	}
	target, _, _ := bytes.Cut(head[len(method):], []byte(" "))
	rest := head[len(method)+len(target):]
	if !bytes.HasPrefix(rest, []byte(between)) {
		return nil, nil
	}
	host, _, ok := bytes.Cut(rest[len(between):], []byte("\r"))
	if !ok {
		return nil, nil
	}
	path, _, _ = bytes.Cut(target, []byte("?"))
	return host, path
}
