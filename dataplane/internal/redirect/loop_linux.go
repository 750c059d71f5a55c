package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/affleet/affleet/dataplane/internal/aside"
)

// loop serves many connections from one goroutine: it asks the kernel which of
// them have input and answers that, one after the other. A goroutine for each,
// which the runtime's poller wakes, goes through the scheduler for each arrival, and
// whatever else computes on the same core holds it up until the scheduler looks.
//
// While it has work, a loop does not tell the scheduler that it waits, and so
// keeps its P: to give it up and to get it back would cost as much as the rest.
// The kernel shares the core between the loop's thread, which it lets go first, and
// those of the other Ps.
// A loop that has been idle for 10 ms is interrupted by the runtime's monitor, and
// waits as any goroutine does.
//
// What has to wait is not a loop's: a connection whose client does not read its
// answers, is refused, or is still to say whose it is, has a goroutine.
type loop struct {
	group *group
	epoll int
	call  int // eventfd: the group, or somebody's mail, is to be looked at
	timer int // timerfd: the first deadline has passed
	open  atomic.Int64

	mu   sync.Mutex
	mail []*conn // taken over from others

	errand  atomic.Pointer[errand] // that waits, or is being run; see Beside
	lending sync.Mutex             // of who asks for one, and of the loop when it ends: until then it waits for nobody
	ended   bool                   // it runs no more; under lending

	// Of its goroutine.
	events    []unix.EpollEvent
	conns     []*conn // by descriptor
	deadlines deadlines
	timerAt   int64     // what the timer is set to, ns of the clock
	again     []*conn   // there is more to read
	others    []*conn   // room for the next of these
	due       *errand   // to be run behind this turn
	dueUntil  int64     // when that is to end, ns of the clock
	work      *work     // while there are events
	arrivals  []arrival // of those that are read before the first is answered
	held      []answer  // not sent yet; see hold
	outbox    []byte    // of what is held
	serving   *conn     // whose requests are answered now
	thread    int       // its number in the kernel
	waits     int       // in a row, for room in the spool
	standing  standing
	listener  int   // negative: it accepts no more
	acceptAt  int64 // when it accepts again; never: it does
	pause     time.Duration
	drained   bool // connections know that the group drains
	deaf      bool // it has accepted all that there will be
}

const (
	loopEvents = 128

	forRoom   = 500 * time.Microsecond // a wait for room in the spool
	mostWaits = 200                    // in a row

	// A new connection goes to another loop if that has so many less.
	unequal = 16
)

