//go:build linux

package main

import (
	"testing"
)

func TestAnAnswerIsWholeWithItsBody(t *testing.T) {
	const head = "HTTP/1.1 302 Found\r\nContent-Length: 5\r\nLocation: https://a.example/\r\n\r\n"
	for answer, want := range map[string]struct{ whole, fails bool }{
		"":                    {},
		head[:20]:             {},
		head:                  {},
		head + "bod":          {},
		head + "body\n":       {whole: true},
		head + "body\nHTTP/1": {fails: true},
		"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n":     {whole: true},
		"HTTP/1.1 302 Found\r\nContent-Length: x\r\n\r\n":     {fails: true},
		"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n":           {fails: true},
		"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n": {fails: true},
	} {
		b := append(make([]byte, 0, 4096), answer...)
		if whole, err := complete(b); whole != want.whole || (err != nil) != want.fails {
			t.Errorf("%q: %v, %v", answer, whole, err)
		}
	}
}

func TestRequestsOfABeatAreDueAtItsBegin(t *testing.T) {
	g := &generator{interval: 30, beat: 100}
	for request, want := range []int64{0, 0, 0, 0, 100, 100, 100, 200} {
		if got := g.due(request); got != want {
			t.Errorf("request %d is due at %d, want %d", request, got, want)
		}
	}
}
