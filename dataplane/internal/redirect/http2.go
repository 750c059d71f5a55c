package redirect

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxStreams is how many requests an HTTP/2 connection may have under way.
const maxStreams = 128

// http2 is net/http's server for the HTTP/2 connections of a group. It has no
// HTTP/1: those connections stay in this package's own loop. A listener for
// HTTP/3 would be one more way to call ServeHTTP.
type http2 struct {
	srv     *Server
	http    *http.Server
	conns   chan net.Conn
	closed  chan struct{}
	closing sync.Once
}

func newHTTP2(s *Server) *http2 {
	x := &http2{srv: s, conns: make(chan net.Conn), closed: make(chan struct{})}
	only := new(http.Protocols)
	only.SetUnencryptedHTTP2(true) // to net/http it is: what it reads from has TLS below
	x.http = &http.Server{
		Handler:                      x,
		DisableGeneralOptionsHandler: true, // "OPTIONS *" is a method like any other
		Protocols:                    only,
		IdleTimeout:                  s.cfg.IdleTimeout,
		WriteTimeout:                 s.cfg.WriteTimeout, // of a stream whose client opens no window
		MaxHeaderBytes:               s.cfg.MaxHead,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			WriteByteTimeout:              s.cfg.WriteTimeout,
			MaxReceiveBufferPerConnection: 64 << 10,
			MaxReceiveBufferPerStream:     16 << 10, // no body is read
		},
		ErrorLog: log.New(io.Discard, "", 0), // of what clients do
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, nc.(*frames).conn)
		},
	}
	return x
}

// connKey is where a request's context has its *conn.
type connKey struct{}

// run serves what it is handed until shutdown.
func (x *http2) run() { _ = x.http.Serve(x) } // it can only end by shutdown

// take serves one more connection; false when it is too late for that.
func (x *http2) take(nc net.Conn) bool {
	select {
	case x.conns <- nc:
		return true
	case <-x.closed:
		return false
	}
}

// Accept makes http2 the listener of its net/http server.
func (x *http2) Accept() (net.Conn, error) {
	select {
	case nc := <-x.conns:
		return nc, nil
	case <-x.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (x *http2) Close() error {
	x.closing.Do(func() { close(x.closed) })
	return nil
}

// Addr is nobody's.
func (x *http2) Addr() net.Addr { return &net.UnixAddr{Name: "http2", Net: "unix"} }

// shutdown tells all clients to ask elsewhere, answers what is in flight, and
// ends after limit at the latest. The group closes what is left then.
func (x *http2) shutdown(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_ = x.http.Shutdown(ctx)
}

// ServeHTTP answers one request of HTTP/2 as the loop answers those of HTTP/1.
func (x *http2) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	s := x.srv
	defer func() {
		if p := recover(); p != nil {
			s.conns.panics.Add(1)
			panic(http.ErrAbortHandler)
		}
	}()
	w := s.works.Get().(*work)
	w.begin(s)
	why := w.head.take(r)
	if why == accepted {
		why = w.decide(r.Context().Value(connKey{}).(*conn))
	}
	if why != accepted {
		w.refuse(why)
	}
	w.respond(rw)
	w.forget()
	s.works.Put(w)
}

// respond sends the answer.
func (w *work) respond(rw http.ResponseWriter) {
	h := rw.Header()
	h["Date"] = []string{w.date}
	if w.head.closing {
		h["Connection"] = []string{"close"} // of the whole connection, by GOAWAY
	}
	p := w.page
	if p == nil {
		w.respondDecision(rw)
		return
	}
	h["Content-Type"] = []string{pageType}
	h["Content-Length"] = []string{strconv.Itoa(len(p.body))}
	h["Cache-Control"] = []string{pageCache}
	if p.name != "" {
		h[p.name] = []string{p.value}
	}
	rw.WriteHeader(p.status)
	if !w.head.isHead {
		_, _ = io.WriteString(rw, p.body)
	}
}

// respondDecision sends the answer that was decided.
func (w *work) respondDecision(rw http.ResponseWriter) {
	h, d := rw.Header(), &w.decision
	h["Content-Length"] = []string{strconv.Itoa(len(d.Body))}
	h["Cache-Control"] = []string{d.CacheControl}
	if d.Location == nil {
		h["Content-Type"] = []string{pageType}
	} else {
		h["Location"] = []string{string(d.Location)}
		if d.RobotsTag != "" {
			h["X-Robots-Tag"] = []string{d.RobotsTag}
		}
	}
	rw.WriteHeader(d.Status)
	if !w.head.isHead {
		_, _ = rw.Write(d.Body)
	}
}

// take makes a head of a request that net/http has read. What net/http lets
// pass and the parser refuses is refused here too, so that a link means the
// same over every protocol.
func (h *head) take(r *http.Request) refusal {
	*h = head{isHead: r.Method == http.MethodHead, geo: h.geo}
	if !h.isHead && r.Method != http.MethodGet {
		return badMethod
	}
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 || len(r.Trailer) > 0 {
		return hasBody
	}
	for _, length := range r.Header["Content-Length"] {
		if length != "0" {
			return hasBody
		}
	}
	if len(r.Header["Expect"]) > 0 { // net/http has taken 100-continue
		return badExpect
	}
	if hosts := r.Header["Host"]; r.Host == "" || len(hosts) > 1 || len(hosts) == 1 && !equalFold(hosts[0], r.Host) {
		return badHost
	}
	if r.RequestURI == "" || r.RequestURI[0] != '/' {
		return badTarget
	}
	h.host = []byte(r.Host)
	for i, name := range headerNames {
		if values := r.Header[name]; len(values) > 0 {
			h.headers[i] = []byte(values[0])
		}
	}
	h.takeGeo(r.Header)
	h.xForwardedFor = asLines(xForwardedFor, r.Header)
	h.forwarded = asLines(forwarded, r.Header)
	return h.setTarget([]byte(r.RequestURI))
}

// asLines gives the values of a header as they lie in a head of HTTP/1.
func asLines(name headerName, header http.Header) []byte {
	values := header[name.usual]
	if values == nil {
		return nil
	}
	return []byte(strings.Join(values, "\r\n"+name.usual+":"))
}
