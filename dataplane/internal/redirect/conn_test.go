package redirect

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/affleet/affleet/dataplane/internal/table"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// inBubble runs f with a server whose time is the bubble's, over connections
// from dial. The server has ended when f's bubble does.
func inBubble(t *testing.T, drain time.Duration, f func(t *testing.T, s *Server, dial func() net.Conn, stop func())) {
	clicks := newRecorder(t)
	links := samples(t)
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{Live: &table.Live{}, Clicks: clicks}
		cfg.Live.Store(links)
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		listener := newPipes()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if err := s.Serve(ctx, listener, drain); err != nil {
				t.Error(err)
			}
		}()
		stop := func() {
			cancel()
			<-ended
		}
		f(t, s, listener.dial, stop)
		stop()
	})
}

// readAll reads until the server closes, and says how long that took.
func readAll(c net.Conn) (string, time.Duration) {
	start := time.Now()
	b, _ := io.ReadAll(c)
	return string(b), time.Since(start)
}

func TestIdleConnectionIsClosedAfterTheIdleTime(t *testing.T) {
	inBubble(t, time.Second, func(t *testing.T, s *Server, dial func() net.Conn, _ func()) {
		if got, after := readAll(dial()); got != "" || after != 75*time.Second {
			t.Errorf("silent: got %q after %v, want nothing after 75 s", got, after)
		}
		c := dial()
		buf := make([]byte, 1<<10)
		for range 3 { // each request starts the time anew
			time.Sleep(74 * time.Second)
			_, _ = io.WriteString(c, getA)
			if n, err := c.Read(buf); err != nil || !bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 302 ")) {
				t.Fatalf("got %q, %v", buf[:n], err)
			}
		}
		if got, after := readAll(c); got != "" || after != 75*time.Second {
			t.Errorf("after requests: got %q after %v, want nothing after 75 s", got, after)
		}
		synctest.Wait() // for what comes behind a close
		if st := s.Stats(); st.IdleTimeouts != 2 || st.HeadTimeouts != 0 || st.Open != 0 {
			t.Errorf("got %+v", st)
		}
	})
}

func TestConnectionIsIdleAfterItsTimeHoweverOftenItIsLookedAt(t *testing.T) {
	const idle = 300 * time.Millisecond
	n := startNode(t, time.Second, func(c *Config) { c.IdleTimeout, c.lookAgain = idle, 10*time.Millisecond })
	c := n.dial(t)
	for range 3 {
		begin := time.Now()
		c.send(getA)
		c.expect(302)
		for time.Since(begin) < idle/2 { // several looks
			time.Sleep(idle / 20)
		}
	}
	begin := time.Now()
	c.send(getA)
	c.expect(302)
	c.expectEnd()
	if took := time.Since(begin); took < idle {
		t.Errorf("it was closed after %v", took)
	}
	if st := n.Stats(); st.IdleTimeouts != 1 {
		t.Errorf("%d connections were closed as idle", st.IdleTimeouts)
	}
}

func TestHeadMustBeCompleteInTimeHoweverManyBytesCome(t *testing.T) {
	inBubble(t, time.Second, func(t *testing.T, s *Server, dial func() net.Conn, _ func()) {
		for _, first := range []string{"", getA, getA + getA + "G"} {
			c := dial()
			dripped := make(chan struct{})
			go func() {
				defer close(dripped)
				time.Sleep(50 * time.Second) // idle, and no head has begun
				_, err := io.WriteString(c, first)
				for ; err == nil; time.Sleep(100 * time.Millisecond) {
					_, err = io.WriteString(c, "G")
				}
			}()
			got, after := readAll(c)
			<-dripped
			answers := strings.Count(got, "HTTP/1.1 302 ")
			if want := strings.Count(first, "\r\n\r\n"); answers != want {
				t.Errorf("behind %q: got %d answers, want %d", first, answers, want)
			}
			if after < 55*time.Second || after > 55*time.Second+200*time.Millisecond {
				t.Errorf("behind %q: closed after %v, want 5 s from the head's first byte", first, after-50*time.Second)
			}
		}
		synctest.Wait()
		if st := s.Stats(); st.HeadTimeouts != 3 || st.IdleTimeouts != 0 {
			t.Errorf("got %+v", st)
		}
	})
}

