package redirect

import (
	"bytes"
	"syscall"

	"github.com/affleet/affleet/dataplane/internal/table"
)

// arrival is what a read from a socket gave.
type arrival struct {
	n     int
	errno syscall.Errno

	// Of a loop's, when it is read before it is answered.
	in   []byte // as long as a head may be
	link table.Ahead
}

// glimpse guesses what a head asks for, which begins as those of most clients do:
// nil when it does not.
func glimpse(head []byte) (host, path []byte) {
	const method, between = "GET ", " HTTP/1.1\r\nHost: "
	if !bytes.HasPrefix(head, []byte(method)) {
		return nil, nil
	}
	target, _, _ := bytes.Cut(head[len(method):], []byte(" "))
	rest := head[len(method)+len(target):]
	if !bytes.HasPrefix(rest, []byte(between)) {
		return nil, nil
	}
	host, _, ok := bytes.Cut(rest[len(between):], []byte("\r"))
	if !ok {
		return nil, nil
	}
	path, _, _ = bytes.Cut(target, []byte("?"))
	return host, path
}