// newLoop opens a loop that accepts from a listener.
func newLoop(g *group, listener int) (*loop, error) {
	l := &loop{
		group: g, epoll: -1, call: -1, timer: -1, listener: listener, timerAt: never, acceptAt: never,
		arrivals: make([]arrival, mostAhead), held: make([]answer, 0, mostHeld), outbox: make([]byte, 0, mostHeld*longHeld),
	}
	for i := range l.arrivals {
		l.arrivals[i].in = make([]byte, g.srv.cfg.MaxHead)
	}
	if err := l.begin(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// begin opens what the loop asks the kernel with. What is open when it fails is for
// close.
func (l *loop) begin() (err error) {
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	if l.call, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	if l.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return fmt.Errorf("timerfd: %w", err)
	}
	for _, fd := range []int{l.call, l.timer} {
		if err := l.watch(fd, unix.EPOLLIN); err != nil {
			return err
		}
	}
	return l.listen()
}

func (l *loop) close() {
	for _, fd := range []int{l.epoll, l.call, l.timer} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

func (l *loop) watch(fd int, events uint32) error {
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil { //nolint:gosec // a descriptor
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

func (l *loop) unwatch(fd int) {
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, fd, nil) // fails only for what is not watched
}

// listen makes the kernel tell one loop of several of a new connection.
func (l *loop) listen() error { return l.watch(l.listener, unix.EPOLLIN|unix.EPOLLEXCLUSIVE) }

// nudge makes the loop look at what others want. Any goroutine may call it.
func (l *loop) nudge() {
	one := binary.NativeEndian.AppendUint64(nil, 1)
	_, _ = unix.Write(l.call, one) // fails only when the count is full, and then it looks
}

// adopt gives the loop a connection. Any goroutine may call it, until all of the
// group's connections have ended.
func (l *loop) adopt(c *conn) {
	l.mu.Lock()
	l.mail = append(l.mail, c)
	l.mu.Unlock()
	l.nudge()
}

// run serves until the group is over.
func (l *loop) run() {
	runtime.LockOSThread() // the thread ends with the goroutine
	l.thread = unix.Gettid()
	aside.TakeTurns(0, aside.LoopTurn)
	defer aside.KeepP()()
	l.group.unbegun.Done()
	l.events = make([]unix.EpollEvent, loopEvents)
	patient := false // it waits as any goroutine does
	for !l.group.over.Load() {
		l.setTimer()
		timeout := -1
		if len(l.again) > 0 {
			timeout = 0
		}
		n, errno := l.wait(timeout, patient)
		if patient = errno == unix.EINTR; patient {
			runtime.Gosched() // the scheduler has asked for it
			continue
		}
		l.turn(n)
		l.runErrand()
	}
	l.refuseErrands()
}

// turn does what the first n events are about, and then what connections had more of.
func (l *loop) turn(n int) {
	l.work = l.group.srv.works.Get().(*work)
	again := l.again
	l.again, l.others = l.others[:0], again
	for at := 0; at < n; {
		at += l.handle(l.events[at:n])
	}
	for _, c := range again {
		if c.loop == l {
			l.serve(c, false, nil)
		}
	}
	clear(again)
	l.sendHeld()
	l.group.srv.works.Put(l.work)
	l.work = nil
	l.giveWay()
	l.weigh()
}

// giveWay waits a moment when clicks come quicker than the spool gets room for them:
// on a core that is full, what makes room has only a share of it. It does not wait
// for a disk that has stopped.
func (l *loop) giveWay() {
	switch {
	case !l.group.srv.cfg.Clicks.Short():
		l.waits = 0
	case l.waits < mostWaits:
		l.waits++
		l.group.srv.conns.roomWaits.Add(1)
		time.Sleep(forRoom)
	}
}

// wait asks for events, and waits for them unless timeout is 0. It fails when it is
// interrupted.
func (l *loop) wait(timeout int, patient bool) (int, syscall.Errno) {
	events := l.events
	var n uintptr
	var errno syscall.Errno
	if patient {
		n, _, errno = syscall.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(timeout), 0, 0)
	} else {
		n, _, errno = syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(timeout), 0, 0)
	}
	if errno != 0 {
		n = 0
	}
	return int(n), errno
}

// handle does what the first event is about, or the first few where those are of
// connections. It gives how many that were.
func (l *loop) handle(events []unix.EpollEvent) (done int) {
	for done < min(len(events), mostAhead) && l.conn(int(events[done].Fd)) != nil {
		done++
	}
	if done > 0 {
		l.serveAll(events[:done])
		return done
	}
	l.sendHeld() // what follows may take longer than answers do
	switch int(events[0].Fd) {
	case l.listener:
		l.accept()
	case l.call:
		l.attend()
	case l.timer:
		l.expire()
	default: // a connection that has ended since, or the listener, of which no more is heard
	}
	l.sendHeld() // connections that were looked at may be among the next: see serveAll
	return 1
}

// conn is the connection with a descriptor, nil when there is none.
func (l *loop) conn(fd int) *conn {
	if fd < len(l.conns) {
		return l.conns[fd]
	}
	return nil
}

// serve answers what a connection has sent, of which first has been read.
func (l *loop) serve(c *conn, hup bool, first *arrival) {
	defer l.rescue(c)
	c.hup = c.hup || hup
	l.serving = c
	ended := c.read(l.work, uintptr(c.fd), first)
	l.serving = nil
	if ended {
		l.end(c)
	}
}

// rescue ends a connection that panicked, and that one only.
func (l *loop) rescue(c *conn) {
	if recover() == nil {
		return
	}
	l.serving = nil
	l.work = l.group.srv.newWork().(*work) // what the other was left in, nobody knows
	l.group.srv.conns.panics.Add(1)
	if c.loop == l {
		c.end, c.left = closeNow, nil
		l.end(c)
	}
}

// end lets go of a connection: it is closed, or a goroutine goes on with it.
func (l *loop) end(c *conn) {
	if c.held {
		l.sendHeld()
		if c.loop != l {
			return // that has been its end
		}
	}
	if c.end == closeNow && len(c.left) == 0 {
		l.drop(c)
		c.loop = nil
		_ = unix.Close(c.fd)
		l.group.forget(c)
		return
	}
	l.unwatch(c.fd) // its socket lives on
	l.drop(c)
	l.part(c, c.goOn)
}

// part gives a connection a goroutine.
func (l *loop) part(c *conn, run func()) {
	nc, err := connOf(c.fd)
	c.loop, c.fd = nil, 0
	if err != nil {
		l.group.forget(c)
		return
	}
	l.group.settle(c, nc)
	go run()
}

// drop forgets a connection.
func (l *loop) drop(c *conn) {
	l.conns[c.fd] = nil
	l.deadlines.drop(c)
	l.open.Add(-1)
}

// start takes a connection up.
func (l *loop) start(c *conn) {
	defer l.rescue(c)
	if c.fd >= len(l.conns) {
		l.conns = append(l.conns, make([]*conn, c.fd+1-len(l.conns)+len(l.conns)/2)...)
	}
	l.conns[c.fd] = c
	l.open.Add(1)
	first := c.rest
	c.rest = nil // no head has begun
	c.last, _ = c.srv.clock.read()
	c.arm(c.due(c.last))
	l.serving = c
	c.begin(first)
	l.serving = nil
	if err := l.watch(c.fd, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLET); err != nil && c.end == open {
		c.end = closeNow
	}
	switch {
	case c.end != open:
		l.end(c)
	case l.drained:
		l.notice(c)
	}
}

// notice lets a connection know that its group drains, or that its deadline has passed.
func (l *loop) notice(c *conn) {
	defer l.rescue(c)
	if c.expired() {
		l.end(c)
		return
	}
	l.serve(c, false, nil)
}

// lookAgain reads from a connection once more when others have had their turn.
func (l *loop) lookAgain(c *conn) { l.again = append(l.again, c) }

// accept takes up a connection that the kernel has established: one, and then those
// that are there have their turn. It says whether there may be more.
func (l *loop) accept() (more bool) {
	fd, peer, err := unix.Accept4(l.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	switch {
	case err == nil:
		l.pause = 0
		// As package net does: otherwise what a pipelining client is sent in two
		// pieces waits for its acknowledgement of the first, for up to 200 ms.
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // fails for no TCP socket
		l.take(fd, peerAddr(peer))
		return true
	case errors.Is(err, unix.EINTR):
		return true
	case errors.Is(err, unix.EAGAIN):
	case passing(err):
		l.group.srv.conns.acceptErrors.Add(1)
		l.pause = min(max(2*l.pause, 5*time.Millisecond), time.Second)
		now, _ := l.group.srv.clock.read()
		l.acceptAt = now + int64(l.pause)
		l.unwatch(l.listener)
	default:
		l.group.fail(err)
		l.hush()
	}
	return false
}

// take starts a new connection, here or where it finds more room.
func (l *loop) take(fd int, addr netip.Addr) {
	to := l.group.emptiest()
	if to.open.Load()+unequal > l.open.Load() {
		to = l
	}
	c := &conn{srv: l.group.srv, group: l.group, addr: addr, loop: to, fd: fd, place: -1}
	switch {
	case !l.group.enter(c):
		_ = unix.Close(fd)
	case c.expectProxy:
		l.part(c, c.serve)
	case to != l:
		to.adopt(c)
	default:
		l.start(c)
	}
}

// hush accepts no more.
func (l *loop) hush() {
	if l.listener >= 0 {
		l.unwatch(l.listener)
		l.listener, l.acceptAt = -1, never
	}
}

// attend does what others want.
func (l *loop) attend() {
	var count [8]byte
	_, _ = unix.Read(l.call, count[:])
	l.mu.Lock()
	mail := l.mail
	l.mail = nil
	l.mu.Unlock()
	l.due = l.errand.Load()
	for _, c := range mail {
		l.start(c)
	}
	if l.group.draining.Load() && !l.drained {
		l.drained = true
		l.each(l.notice)
	}
	if l.group.deaf.Load() && !l.deaf {
		l.deaf = true
		for l.listener >= 0 && l.accept() {
		}
		l.hush()
		l.group.hushed.Done()
	}
	if l.group.cuts() {
		l.each(func(c *conn) {
			c.end, c.left = closeNow, nil
			l.end(c)
		})
	}
}

func (l *loop) each(f func(*conn)) {
	for _, c := range l.conns {
		if c != nil {
			f(c)
		}
	}
}

// expire looks at the connections whose deadline has passed.
func (l *loop) expire() {
	var count [8]byte
	_, _ = unix.Read(l.timer, count[:])
	l.timerAt = never
	now, _ := l.group.srv.clock.read()
	for l.deadlines.next() <= now {
		l.notice(l.deadlines[0])
	}
	if l.acceptAt <= now {
		l.acceptAt = never
		if err := l.listen(); err != nil {
			l.group.fail(err)
		}
	}
}

// setTimer sets the timer when something is due before.
func (l *loop) setTimer() {
	next := min(l.deadlines.next(), l.acceptAt)
	if next >= l.timerAt {
		return
	}
	now, _ := l.group.srv.clock.read()
	in := max(next-now, 1)
	if unix.TimerfdSettime(l.timer, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(in)}, nil) == nil {
		l.timerAt = next
	}
}
