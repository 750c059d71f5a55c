// Package redirect answers requests with redirects: it reads request heads of
// HTTP/1.1 and HTTP/1.0 from TCP connections, plain or with TLS, asks the
// current table, records the click and writes the answer. HTTP/2 comes to the
// same decision by way of net/http.
//
// # The path of a request
//
// On Linux, a connection is one of many of an event loop, of which there is one
// for each core; a loop asks the kernel which of them have input. Elsewhere, and
// where a connection has to wait for its client in the middle of something, it is
// a goroutine that sleeps in the runtime's poller. Neither holds a buffer while it
// waits. When the socket has bytes, whoever serves it borrows a work (read buffer,
// write buffer, scratch), reads into it, and answers every complete head that it
// finds there, in order:
//
//	head.parse -> link.AppendCanonicalHost/Path -> table.Lookup -> label.Judge
//	  -> link.Resolve -> click.Record -> appendRedirect
//
// The answers of all pipelined requests leave in one write. Then the work goes
// back, and only the start of an incomplete head stays with the connection. In
// all this nothing is allocated, no lock is taken and no system call is made
// but those on the socket. Only a head that arrives in pieces may need a buffer for
// its start, where the work has none: it keeps a few, up to 2 KiB, so that what a full
// read buffer cuts off needs none of its own.
//
// A connection with TLS is a goroutine, with the same parser, but reads through
// crypto/tls, and so keeps its work while it waits. Where HTTP/2 was
// agreed on, net/http has the connection, through frames, which keeps the time for a
// head, and work.decide is where both meet.
//
// # Whose request it is
//
// The address of a click is the peer's, unless the peer is a trusted proxy. Such
// a one says whose connection it passes on in a PROXY protocol header, which it
// must send when that is set, or whose request, in X-Forwarded-For or
// Forwarded; of those the right-most address that is not trusted counts. What
// strangers say of themselves is never believed: their PROXY header is a bad
// request, and their headers are passed over.
//
// # Work for others
//
// Where one event loop has the only core, what else computes there is interrupted by
// each request. Beside runs work on the loop's own thread, which answers what has come
// between two pieces of it.
//
// # Taking over
//
// A Claim lets a new process serve an address that an old one still serves. A
// listener that is closed loses nothing: see Serve and Claim.
//
// # Strictness
//
// Only GET and HEAD without a body are served. Where a head is malformed, has
// a body or could be read in two ways, it gets an error with "Connection:
// close" and the connection is closed, so that what follows is never taken for
// a request. The parser accepts less than net/http, never more.
//
// # When not to use it
//
// It knows no handlers: anything other than redirects (health, metrics, an API)
// belongs on another listener.
//
// # Concurrency
//
// A Server is safe for any number of goroutines; each Serve owns the loops and
// goroutines that it starts and has ended them all when it returns.
package redirect
