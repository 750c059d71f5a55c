package redirect

import (
	"net"
	"time"
)

// frames is a connection of HTTP/2 above TLS. net/http gives a client all of the idle
// time for a head; here it has as long as over HTTP/1. What has begun (the preface, a
// frame, a head in several frames, also a record of TLS of which nothing can be read
// yet) has to be whole within the time for a head, or reading fails.
//
// It embeds net.Conn and not *tls.Conn, which net/http would read past it.
type frames struct {
	net.Conn
	conn  *conn
	limit time.Duration

	records *scanner // of what the socket gives (RFC 8446, section 5.1)
	frames  scanner  // of what the connection gives (RFC 9113, section 4.1)
	inner   bool     // in a head that goes on in the next frame

	due   time.Time // zero: nothing has begun
	timed bool      // the socket has a deadline
}

const (
	prefaceBytes    = 24
	frameHeadBytes  = 9
	recordHeadBytes = 5

	frameHeaders, frameContinuation = 1, 9 // kinds (RFC 9113, section 6)

	endHeaders = 4 // flag of both
)

func newFrames(nc net.Conn, w *wire, limit time.Duration) *frames {
	f := &frames{Conn: nc, conn: w.conn, limit: limit, records: &w.records, frames: scanner{size: frameHeadBytes, left: prefaceBytes}}
	w.above = f
	return f
}

// Read looks at what is read. The Read of the wire below, on the same goroutine, sets
// the deadline: it is called only where there is nothing left to be read.
func (f *frames) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	f.frames.scan(p[:n], f.length, f.end)
	return n, err
}

// length is that of a frame without its head.
func (f *frames) length(head []byte) int {
	if kind := head[3]; kind == frameHeaders || kind == frameContinuation {
		f.inner = head[4]&endHeaders == 0
	}
	return int(head[0])<<16 | int(head[1])<<8 | int(head[2])
}

// end is that of a frame: what begins behind it has time of its own.
func (f *frames) end() {
	if !f.inner {
		f.due = time.Time{}
	}
}

// wait sets the deadline before the socket is waited for.
func (f *frames) wait() error {
	switch {
	case !f.inner && !f.frames.begun() && !f.records.begun():
		if f.due = (time.Time{}); !f.timed {
			return nil
		}
	case f.due.IsZero():
		f.due = time.Now().Add(f.limit)
	}
	f.timed = !f.due.IsZero()
	return f.SetReadDeadline(f.due)
}

// scanner finds the ends of units that begin with a head of one size, which says how
// long the rest is.
type scanner struct {
	size int // of a head
	head [frameHeadBytes]byte
	have int // bytes of the head
	left int // bytes of the rest that are still to come
}

// begun says whether there is a part of a unit.
func (s *scanner) begun() bool { return s.have > 0 || s.left > 0 }

// scan goes through p, and calls length with each head, and end at the end of each unit.
func (s *scanner) scan(p []byte, length func(head []byte) int, end func()) {
	for len(p) > 0 {
		if s.left > 0 {
			n := min(s.left, len(p))
			s.left, p = s.left-n, p[n:]
		} else {
			n := copy(s.head[s.have:s.size], p)
			if s.have, p = s.have+n, p[n:]; s.have < s.size {
				return
			}
			s.have, s.left = 0, length(s.head[:s.size])
		}
		if s.left == 0 {
			end()
		}
	}
}

// recordLength is that of a record of TLS without its head.
func recordLength(head []byte) int { return int(head[3])<<8 | int(head[4]) }
