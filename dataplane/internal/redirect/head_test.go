package redirect

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"

	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/visitor"
)

// browser is a request as browsers send it.
const browser = "GET /go/summer-deal-2026?utm_source=mail HTTP/1.1\r\n" +
	"Host: go.example.com\r\n" +
	"Connection: keep-alive\r\n" +
	"sec-ch-ua: \"Chromium\";v=\"126\", \"Not/A)Brand\";v=\"8\"\r\n" +
	"sec-ch-ua-mobile: ?0\r\n" +
	"sec-ch-ua-platform: \"Windows\"\r\n" +
	"Upgrade-Insecure-Requests: 1\r\n" +
	"User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\n" +
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n" +
	"Sec-Purpose: prefetch\r\nPurpose: prefetch\r\nX-Moz: prefetch\r\nSec-GPC: 1\r\n" +
	"Referer: https://www.example.org/articles/summer-deals\r\n" +
	"Accept-Encoding: gzip, deflate, br, zstd\r\n" +
	"Accept-Language: en-US,en;q=0.9,de;q=0.8\r\n\r\n"

func TestParserKeepsWhatIsReadLater(t *testing.T) {
	var h head
	n, why := h.parse([]byte(browser + "more"))
	if n != len(browser) || why != accepted {
		t.Fatalf("got %d of %d bytes, refusal %d", n, len(browser), why)
	}
	for i, want := range [visitor.GeoCountry]string{
		userAgent:      "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
		referrer:       "https://www.example.org/articles/summer-deals",
		acceptLanguage: "en-US,en;q=0.9,de;q=0.8",
		visitor.Brands: `"Chromium";v="126", "Not/A)Brand";v="8"`, visitor.Mobile: "?0", visitor.Platform: `"Windows"`,
		accept: "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", secFetchMode: "",
		secPurpose: "prefetch", purpose: "prefetch", xMoz: "prefetch", secGPC: "1",
	} {
		if string(h.headers[i]) != want {
			t.Errorf("%s is %q, want %q", headerNames[i], h.headers[i], want)
		}
	}
	if string(h.host) != "go.example.com" || string(h.path) != "/go/summer-deal-2026" || string(h.query) != "utm_source=mail" {
		t.Errorf("got %q %q %q", h.host, h.path, h.query)
	}
}

func TestParserWaitsForTheWholeHead(t *testing.T) {
	checkPrefixes(t, []byte(browser))
}

// checkPrefixes checks that no part of an acceptable head is taken for more.
func checkPrefixes(t *testing.T, whole []byte) {
	var h head
	for k := range whole {
		if n, why := h.parse(whole[:k:k]); n != 0 || why != accepted {
			t.Fatalf("%d bytes of %q: got %d bytes, refusal %q", k, whole, n, refusals[why].reason)
		}
	}
}

func TestNextControlFindsEveryControlByteAtEveryPlace(t *testing.T) {
	for length := range 40 {
		for at := range length {
			for c := range 256 {
				b := bytes.Repeat([]byte{0xff, 'a', 0x80, '~', ' '}, 8)[:length]
				b[at] = byte(c)
				want := length
				if c < 0x20 || c == 0x7f {
					want = at
				}
				if got := nextControl(b, 0); got != want {
					t.Fatalf("%q: got %d, want %d", b, got, want)
				}
				if got := nextControl(b, at+1); got != length {
					t.Fatalf("%q behind %d: got %d, want %d", b, at, got, length)
				}
			}
		}
	}
}

func TestSkipLettersStopsAtEveryOtherByteAtEveryPlace(t *testing.T) {
	isLetter := func(c byte) bool { return c == '-' || 'a' <= c|0x20 && c|0x20 <= 'z' }
	for length := range 40 {
		for at := range length {
			for c := range 256 {
				b := bytes.Repeat([]byte("a-zAZ"), 8)[:length]
				b[at] = byte(c)
				got := skipLetters(b, at/2)
				switch {
				case !isLetter(byte(c)) && got > at:
					t.Fatalf("%q: got %d, past %q", b, got, byte(c))
				case got < len(b) && isLetter(b[got]) && got+8 <= len(b):
					t.Fatalf("%q: got %d, a letter", b, got)
				}
			}
		}
	}
}

