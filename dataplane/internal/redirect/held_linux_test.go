package redirect

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// connected gives a connection of a loop and its client's end.
func connected(t *testing.T, l *loop) (c *conn, client int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) })
	return &conn{loop: l, fd: fds[0], place: -1}, fds[1]
}

// received is what has come to a client.
func received(t *testing.T, client int) string {
	t.Helper()
	var all []byte
	for b := make([]byte, 1<<16); ; {
		n, err := unix.Read(client, b)
		if errors.Is(err, unix.EAGAIN) || err == nil && n == 0 {
			return string(all)
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b[:n]...)
	}
}

func holding() *loop {
	return &loop{held: make([]answer, 0, mostHeld), outbox: make([]byte, 0, mostHeld*longHeld)}
}

// say is what a connection does with an answer.
func (c *conn) say(out string) { c.flush(&work{out: []byte(out)}, uintptr(c.fd)) }

func TestAnswersAreSentTogether(t *testing.T) {
	l := holding()
	var conns []*conn
	var clients []int
	for i := range mostHeld {
		c, client := connected(t, l)
		conns, clients = append(conns, c), append(clients, client)
		c.say(fmt.Sprint("answer ", i))
	}
	for i, client := range clients {
		if got := received(t, client); got != "" || !conns[i].held {
			t.Fatalf("%q has come to client %d", got, i)
		}
	}
	conns[0].say(", and another one") // there is no room for it
	for i, client := range clients {
		if got := received(t, client); got != fmt.Sprint("answer ", i) {
			t.Errorf("%q has come to client %d", got, i)
		}
	}
	l.sendHeld()
	if got := received(t, clients[0]); got != ", and another one" || conns[0].held || len(l.held) > 0 || len(l.outbox) > 0 {
		t.Errorf("%q has come; held are %d answers of %d bytes", got, len(l.held), len(l.outbox))
	}
}

func TestAnswersOfOneConnectionKeepTheirOrder(t *testing.T) {
	long := strings.Repeat("l", longHeld+1)
	for name, last := range map[string]func(c *conn) string{
		"a long one":           func(*conn) string { return long },
		"its last one":         func(c *conn) string { c.end = closeNow; return "3" },
		"its last, if refused": func(c *conn) string { c.end = closeSoon; return "3" },
	} {
		l := holding()
		c, client := connected(t, l)
		other, quiet := connected(t, l)
		c.say("1")
		other.say("0")
		c.say("2")
		out := last(c)
		l.serving = c
		c.say(out)
		if got := received(t, client); got != "12"+out {
			t.Errorf("%s: %.20q has come", name, got)
		}
		if got := received(t, quiet); got != "0" {
			t.Errorf("%s: %q has come to another", name, got)
		}
	}
}

// A client that does not read has all its answers, in order, from the goroutine that
// goes on with its connection.
func TestAnswersThatAreNotTakenAreLeft(t *testing.T) {
	l := holding()
	c, client := connected(t, l)
	full := bytes.Repeat([]byte("f"), 1<<20)
	n, _ := send(uintptr(c.fd), full)
	for m := n; m > 0; n += m {
		m, _ = send(uintptr(c.fd), full)
		m = max(m, 0)
	}
	c.say("1")
	c.say("2")
	l.serving = c
	l.sendHeld()
	if c.end != leave || string(c.left) != "12" || c.held {
		t.Errorf("%q is left, and the connection's end is %d", c.left, c.end)
	}
	c.say("3")
	if got := len(received(t, client)); got < n || string(c.left) != "123" {
		t.Errorf("%q is left, and %d of %d bytes have come", c.left, got, n)
	}
}

func TestAClientThatIsGoneEndsItsConnectionOnly(t *testing.T) {
	l := holding()
	c, gone := connected(t, l)
	other, client := connected(t, l)
	_ = unix.Shutdown(gone, unix.SHUT_RDWR)
	c.say("1")
	other.say("2")
	l.serving = c
	l.sendHeld()
	if got := received(t, client); c.end != closeNow || got != "2" || other.end != open {
		t.Errorf("%q has come to the other; the ends are %d and %d", got, c.end, other.end)
	}
}
