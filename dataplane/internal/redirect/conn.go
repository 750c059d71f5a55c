package redirect

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// ending says whether and how a connection ends.
type ending uint8

const (
	open      ending = iota
	closeNow         // close it
	closeSoon        // the client may still be sending: let it read the answer first
	leave            // it does not end: a goroutine goes on with it, in place of its loop
)

const (
	// How long, and for how many bytes, a refused client is listened to.
	lingerTime  = time.Second
	lingerBytes = 256 << 10

	// How long a connection that has sent nothing yet may do so while its group
	// drains: its first request may be on its way.
	freshGrace = time.Second
)

// mostReads is after how many reads in a row, if none of them fills its buffer, a
// loop looks after its other connections. One that does may hold hundreds of
// requests.
const mostReads = 4

// past is a deadline that ends every wait.
var past = time.Unix(1, 0)

// conn is one connection. It belongs to its loop, or else to its goroutine; only
// the socket's read deadline is also moved by the group, to wake it, and the group
// may close it.
type conn struct {
	srv    *Server
	group  *group
	socket net.Conn        // nil while it is a loop's
	nc     net.Conn        // what requests come from: the socket, or TLS over it
	raw    syscall.RawConn // nil when the runtime's poller does not know it
	addr   netip.Addr      // whose connection it is: the peer's, or who that says

	loop  *loop // whose it is; nil: a goroutine's
	fd    int   // of a loop's, else 0
	place int   // in the loop's deadlines; negative: in none
	hup   bool  // a loop's: the client sends no more
	held  bool  // a loop's: it has answers of this connection that are not sent yet

	client      netip.Prefix // as whose it is counted
	expectProxy bool         // a PROXY protocol header must come first
	believed    bool         // what its requests say about their client
	secure      bool         // nc is TLS
	apart       atomic.Bool  // the group does not move its deadline: it shakes hands, or is a loop's

	end      ending
	served   bool   // at least one head was answered
	draining bool   // it has noticed that its group drains
	rest     []byte // the start of a head that is not complete; empty, not nil: it cannot be read yet
	left     []byte // of answers, when it leaves its loop
	since    int64  // when its first byte came, ns of the clock
	last     int64  // when the last bytes came, ns of the clock
	armed    int64  // what the read deadline was set to, ns of the clock
	writeBy  int64  // the write deadline, likewise
}

// arrival is what a read from a socket gave.
type arrival struct {
	in    []byte // as long as a head may be
	n     int
	errno syscall.Errno
}

// serve runs a new connection until it ends, or is another's.
func (c *conn) serve() {
	handed := false
	defer func() {
		if !handed {
			c.group.finish(c)
		}
	}()
	defer c.rescue()
	var first []byte
	if c.apart.Load() {
		var ok bool
		if first, ok = c.greet(); !ok {
			return
		}
		if handed = c.handToHTTP2() || c.handToLoop(first); handed {
			return
		}
	}
	c.run(first)
}

// goOn runs a connection that has left its loop.
func (c *conn) goOn() {
	defer c.group.finish(c)
	defer c.rescue()
	c.write(c.left)
	first := c.rest
	c.left, c.rest = nil, nil
	if c.end == leave {
		c.end = open
	}
	c.run(first)
}

