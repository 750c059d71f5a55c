//go:build linux

package main

import (
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAnAnswerIsWholeWithItsBody(t *testing.T) {
	const head = "HTTP/1.1 302 Found\r\nContent-Length: 5\r\nLocation: https://a.example/\r\n\r\n"
	for answer, want := range map[string]struct{ whole, fails bool }{
		"":                    {},
		head[:20]:             {},
		head:                  {},
		head + "bod":          {},
		head + "body\n":       {whole: true},
		head + "body\nHTTP/1": {fails: true},
		"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n":     {whole: true},
		"HTTP/1.1 302 Found\r\nContent-Length: x\r\n\r\n":     {fails: true},
		"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n":           {fails: true},
		"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n": {fails: true},
	} {
		b := append(make([]byte, 0, 4096), answer...)
		if whole, err := complete(b); whole != want.whole || (err != nil) != want.fails {
			t.Errorf("%q: %v, %v", answer, whole, err)
		}
	}
}

func TestRequestsOfABeatAreDueAtItsBegin(t *testing.T) {
	g := &generator{interval: 30, beat: 100}
	for request, want := range []int64{0, 0, 0, 0, 100, 100, 100, 200} {
		if got := g.due(request); got != want {
			t.Errorf("request %d is due at %d, want %d", request, got, want)
		}
	}
}

func TestAnArrivalIsNotWhenItIsRead(t *testing.T) {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	if err := unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(listener, 1); err != nil {
		t.Fatal(err)
	}
	address, err := unix.Getsockname(listener)
	if err != nil {
		t.Fatal(err)
	}
	g := &generator{ownPauses: true}
	if err := g.connect("127.0.0.1:"+strconv.Itoa(address.(*unix.SockaddrInet4).Port), 1); err != nil {
		t.Fatal(err)
	}
	server, _, err := unix.Accept(listener)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(server)
	client := g.idle[0].fd
	defer unix.Close(client)
	time.Sleep(50 * time.Millisecond) // the kernel begins to look at its clock behind setsockopt
	before := time.Now()
	if _, err := write(server, []byte("answer")); err != nil {
		t.Fatal(err)
	}
	behind := time.Now()
	time.Sleep(100 * time.Millisecond)
	buf := make([]byte, 16)
	n, err := g.in.read(client, buf)
	if at, ok := g.in.at(); err != nil || !ok || string(buf[:n]) != "answer" || at.Before(before.Add(-time.Millisecond)) || at.After(behind.Add(50*time.Millisecond)) {
		t.Errorf("%q, %v, arrived at %v, and was written from %v to %v", buf[:n], err, at, before, behind)
	}
}

func TestTheScheduleStandsStillForTheGeneratorAndNotForTheServer(t *testing.T) {
	g := &generator{interval: 10, beat: 1, total: 20, next: 3}
	g.owe(55) // no connection was free
	if g.owed != 6 {
		t.Errorf("%d is the first that does not wait for a connection", g.owed)
	}
	g.next, g.paused = 6, 7
	g.owe(80)
	if due := g.due(7); g.owed != 8 || due != 77 {
		t.Errorf("%d is the first that does not wait for a connection, and 7 is due at %d", g.owed, due)
	}
}

func TestAServerIsChargedForWhatItHoldsUpAndNotForTheGenerator(t *testing.T) {
	for name, c := range map[string]struct {
		g    generator
		now  int64
		want int64 // from when on
		late int64 // what is due next is put off by this
	}{
		"sent within its beat":    {generator{next: 25, ownPauses: true}, 230, 230, 0},
		"sent after its beat":     {generator{next: 25, ownPauses: true}, 350, 350, 150},
		"waited for the server":   {generator{next: 25, owed: 26, ownPauses: true}, 350, 200, 0},
		"as it was planned":       {generator{next: 25}, 230, 200, 0},
		"as it was planned, late": {generator{next: 25}, 350, 200, 0},
	} {
		c.g.interval, c.g.beat, c.g.total = 10, 100, 100
		if got := c.g.charge(c.now); got != c.want || c.g.paused != c.late {
			t.Errorf("%s: from %d on, and put off by %d; want %d and %d", name, got, c.g.paused, c.want, c.late)
		}
	}
}

// The server would pay for waking it.
func TestAnAnswerIsLookedForWhenTheNextRequestIsDue(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(poll)
	if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, pair[0], &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		t.Fatal(err)
	}
	if _, err := write(pair[1], []byte("answer")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ownPauses bool
		next      int // of one request
		wait      time.Duration
		sleeps    bool
	}{
		{true, 0, 50 * time.Millisecond, true}, // Go's signals come meanwhile
		{true, 1, 5 * time.Second, false},
		{false, 0, 5 * time.Second, false},
	} {
		g := &generator{poll: poll, ownPauses: c.ownPauses, next: c.next, total: 1, idle: make([]*conn, 1)}
		begin := time.Now()
		n, err := g.await(make([]unix.EpollEvent, 1), c.wait)
		if slept := time.Since(begin) >= c.wait; n != 1 || err != nil || slept != c.sleeps {
			t.Errorf("own pauses %v, %d of 1 sent: %d answers, %v, after %v", c.ownPauses, c.next, n, err, time.Since(begin))
		}
	}
}
