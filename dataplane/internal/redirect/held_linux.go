package redirect

const (
	mostHeld = 16      // answers
	longHeld = 1 << 10 // bytes of one: a longer one is sent at once
)

// answer is what a connection is to be sent, in its loop's outbox.
type answer struct {
	conn *conn
	out  []byte
}

// hold keeps an answer of a connection that goes on, to send it together with those
// of the next few that have been reported. To answer means some system call, after
// which the caches have to be filled again with what finds the next answer; and
// where the client is on this machine, the kernel wakes it. For several in a row it
// does so once. The first of them waits for the others: some 50 µs at most.
func (l *loop) hold(c *conn, out []byte) bool {
	together := len(out) <= longHeld && c.end == open
	if len(l.held) == mostHeld || c.held && !together {
		l.sendHeld()
	}
	if !together || c.end != open {
		return false
	}
	from := len(l.outbox)
	l.outbox = append(l.outbox, out...)
	l.held = append(l.held, answer{c, l.outbox[from:]})
	c.held = true
	return true
}

// sendHeld sends all that is held. A connection that does not take what it is sent
// leaves the loop, or ends; that which is served just now does so by itself.
func (l *loop) sendHeld() {
	failed := false
	for _, a := range l.held {
		a.conn.held = false
		a.conn.post(uintptr(a.conn.fd), a.out)
		failed = failed || a.conn.end != open
	}
	held := l.held
	l.held, l.outbox = l.held[:0], l.outbox[:0]
	if !failed {
		return
	}
	for _, a := range held {
		if c := a.conn; c.loop == l && c.end != open && c != l.serving {
			l.end(c)
		}
	}
}
