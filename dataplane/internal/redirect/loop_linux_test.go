package redirect

import (
	"bytes"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/affleet/affleet/dataplane/internal/click"
	"github.com/affleet/affleet/dataplane/internal/table"
)

// onlyLoops skips what is about loops when there are none.
func onlyLoops(t *testing.T) {
	t.Helper()
	if testLoops == 0 {
		t.Skip("this run is without event loops")
	}
}

func oneLoop(c *Config) { c.Loops = min(c.Loops, 1) }

// many requests in one piece, with answers that no socket's buffers hold.
const many = 60_000

func TestClientThatDoesNotReadItsAnswersHoldsUpNobodyAndGetsThemAll(t *testing.T) {
	n := startNode(t, time.Second, oneLoop)
	slow := n.dial(t)
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(slow.Conn, strings.Repeat(getA, many)+getLast)
		sent <- err
	}()
	for stuck := uint64(0); ; { // until the server can write no more
		time.Sleep(20 * time.Millisecond)
		now := n.Stats().Redirects
		if now > 0 && now == stuck {
			break
		}
		stuck = now
	}
	other := n.dial(t)
	for range 100 {
		other.send(getA)
		other.expect(302)
	}
	for range many + 1 {
		slow.expect(302)
	}
	slow.expectEnd()
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if st := n.Stats(); st.Redirects != many+1+100 || st.WriteTimeouts != 0 || st.Panics != 0 {
		t.Errorf("got %+v", st)
	}
}

func TestClientThatNeverReadsItsAnswersIsClosedInTimeOnSockets(t *testing.T) {
	n := startNode(t, time.Second, oneLoop, func(c *Config) { c.WriteTimeout = 100 * time.Millisecond })
	c := n.dial(t)
	_, err := io.WriteString(c.Conn, strings.Repeat(getA, many*10))
	if err == nil {
		t.Error("all was read of who reads nothing")
	}
	n.awaitOpen(0)
	if st := n.Stats(); st.WriteTimeouts != 1 || st.Panics != 0 {
		t.Errorf("got %+v", st)
	}
}

func TestClientThatAsksWithoutEndHoldsUpNobody(t *testing.T) {
	n := startNode(t, time.Second, oneLoop)
	var stop atomic.Bool
	ended := make(chan struct{}, 4)
	for range 2 {
		greedy := n.dial(t)
		go func() {
			defer func() { ended <- struct{}{} }()
			for all := strings.Repeat(getA, 1000); !stop.Load(); {
				if _, err := io.WriteString(greedy.Conn, all); err != nil {
					t.Error(err)
					return
				}
			}
			_ = greedy.Conn.(*net.TCPConn).CloseWrite()
		}()
		go func() {
			defer func() { ended <- struct{}{} }()
			_, _ = io.Copy(io.Discard, greedy.Conn)
		}()
	}
	for n.Stats().Redirects < 3000 {
		time.Sleep(time.Millisecond)
	}
	other := n.dial(t)
	for range 5 {
		other.send(getA)
		other.expect(302)
	}
	stop.Store(true)
	for range cap(ended) {
		<-ended
	}
}

func TestALoopIsToldOfAnEnd(t *testing.T) {
	onlyLoops(t)
	n := startNode(t, time.Second, func(c *Config) { c.lookAgain = time.Hour })
	for range 20 {
		c := n.dial(t)
		c.send(getA)
		if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		c.expect(302)
		c.expectEnd()
	}
	n.awaitOpen(0)
}

func TestConnectionsOfLoopsHaveNoGoroutines(t *testing.T) {
	onlyLoops(t)
	n := startNode(t, time.Second, behindProxies)
	before := runtime.NumGoroutine()
	var all []*client
	for range 100 {
		c := n.dial(t)
		c.send("PROXY TCP4 203.0.113.7 127.0.0.1 1234 80\r\n" + getA)
		c.expect(302)
		c.send(getA)
		c.expect(302)
		all = append(all, c)
	}
	if grown := runtime.NumGoroutine() - before; grown > len(all)/2 {
		t.Errorf("there are %d more goroutines for %d connections", grown, len(all))
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		c.expectEnd()
	}
	if st := n.Stats(); st.Cut != 0 || st.Open != 0 || st.ProxyErrors != 0 {
		t.Errorf("got %+v", st)
	}
}