func TestAHeadThatIsIncompleteIsRefusedInTimeIfItIsMalformedAndElseClosed(t *testing.T) {
	inBubble(t, time.Second, func(t *testing.T, s *Server, dial func() net.Conn, _ func()) {
		for _, tt := range []struct {
			pieces []string
			want   string
		}{
			{[]string{"GET /a HTTP/1.1\r\nHost", ": h\r\n folded: x\r\n"}, "400"},
			{[]string{getA + "GET /a HTTP/1.1", "\rHost: h\r\r"}, "302 400"},
			{[]string{"BREW /a HTTP/1.1\r\nHo", "st: h\r\nHo", "st: h\r\n"}, "400"},
			{[]string{"GET /a HTTP/1.1\r\nHo", "st: h\r\nX: y\r"}, ""},
			{[]string{"BREW /a HTTP/1.1\r\nHo", "st: h\r\n"}, ""},
			{[]string{getA + "GET http://g/a", " HTTP/1.1\r\nHost: h\r\n\r"}, "302"},
		} {
			c := dial()
			go func() {
				for _, p := range tt.pieces {
					_, _ = io.WriteString(c, p)
				}
			}()
			answers, after := readAll(c)
			var got []string
			for _, a := range strings.Split(answers, "HTTP/1.1 ")[1:] {
				got = append(got, a[:3])
			}
			if strings.Join(got, " ") != tt.want || after != 5*time.Second {
				t.Errorf("%q: got %v after %v, want %s after 5 s", tt.pieces, got, after, tt.want)
			}
		}
		synctest.Wait()
		if st := s.Stats(); st.HeadTimeouts != 6 || st.Refused != 3 || st.Open != 0 {
			t.Errorf("got %+v", st)
		}
	})
}

func TestClientThatDoesNotReadIsClosedAfterTheWriteTime(t *testing.T) {
	inBubble(t, time.Second, func(t *testing.T, s *Server, dial func() net.Conn, _ func()) {
		c := dial()
		_, _ = io.WriteString(c, getA)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if st := s.Stats(); st.WriteTimeouts != 1 || st.Open != 0 {
			t.Errorf("got %+v", st)
		}
		_ = c.Close()
	})
}

