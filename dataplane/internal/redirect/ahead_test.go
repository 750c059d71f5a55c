package redirect

import "testing"

func TestGlimpse(t *testing.T) {
	for head, want := range map[string][2]string{
		"GET /a HTTP/1.1\r\nHost: x.example\r\n\r\n":          {"x.example", "/a"},
		"GET /a?b=/c HTTP/1.1\r\nHost: x.example\r\nA: b\r\n": {"x.example", "/a"},
		"GET /a?b?c HTTP/1.1\r\nHost: \r":                     {"", "/a"},
		"GET /a HTTP/1.1\r\nHost: x.example":                  {},
		"GET /a HTTP/1.1\r\nAccept: */*\r\nHost: x\r\n":       {},
		"GET /a HTTP/1.0\r\nHost: x\r\n":                      {},
		"HEAD /a HTTP/1.1\r\nHost: x\r\n":                     {},
		"GET /a":                                              {}, "GET ": {}, "GE": {}, "": {}, "GET  ": {},
	} {
		host, path := glimpse([]byte(head))
		if got := [2]string{string(host), string(path)}; got != want {
			t.Errorf("%q: got %q", head, got)
		}
	}
}