func behindProxies(c *Config) {
	proxies, err := ParseProxies([]string{"127.0.0.1"})
	if err != nil {
		panic(err)
	}
	c.TrustedProxies, c.ProxyProtocol = proxies, true
}

func TestConnectionsThatFindNoDescriptorAreAcceptedLater(t *testing.T) {
	n := startNode(t, time.Second, oneLoop)
	accepted := n.dial(t) // what a loop needs for itself, it has
	accepted.send(getLast)
	accepted.expect(302)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "client")
	defer f.Close()
	restore := leaveDescriptors(t, 0)
	addr := n.listening
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(addr.IP.To4())}); err != nil {
		t.Fatal(err)
	}
	for n.Stats().AcceptErrors < 3 {
		time.Sleep(time.Millisecond)
	}
	restore()
	nc, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, nc)
	c.send(getLast)
	c.expect(302)
	c.expectEnd()
}

// leaveDescriptors lets the process open so many descriptors more, until the
// function that it gives is called, or the test ends.
func leaveDescriptors(t *testing.T, n int) (restore func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	limit := 0
	for range n {
		fd, err := unix.Dup(0) // the lowest that is free, as all that are opened
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		limit = fd + 1
	}
	restore = func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(restore)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(limit), Max: before.Max}); err != nil { //nolint:gosec // positive
		t.Fatal(err)
	}
	return restore
}

// listening is a listener's descriptor for a loop, until the test ends.
func listening(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := duplicate(ln.(*net.TCPListener))
	t.Cleanup(func() { _, _ = unix.Close(listener), ln.Close() })
	return listener
}

func TestALoopThatFindsNoDescriptorFails(t *testing.T) {
	onlyLoops(t)
	listener := listening(t)
	g := &group{srv: &Server{}}
	const own = 3 // epoll, eventfd, timerfd
	for left := range own + 1 {
		restore := leaveDescriptors(t, left)
		l, err := newLoop(g, listener)
		restore()
		if (err == nil) != (left == own) || (l == nil) != (err != nil) {
			t.Errorf("%d descriptors are left: %v, %v", left, l, err)
		}
		if l != nil {
			l.close()
		}
	}
	if l, err := newLoop(g, -1); err == nil || l != nil {
		t.Errorf("without a listener: %v, %v", l, err)
	}
}

// The listener's event may come in one batch with the word to accept no more.
func TestALoopPassesOverEventsOfWhatIsGone(t *testing.T) {
	onlyLoops(t)
	l := &loop{group: &group{}, epoll: -1, call: -1, timer: -1, listener: -1, conns: make([]*conn, 10)}
	for _, fd := range []int{3, 9, 10, 1000} {
		if n := l.handle([]unix.EpollEvent{{Fd: int32(fd), Events: unix.EPOLLIN}, {}}); n != 1 {
			t.Errorf("descriptor %d: %d events", fd, n)
		}
	}
}

func TestLoopsShareTheirConnections(t *testing.T) {
	onlyLoops(t)
	g := &group{}
	for _, open := range []int64{5, 3, 9} {
		l := &loop{group: g}
		l.open.Store(open)
		g.loops = append(g.loops, l)
	}
	if got := g.emptiest(); got != g.loops[1] {
		t.Errorf("got the loop with %d connections", got.open.Load())
	}
}