// FuzzHead compares the parser with net/http on a row of pipelined requests:
// what net/http refuses is refused, and what is accepted means the same.
func FuzzHead(f *testing.F) {
	f.Add([]byte(browser))
	f.Add([]byte("GET /a HTTP/1.1\r\nx-forwarded-for: a\r\nHost: h\r\nForwarded:\r\nX-Forwarded-For:\t\r\nforwarded: for=b\r\n\r\n"))
	for _, s := range readShapes(f) {
		if len(s.request) < 2000 {
			f.Add([]byte(s.request + getLast))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		theirs := bufio.NewReaderSize(bytes.NewReader(data), max(16, len(data)))
		for rest := data; ; {
			var h head
			n, why := h.parse(rest)
			if why != accepted {
				var longer head
				if m, again := longer.parse(append(rest[:len(rest):len(rest)], "\r\nX: y\r\n\r\n"...)); m != 0 || again != why {
					t.Fatalf("%q is refused as %q, and with more behind it as %q", rest, refusals[why].reason, refusals[again].reason)
				}
				return
			}
			if n == 0 {
				return
			}
			if len(rest) < 300 {
				checkPrefixes(t, rest[:n])
			}
			host, okHost := link.AppendCanonicalHost(nil, h.host)
			if _, okPath := link.AppendCanonicalPath(nil, h.path); !okHost || !okPath {
				return // refused before the table is asked
			}
			req, err := readLikeServer(theirs, rest[:n])
			if err != nil {
				t.Fatalf("%q is accepted, net/http says: %v", rest[:n], err)
			}
			if left := theirs.Buffered(); left != len(rest)-n {
				t.Fatalf("%q: %d bytes are left, for net/http %d", rest, len(rest)-n, left)
			}
			sameRequest(t, &h, host, req)
			rest = rest[n:]
		}
	})
}

// readLikeServer does what net/http's server does until it calls a handler. The next
// request's head is there too, since http.ReadRequest does not give its Host.
func readLikeServer(r *bufio.Reader, head []byte) (*http.Request, error) {
	if r.Buffered() == 0 {
		_, _ = r.Peek(1)
	}
	_, lines, _ := bytes.Cut(head, []byte("\n"))
	fields, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(lines))).ReadMIMEHeader()
	if err != nil {
		return nil, err
	}
	req, err := http.ReadRequest(r)
	if err != nil {
		return nil, err
	}
	switch {
	case req.ProtoMajor != 1:
		return nil, errors.New("version")
	case req.ProtoAtLeast(1, 1) && len(fields["Host"]) == 0:
		return nil, errors.New("no host")
	case len(fields["Host"]) == 1 && !httpguts.ValidHostHeader(fields["Host"][0]):
		return nil, errors.New("a malformed host")
	}
	if n, err := io.Copy(io.Discard, req.Body); n != 0 || err != nil {
		return nil, errors.Join(errors.New("a body"), err)
	}
	return req, nil
}

func sameRequest(t *testing.T, h *head, canonicalHost []byte, req *http.Request) {
	t.Helper()
	method := "GET"
	if h.isHead {
		method = "HEAD"
	}
	path, err := url.PathUnescape(string(h.path))
	if err != nil {
		t.Fatalf("path %q: %v", h.path, err)
	}
	theirPath := req.URL.Path
	if theirPath == "" {
		theirPath = "/"
	}
	if method != req.Method || string(h.host) != req.Host || path != theirPath || string(h.query) != req.URL.RawQuery {
		t.Fatalf("%s %q %q %q, net/http: %s %q %q %q", method, h.host, path, h.query,
			req.Method, req.Host, theirPath, req.URL.RawQuery)
	}
	if h.closing != req.Close {
		t.Fatalf("closing is %v, net/http: %v", h.closing, req.Close)
	}
	if h.oldMinor != (req.ProtoMinor == 0) || req.ProtoMinor > 1 {
		t.Fatalf("HTTP/1.0 is %v, net/http: %s", h.oldMinor, req.Proto)
	}
	if strings.ContainsAny(string(canonicalHost), ":/@ ") && canonicalHost[0] != '[' {
		t.Fatalf("host %q", canonicalHost)
	}
	for i, name := range headerNames {
		values := req.Header.Values(name)
		if (h.headers[i] != nil) != (len(values) > 0) || len(values) > 0 && values[0] != string(h.headers[i]) {
			t.Fatalf("%s is %q, net/http: %q", name, h.headers[i], values)
		}
	}
	for _, s := range []struct {
		span []byte
		name headerName
	}{{h.xForwardedFor, xForwardedFor}, {h.forwarded, forwarded}} {
		if got, want := valuesOf(s.span, s.name), req.Header.Values(s.name.usual); !slices.Equal(got, want) {
			t.Fatalf("%s is %q, net/http: %q", s.name.usual, got, want)
		}
	}
}

// valuesOf takes the values of a header out of a span of a head.
func valuesOf(span []byte, name headerName) (values []string) {
	for i, line := range strings.Split(string(span), "\r\n") {
		if i > 0 {
			key, value, _ := strings.Cut(line, ":")
			if !strings.EqualFold(key, name.usual) {
				continue
			}
			line = value
		} else if span == nil {
			return nil
		}
		values = append(values, strings.Trim(line, " \t"))
	}
	return values
}

func BenchmarkParse(b *testing.B) {
	buf := []byte(browser)
	var h head
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if n, _ := h.parse(buf); n != len(buf) {
			b.Fatal(n)
		}
	}
}
