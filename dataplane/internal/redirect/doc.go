// Package redirect answers HTTP/1.1 and HTTP/1.0 requests with redirects: it
// reads request heads from TCP connections, asks the current table, records
// the click and writes the answer.
//
// # The path of a request
//
// A connection is a goroutine that sleeps in the runtime's poller and holds no
// buffer while it does. When the socket has bytes, the goroutine borrows a
// work (read buffer, write buffer, scratch), reads into it, and answers every
// complete head that it finds there, in order:
//
//	head.parse -> link.AppendCanonicalHost/Path -> table.Lookup -> link.Resolve
//	  -> click.Record -> appendRedirect
//
// The answers of all pipelined requests leave in one write. Then the work goes
// back, and only the start of an incomplete head stays with the connection. In
// all this nothing is allocated, no lock is taken and no system call is made
// but those on the socket.
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
// It speaks plain HTTP/1 only: no TLS, no HTTP/2, no handlers. Anything other
// than redirects (health, metrics, an API) belongs on another listener.
//
// # Concurrency
//
// A Server is safe for any number of goroutines; each Serve owns the
// goroutines that it starts and has ended them all when it returns.
package redirect