// run answers what came first, and then what comes, until the connection ends.
func (c *conn) run(first []byte) {
	c.apart.Store(false)
	c.last, _ = c.srv.clock.read()
	c.arm(c.due(c.last))
	if c.end == open {
		c.begin(first)
	}
	wait := c.readBlocking
	if c.raw = rawConn(c.nc); c.raw != nil {
		ready := c.ready // the one closure of the connection
		wait = func() error { return c.raw.Read(ready) }
	}
	for c.end == open {
		err := wait()
		if err == nil || c.end != open {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		c.expired()
	}
	if c.end == closeSoon {
		c.linger()
	}
}

// begin answers what came first, if anything: with a PROXY protocol header, or to a loop.
func (c *conn) begin(first []byte) {
	if len(first) == 0 {
		return
	}
	w := c.srv.works.Get().(*work)
	n := copy(w.in, first)
	c.keep(w, c.answer(w, uintptr(c.fd), 0, n, c.group.draining.Load()))
	w.forget()
	c.srv.works.Put(w)
}

// rescue ends a connection whose goroutine panicked, and that one only.
func (c *conn) rescue() {
	if recover() != nil {
		c.srv.conns.panics.Add(1)
	}
}

// rawConn gives access to the descriptor of a connection of the runtime's
// poller, nil when it has none.
func rawConn(nc net.Conn) syscall.RawConn {
	s, ok := nc.(syscall.Conn)
	if !ok || !polled {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// pending says whether the socket has input that nobody has read. Reading itself does
// not tell: it fails at once when the deadline has passed.
func (c *conn) pending() (has bool) {
	if raw := rawConn(c.socket); raw != nil {
		_ = raw.Control(func(fd uintptr) { has = unread(fd) > 0 }) // fails when it is closed
	}
	return has
}

// ready is called when the socket may have input, with the descriptor held. It
// gives true when the connection ends, and false to be called again.
func (c *conn) ready(fd uintptr) bool {
	w := c.srv.works.Get().(*work)
	ended := c.read(w, fd, nil)
	c.srv.works.Put(w)
	return ended
}

// read answers what has arrived. It gives true when the connection ends, or is
// its loop's no more. First is what has been read into w.in already, if that is so.
//
// A socket is reported once for each arrival, so it reads until nothing is left.
// When a read did not fill its buffer and all of it was answered, then nothing
// is: what comes later is reported. Only an end that came with those bytes has
// been reported already: that of a client that closes its side before it has its
// answer, and has not said so in the head. A loop is told of it. The runtime's
// poller does not pass it on, and to find out at once would take one more read
// for each request; so the next look is when the read deadline passes, which is
// made to be soon.
func (c *conn) read(w *work, fd uintptr, first *arrival) bool {
	n := copy(w.in, c.rest)
	seen := n
	for reads := 1; c.end == open; reads++ {
		room := len(w.in) - n
		var m int
		var errno syscall.Errno
		if first != nil {
			m, errno, first = first.n, first.errno, nil
		} else {
			m, errno = recv(fd, w.in[n:])
		}
		n += m
		final := c.group.draining.Load()
		if final && m > 0 && n < len(w.in) {
			continue // which request is the last, only all of them can tell
		}
		if n > seen {
			n = c.answer(w, fd, seen, n, final)
			seen = n
		}
		if 0 < m && m < room && n == 0 && !c.hup {
			if soon := w.mono + int64(c.srv.cfg.lookAgain); c.loop == nil && soon < c.armed && c.end == open {
				c.arm(soon)
			}
			break
		}
		if m == 0 {
			if errno != syscall.EAGAIN && c.end == open {
				c.end = closeNow
			}
			break
		}
		if c.loop != nil && (m == room || reads >= mostReads) && c.end == open {
			c.loop.lookAgain(c)
			break
		}
	}
	c.keep(w, n)
	return c.end != open
}

// readBlocking does the same for a connection that the poller does not know. Of a work
// in which something panicked, as everywhere, nobody knows what it was left in: it may
// have answers that are this client's, and is nobody's any more.
func (c *conn) readBlocking() error {
	w := c.srv.works.Get().(*work)
	w.forget() // an old table must not live as long as this connection waits
	n := copy(w.in, c.rest)
	m, err := c.nc.Read(w.in[n:])
	if m > 0 {
		c.keep(w, c.answer(w, 0, n, n+m, c.group.draining.Load()))
	}
	w.forget()
	c.srv.works.Put(w)
	return err
}

// answer answers the complete heads in w.in[:n], of which the bytes before
// seen have been looked at in vain, with one write. It moves what is left to
// the front of w.in and gives its length. Final says that the last complete
// head is the connection's last, unless w.in is full: there may be more then.
func (c *conn) answer(w *work, fd uintptr, seen, n int, final bool) int {
	w.begin(c.srv)
	c.last = w.mono
	full := n == len(w.in)
	if seen > 0 && !full && !mayEnd(w.in[max(0, seen-2):n]) {
		return n // a head in crumbs is not parsed for each
	}
	used := 0
	for c.end == open && used < n {
		size, why := w.head.parse(w.in[used:n])
		if why == accepted && size == 0 {
			if used > 0 || !full {
				break
			}
			if why = longHead; bytes.IndexByte(w.in[:n], '\n') < 0 {
				why = longTarget
			}
		}
		used += size
		if why == accepted {
			if final && !full && !mayEnd(w.in[used:n]) {
				w.head.closing = true
			}
			why = w.answer(c)
		}
		if why != accepted {
			w.refuse(why)
			w.write()
			c.end = closeSoon
		} else if w.head.closing {
			c.end = closeNow
			if used < n || full || final {
				c.end = closeSoon
			}
		}
		if len(w.out) >= maxOut {
			c.flush(w, fd)
		}
	}
	c.flush(w, fd)
	if used == 0 {
		return n
	}
	c.served = true
	c.since = w.mono
	return copy(w.in, w.in[used:n])
}

// mayEnd says whether b has what a head could end with, be it malformed.
func mayEnd(b []byte) bool {
	return bytes.Contains(b, []byte("\n\r\n")) || bytes.Contains(b, []byte("\n\n"))
}

// flush sends w.out, at once or soon.
func (c *conn) flush(w *work, fd uintptr) {
	out := w.out
	w.out = w.out[:0]
	if len(out) > 0 && (c.loop == nil || !c.loop.hold(c, out)) {
		c.post(fd, out)
	}
}

// post sends answers. What the socket does not take at once is sent as it does,
// for at most the write timeout.
func (c *conn) post(fd uintptr, out []byte) {
	if fd != 0 && len(c.left) == 0 {
		n, errno := send(fd, out)
		if n == len(out) {
			return
		}
		if errno != 0 && errno != syscall.EAGAIN {
			c.end = closeNow
			return
		}
		out = out[n:]
	}
	if c.loop != nil {
		c.left = append(c.left, out...)
		if c.end == open {
			c.end = leave // a loop waits for nobody
		}
		return
	}
	c.write(out)
}

// write sends what the socket takes within the write timeout.
func (c *conn) write(out []byte) {
	if len(out) == 0 {
		return
	}
	now, _ := c.srv.clock.read()
	c.mayWrite(now)
	if _, err := c.nc.Write(out); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.srv.conns.writeTimeouts.Add(1)
		}
		c.end = closeNow
	}
}

// mayWrite gives what is written from now on the write timeout.
func (c *conn) mayWrite(now int64) {
	c.writeBy = now + int64(c.srv.cfg.WriteTimeout)
	_ = c.nc.SetWriteDeadline(c.srv.clock.start.Add(time.Duration(c.writeBy)))
}

// keep leaves the n bytes of an incomplete head with the connection, and sees
// to it that the head is complete in time.
func (c *conn) keep(w *work, n int) {
	switch {
	case c.end == leave:
		c.rest = append(c.rest[:0], w.in[:n]...)
	case c.end != open:
	case n == 0:
		if c.rest != nil {
			w.giveRest(c.rest)
			c.rest = nil
		}
		if c.draining && c.served {
			c.end = closeNow
		}
	case c.rest != nil:
		c.rest = append(c.rest[:0], w.in[:n]...)
	default:
		c.since = w.mono
		c.rest = append(w.takeRest(), w.in[:n]...)
		c.arm(c.due(w.mono))
	}
}

// hear is told whether a record of TLS is there in part, before the socket is read.
// Nothing of it can be read yet, and a head has begun all the same: it has to be
// complete in time.
func (c *conn) hear(partly bool) {
	if c.end != open || c.apart.Load() || len(c.rest) > 0 || partly == (c.rest != nil) {
		return
	}
	now, _ := c.srv.clock.read()
	c.rest = nil
	if partly {
		c.rest, c.since = []byte{}, now
	}
	c.arm(c.due(now))
}

// due gives the moment until which the connection may wait, in ns of the
// clock.
func (c *conn) due(now int64) int64 {
	switch {
	case c.rest != nil:
		return c.since + int64(c.srv.cfg.HeadTimeout)
	case c.draining:
		return now + int64(freshGrace)
	default:
		return c.last + int64(c.srv.cfg.IdleTimeout)
	}
}

// arm sets the read deadline to a moment of the clock. It costs too much to be
// done for each request, so a deadline that passes is usually early, and
// expired sets the next.
func (c *conn) arm(at int64) {
	c.armed = at
	if c.loop != nil {
		c.loop.deadlines.set(c)
		return
	}
	_ = c.nc.SetReadDeadline(c.srv.clock.start.Add(time.Duration(at)))
	if !c.draining && c.group.draining.Load() {
		_ = c.nc.SetReadDeadline(past) // the group may have done so just before
	}
}

// expired says, when the read deadline has passed, whether the connection's
// time is over: then it ends. If not, it sets the next deadline.
func (c *conn) expired() bool {
	now, _ := c.srv.clock.read()
	due := c.due(now)
	if c.group.draining.Load() {
		if c.rest == nil && (c.draining || c.raw == nil && c.loop == nil && c.served && !c.pending()) {
			c.end = closeNow
			return true
		}
		c.draining = true
		due = c.due(now)
	}
	if now < due {
		c.arm(due)
		return false
	}
	if c.rest != nil {
		c.srv.conns.headTimeouts.Add(1)
		c.refuseLate()
	} else {
		c.srv.conns.idleTimeouts.Add(1)
	}
	if c.end == open {
		c.end = closeNow
	}
	return true
}

// refuseLate says what is wrong with a head that has not become complete, if that is
// known by now: as it went on, it was not parsed again.
func (c *conn) refuseLate() {
	w := c.srv.works.Get().(*work)
	c.answer(w, uintptr(c.fd), 0, copy(w.in, c.rest), false)
	w.forget()
	c.srv.works.Put(w)
}

// linger closes the writing side and reads on for a moment: closing a socket
// that has unread input resets it, and the client would lose the answer.
func (c *conn) linger() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(lingerTime))
	var buf [1024]byte
	for left := lingerBytes; left > 0; {
		n, err := c.nc.Read(buf[:])
		if err != nil {
			return
		}
		left -= n
	}
}