func TestDeadlinesComeInOrder(t *testing.T) {
	var d deadlines
	conns := make([]*conn, 100)
	for i := range conns {
		conns[i] = &conn{place: -1, armed: int64(i * 37 % 100)}
		d.set(conns[i])
	}
	conns[5].armed = 1000 // later
	d.set(conns[5])
	d.drop(conns[7])
	d.drop(conns[7]) // it is gone already
	for last := int64(-1); len(d) > 0; {
		c := d[0]
		if c.armed < last || c == conns[7] {
			t.Fatalf("%d comes behind %d", c.armed, last)
		}
		last = c.armed
		d.drop(c)
	}
	if d.next() != never {
		t.Error("there is a deadline of nobody")
	}
}

// Answers that are sent in pieces do not wait for the client's acknowledgement of the
// ones before (Nagle's algorithm): its side may take 200 ms for that.
func TestSocketsDoNotWaitForAcknowledgements(t *testing.T) {
	n := startNode(t, time.Second)
	c := n.dial(t)
	c.send(getA)
	c.expect(302)
	client, server := c.LocalAddr().(*net.TCPAddr).Port, c.RemoteAddr().(*net.TCPAddr).Port
	for fd := range 1 << 12 {
		peer, err := unix.Getpeername(fd)
		if at, ok := peer.(*unix.SockaddrInet4); err != nil || !ok || at.Port != client {
			continue
		}
		own, err := unix.Getsockname(fd)
		if at, ok := own.(*unix.SockaddrInet4); err != nil || !ok || at.Port != server {
			continue // another test's, with the same number
		}
		if on, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY); err != nil || on == 0 {
			t.Errorf("TCP_NODELAY is %d, %v", on, err)
		}
		return
	}
	t.Error("the server has no such connection")
}

// Nobody takes clicks from the recorder: it gets full.
func TestALoopGivesWayToWhatMakesRoomForClicksUntilThereIsNone(t *testing.T) {
	onlyLoops(t)
	const segment = 256 << 10
	clicks, err := click.Open(click.Config{Level: click.Memory, Node: "n", Boot: 1, SegmentBytes: segment, MaxBytes: 100 * segment})
	if err != nil {
		t.Fatal(err)
	}
	defer clicks.Close()
	l := &loop{group: &group{srv: &Server{cfg: Config{Clicks: clicks}}}}
	e := &click.Event{Destination: bytes.Repeat([]byte("d"), 2000)}
	gave := 0
	for account := clicks.Ledger(); account.Lost() == 0; account = clicks.Ledger() {
		clicks.Record(e)
		short, begin := clicks.Short(), time.Now()
		if l.giveWay(); l.waits > 0 {
			gave++
			if took := time.Since(begin); short && took < forRoom {
				t.Fatalf("it waited for %v", took)
			}
		}
	}
	if waits := l.group.srv.conns.roomWaits.Load(); waits < uint64(gave) { //nolint:gosec // positive
		t.Errorf("it gave way %d times, and counted %d", gave, waits)
	}
	if clicks.Ledger().Recorded < 90*segment/2200 {
		t.Errorf("it gave way %d times; %+v", gave, clicks.Ledger())
	}
	for clicks.Short() { // until the recorder knows that it is full
		time.Sleep(time.Millisecond)
	}
	if l.giveWay(); l.waits != 0 {
		t.Error("it gives way to nothing")
	}
}

func TestAConnectionBehindAProxyBeginsWithADeadlineThatIsToCome(t *testing.T) {
	onlyLoops(t)
	listener := listening(t)
	cfg := Config{Live: &table.Live{}, Clicks: newRecorder(t)}
	cfg.Live.Store(samples(t))
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.clock.start = s.clock.start.Add(-time.Hour) // it runs for longer than a head may take
	g := &group{srv: s}
	l, err := newLoop(g, listener)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for _, left := range []string{"", getA, getA[:20]} { // behind its PROXY header
		c, _ := connected(t, l)
		c.srv, c.group, c.rest = s, g, []byte(left)
		l.start(c)
		if now, _ := s.clock.read(); c.armed < now || c.end != open {
			t.Errorf("%q is left: the deadline passed %v ago", left, time.Duration(now-c.armed))
		}
	}
}
