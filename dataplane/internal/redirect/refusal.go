package redirect

// refusal is why a request head gets an error and its connection is closed.
type refusal uint8

const (
	accepted       refusal = iota
	incomplete             // of the parser: the line has no end yet
	badRequestLine         // not method, one space, target, one space, version
	badVersion             // neither HTTP/1.0 nor HTTP/1.1
	badMethod              // neither GET nor HEAD
	badTarget              // no origin or absolute form, or a broken escape
	badHost                // none, two, not a host, or another than the target's
	badHeader              // not name, colon, value, CR LF
	badExpect              // an expectation other than 100-continue
	hasBody                // a Content-Length other than 0, or a Transfer-Encoding
	longTarget             // the request line alone is longer than a head may be
	longHead               // the head is longer than it may be
	numRefusals
)

// refusals says what a refusal is called in metrics and how it is answered.
var refusals = [numRefusals]struct {
	reason string
	page   page
}{
	badRequestLine: {"request_line", newPage("400 Bad Request", "", "", "bad request line\n")},
	badVersion:     {"version", newPage("505 HTTP Version Not Supported", "", "", "HTTP/1.0 and HTTP/1.1 are served here\n")},
	badMethod:      {"method", newPage("405 Method Not Allowed", "Allow", "GET, HEAD", "GET and HEAD are served here\n")},
	badTarget:      {"target", newPage("400 Bad Request", "", "", "bad request target\n")},
	badHost:        {"host", newPage("400 Bad Request", "", "", "bad Host\n")},
	badHeader:      {"header", newPage("400 Bad Request", "", "", "bad header line\n")},
	badExpect:      {"expect", newPage("417 Expectation Failed", "", "", "unknown expectation\n")},
	hasBody:        {"body", newPage("400 Bad Request", "", "", "a request with a body is not served here\n")},
	longTarget:     {"long_target", newPage("414 URI Too Long", "", "", "request target too long\n")},
	longHead:       {"long_head", newPage("431 Request Header Fields Too Large", "", "", "request head too long\n")},
}