func TestDateFollowsTheClock(t *testing.T) {
	inBubble(t, time.Second, func(t *testing.T, _ *Server, dial func() net.Conn, _ func()) {
		c := newClient(t, dial())
		_ = c.SetDeadline(time.Time{})
		for _, pause := range []time.Duration{0, 999 * time.Millisecond, time.Millisecond, 30 * time.Second} {
			time.Sleep(pause)
			c.send(getA)
			want := time.Now().UTC().Format(dateFormat)
			if got := c.expect(302).Header.Get("Date"); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	})
}

func TestSlowHeadsAreClosedInTimeOnSockets(t *testing.T) {
	n := startNode(t, time.Second, func(c *Config) { c.HeadTimeout = 150 * time.Millisecond })
	start := time.Now()
	const slow = 50
	ended := make(chan error, slow)
	for range slow {
		c := n.dial(t)
		go func() {
			_, err := io.WriteString(c, "GET /a HTTP/1.1\r\nHost: h\r\n")
			for err == nil {
				_, err = io.WriteString(c, "X: y\r\n")
				time.Sleep(5 * time.Millisecond)
			}
			ended <- nil
		}()
	}
	good := n.dial(t)
	for range slow {
		good.send(getA)
		good.expect(302)
		<-ended
	}
	if st := n.Stats(); st.HeadTimeouts != slow || st.Redirects != slow {
		t.Errorf("got %d head timeouts and %d redirects, want %d of each", st.HeadTimeouts, st.Redirects, slow)
	}
	if after := time.Since(start); after < 150*time.Millisecond {
		t.Errorf("closed after %v already", after)
	}
}

func TestDrainClosesIdleConnectionsAtOnce(t *testing.T) {
	n := startNode(t, time.Hour)
	var idle []*client
	for range 20 {
		c := n.dial(t)
		c.send(getA)
		c.expect(302)
		idle = append(idle, c)
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	for _, c := range idle {
		c.expectEnd()
	}
	if st := n.Stats(); st.Open != 0 || st.Cut != 0 || st.IdleTimeouts != 0 {
		t.Errorf("got %+v", st)
	}
	if nc, err := net.Dial("tcp", n.addr); err == nil {
		_ = nc.Close()
		t.Error("the listener still accepts")
	}
}

func TestDrainAnswersWhatIsInFlight(t *testing.T) {
	inBubble(t, 10*time.Second, func(t *testing.T, s *Server, dial func() net.Conn, stop func()) {
		part, fresh, idle := dial(), dial(), dial()
		_, _ = io.WriteString(part, getA[:20])
		_, _ = io.WriteString(idle, getA)
		buf := make([]byte, 1<<10)
		if _, err := idle.Read(buf); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		start := time.Now()
		stopped := make(chan time.Duration)
		go func() {
			stop()
			stopped <- time.Since(start)
		}()
		if got, after := readAll(idle); got != "" || after != 0 {
			t.Errorf("idle: %q after %v", got, after)
		}
		time.Sleep(900 * time.Millisecond)
		go func() { _, _ = io.WriteString(fresh, getA) }()
		if got, _ := readAll(fresh); !strings.Contains(got, "302 Found") || !strings.Contains(got, "\r\nConnection: close\r\n") {
			t.Errorf("fresh: %q", got)
		}
		time.Sleep(time.Second)
		go func() { _, _ = io.WriteString(part, getA[20:]+getA+getA) }()
		got, _ := readAll(part)
		if strings.Count(got, "302 Found") != 3 || strings.Count(got, "Connection: close") != 1 ||
			!strings.Contains(got[strings.LastIndex(got, "302 Found"):], "Connection: close") {
			t.Errorf("part: %q, want three answers, the last with Connection: close", got)
		}
		if after := <-stopped; after != 1900*time.Millisecond {
			t.Errorf("drained after %v, want 1.9 s", after)
		}
		if st := s.Stats(); st.Cut != 0 || st.Open != 0 {
			t.Errorf("got %+v", st)
		}
	})
}

func TestDrainCutsOffWhatTakesTooLong(t *testing.T) {
	inBubble(t, 2*time.Second, func(t *testing.T, s *Server, dial func() net.Conn, stop func()) {
		part, fresh := dial(), dial()
		_, _ = io.WriteString(part, getA[:20])
		synctest.Wait()
		start := time.Now()
		stop()
		if after := time.Since(start); after != 2*time.Second {
			t.Errorf("drained after %v, want 2 s", after)
		}
		if got, _ := readAll(part); got != "" {
			t.Errorf("got %q", got)
		}
		if got, _ := readAll(fresh); got != "" {
			t.Errorf("got %q", got)
		}
		if st := s.Stats(); st.Cut != 1 || st.Open != 0 {
			t.Errorf("got %+v, want one cut", st)
		}
	})
}

func TestDrainUnderLoadLosesNoAnswer(t *testing.T) {
	n := startNode(t, 10*time.Second)
	var answered atomic.Int64
	const conns = 16
	done := make(chan error, conns)
	ready := make(chan struct{}, conns)
	for range conns {
		c := n.dial(t)
		go func() {
			defer func() { _ = c.Close() }()
			done <- func() error {
				for i := 0; ; i++ {
					if i == 100 {
						ready <- struct{}{}
					}
					// An error here means that it was closed between two requests;
					// the answers tell.
					_, _ = io.WriteString(c.Conn, getA+getA+getA)
					for range 3 {
						if _, _, err := c.tryAnswer("GET"); err != nil {
							return ended(err)
						}
						answered.Add(1)
					}
				}
			}()
		}()
	}
	for range conns {
		<-ready
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	for range conns {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if st := n.Stats(); int64(st.Redirects) != answered.Load() {
		t.Errorf("%d redirects were recorded, %d answers arrived", st.Redirects, answered.Load())
	}
}

func TestConnectionsBeyondTheLimitsAreClosed(t *testing.T) {
	for _, tt := range []struct {
		name              string
		max, maxPerAddr   int
		over, overPerAddr uint64
	}{
		{"in all", 3, 100, 1, 0},
		{"per address", 100, 3, 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := startNode(t, time.Second, func(c *Config) { c.MaxConns, c.MaxConnsPerAddr = tt.max, tt.maxPerAddr })
			var held []*client
			for range 3 {
				c := n.dial(t)
				c.send(getA)
				c.expect(302)
				held = append(held, c)
			}
			n.dial(t).expectEnd()
			if st := n.Stats(); st.Open != 3 || st.OverLimit != tt.over || st.OverAddrLimit != tt.overPerAddr {
				t.Errorf("got %+v", st)
			}
			held[0].send(getLast)
			held[0].expect(302)
			held[0].expectEnd()
			for { // the place is free a moment after the client sees the end
				c := n.dial(t)
				_, _ = io.WriteString(c.Conn, getA)
				if _, _, err := c.tryAnswer("GET"); err == nil {
					break
				}
			}
		})
	}
}

// ended says of an error whether the server just closed the connection: with
// requests on their way to it, the client may see a reset.
func ended(err error) error {
	if err == io.EOF || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// panicking is a connection that breaks an invariant of its reader.
type panicking struct{ net.Conn }

func (panicking) Read([]byte) (int, error) { panic("BUG: for this test") }

func TestPanicEndsItsConnectionOnly(t *testing.T) {
	listener := newPipes()
	n := serveOn(t, listener, time.Second)
	good := newClient(t, listener.dial())
	here, there := net.Pipe()
	bad := newClient(t, here)
	listener.conns <- panicking{there}
	bad.expectEnd()
	good.send(getA)
	good.expect(302)
	n.awaitOpen(1) // the client sees the end before the server has counted it
	if st := n.Stats(); st.Panics != 1 {
		t.Errorf("got %+v", st)
	}
}

func TestAcceptErrorsThatPassAreRetried(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	flaky := &flakyListener{Listener: ln}
	flaky.failures.Store(3)
	n := serveOn(t, flaky, time.Second)
	c := n.dial(t)
	c.send(getA)
	c.expect(302)
	if st := n.Stats(); st.AcceptErrors != 3 {
		t.Errorf("got %d accept errors, want 3", st.AcceptErrors)
	}
}

// flakyListener has no descriptors left for its first accepts.
type flakyListener struct {
	net.Listener
	failures atomic.Int32
}

func (l *flakyListener) Accept() (net.Conn, error) {
	if l.failures.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

// panickingCaps breaks an invariant in the middle of a decision.
type panickingCaps struct{}

func (panickingCaps) Take([]byte, []byte, link.Cap, int64, bool) bool { panic("BUG: for this test") }

func TestWhatAPanicLeftUnsentIsNobodysAnswer(t *testing.T) {
	links := samples(t, aLink("*", "/capped", "https://store.example/", func(l *linkv1.Link) { l.Cap = &linkv1.Cap{Clicks: 1} }))
	breaking := func(c *Config) { c.Caps = panickingCaps{}; c.Live.Store(links) }
	secure, _ := startTLS(t, newDir(t), breaking)
	plain := startNode(t, time.Second, breaking)
	for name, dial := range map[string]func() *client{
		"TLS":   func() *client { return secure.dialTLS(t, "http/1.1", "go.example") },
		"plain": func() *client { return plain.dial(t) },
	} {
		for range 20 {
			bad := dial()
			bad.send(getA + "GET /capped HTTP/1.1\r\nHost: x\r\n\r\n")
			_, _ = io.Copy(io.Discard, bad.r)
			good := dial()
			good.send(getLast)
			if got := good.expect(302).Header.Get("Location"); got != "https://store.example/last" {
				t.Errorf("%s: got the answer %s", name, got)
			}
		}
	}
	if secure, plain := secure.Stats().Panics, plain.Stats().Panics; secure != 20 || plain != 20 {
		t.Errorf("%d and %d panics", secure, plain)
	}
}
