package redirect

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/affleet/affleet/proto/link"
)

// clock tells the time for the price of one reading of the monotonic clock:
// once per second, whoever comes first reads the wall clock and formats the
// Date header for all.
type clock struct {
	start  time.Time
	second atomic.Pointer[second]
}

// second is a second of the wall clock.
type second struct {
	mono  int64  // ns since the clock's start when the wall clock was read
	wall  int64  // µs since 1970 at that moment
	until int64  // ns since the clock's start when it is over
	date  string // as in a Date header
}

func newClock() *clock {
	c := &clock{start: time.Now()}
	c.renew(c.start)
	return c
}

// read gives the ns since the clock's start and the second that they are in.
func (c *clock) read() (int64, *second) {
	mono := int64(time.Since(c.start))
	s := c.second.Load()
	if mono >= s.until {
		s = c.renew(time.Now())
	}
	return mono, s
}

// renew takes both times from one reading: between two, the thread may be held up, and
// all times until the next renewal would be ahead by that.
func (c *clock) renew(now time.Time) *second {
	mono := int64(now.Sub(c.start))
	rest := int64(time.Second) - int64(now.Nanosecond())
	s := &second{
		mono:  mono,
		wall:  now.UnixMicro(),
		until: mono + rest,
		date:  now.UTC().Format(dateFormat),
	}
	c.second.Store(s)
	return s
}

// unixMicro is the wall clock's time at mono, in µs since 1970. That may be a moment
// before the second was read.
func (s *second) unixMicro(mono int64) int64 { return s.wall + (mono-s.mono)/1000 }

const dateFormat = "Mon, 02 Jan 2006 15:04:05 GMT"

// redirectStart begins the answer to a redirect, up to its Date.
func redirectStart(status int) string {
	switch status {
	case 301:
		return "HTTP/1.1 301 Moved Permanently\r\nContent-Length: 0\r\nDate: "
	case 303:
		return "HTTP/1.1 303 See Other\r\nContent-Length: 0\r\nDate: "
	case 307:
		return "HTTP/1.1 307 Temporary Redirect\r\nContent-Length: 0\r\nDate: "
	case 308:
		return "HTTP/1.1 308 Permanent Redirect\r\nContent-Length: 0\r\nDate: "
	}
	return "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nDate: "
}

// ending gives the lines that end a head: whether the connection stays.
func (h *head) ending() string {
	switch {
	case h.closing:
		return "\r\nConnection: close\r\n\r\n"
	case h.keepAlive:
		return "\r\nConnection: keep-alive\r\n\r\n"
	}
	return "\r\n\r\n"
}

// appendRedirect appends the answer that sends the client to d.Location.
func appendRedirect(dst []byte, h *head, d *link.Decision, date string) []byte {
	dst = append(dst, redirectStart(d.Status)...)
	dst = append(dst, date...)
	dst = append(dst, "\r\nLocation: "...)
	dst = append(dst, d.Location...)
	dst = append(dst, "\r\nCache-Control: "...)
	dst = append(dst, d.CacheControl...)
	if d.RobotsTag != "" {
		dst = append(dst, "\r\nX-Robots-Tag: "...)
		dst = append(dst, d.RobotsTag...)
	}
	return append(dst, h.ending()...)
}

// appendBody appends the answer that is d.Body; one to HEAD goes without it.
func appendBody(dst []byte, h *head, d *link.Decision, date string) []byte {
	dst = append(dst, "HTTP/1.1 200 OK\r\nDate: "...)
	dst = append(dst, date...)
	dst = append(dst, "\r\nContent-Type: "+pageType+"\r\nContent-Length: "...)
	dst = strconv.AppendInt(dst, int64(len(d.Body)), 10)
	dst = append(dst, "\r\nCache-Control: "...)
	dst = append(dst, d.CacheControl...)
	dst = append(dst, h.ending()...)
	if !h.isHead {
		dst = append(dst, d.Body...)
	}
	return dst
}

// page is an answer that is no redirect.
type page struct {
	status            int
	name, value, body string // name and value: one more header
	before, after     string // of the Date, in HTTP/1
}

// Headers that every page has.
const (
	pageType  = "text/plain; charset=utf-8"
	pageCache = "no-store"
)

func newPage(status, name, value, body string) page {
	p := page{name: name, value: value, body: body, before: "HTTP/1.1 " + status + "\r\nDate: "}
	p.status, _ = strconv.Atoi(status[:3])
	p.after = "\r\nContent-Type: " + pageType + "\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\nCache-Control: " + pageCache
	if name != "" {
		p.after += "\r\n" + name + ": " + value
	}
	return p
}

var (
	notFoundPage    = newPage("404 Not Found", "", "", "not found\n")
	gonePage        = newPage("410 Gone", "", "", "gone\n")
	unavailablePage = newPage("503 Service Unavailable", "Retry-After", "1", "this node has no links yet\n")
)

// append appends the page; an answer to HEAD goes without its body.
func (p *page) append(dst []byte, h *head, date string) []byte {
	dst = append(dst, p.before...)
	dst = append(dst, date...)
	dst = append(dst, p.after...)
	dst = append(dst, h.ending()...)
	if !h.isHead {
		dst = append(dst, p.body...)
	}
	return dst
}
