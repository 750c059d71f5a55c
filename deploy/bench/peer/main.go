//go:build linux

// Command peer is what affnode is compared with where that is not nginx: the
// same links in a Go map behind another HTTP server, answering each path with
// a redirect as the node does. It is for benchmarks only.
//
//	peer fasthttp 127.0.0.1:8080 1000000
//	peer net/http 127.0.0.1:8080 1000000
//	peer fixed    127.0.0.1:8080 0
//
// fixed looks at nothing and answers always the same: what is left is the
// kernel's share.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"

	"github.com/valyala/fasthttp"

	"github.com/affleet/affleet/deploy/bench/linkset"
)

const (
	// status and cacheControl are those of affnode's answers.
	status       = http.StatusFound
	cacheControl = "no-store"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: peer fasthttp|net/http|fixed ADDRESS LINKS")
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	links := make(map[string]string, n)
	for l := range (linkset.Set{Seed: 1}).Links(n) {
		links[l.GetPath()] = l.GetDestination()
	}
	debug.FreeOSMemory()
	ln, err := net.Listen("tcp", args[1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "fasthttp":
		return serveFast(ln, links)
	case "net/http":
		return serveStandard(ln, links)
	case "fixed":
		return serveFixed(ln)
	}
	return fmt.Errorf("there is no peer %q", args[0])
}

func serveFast(ln net.Listener, links map[string]string) error {
	return (&fasthttp.Server{
		NoDefaultServerHeader: true,
		NoDefaultContentType:  true,
		Handler: func(ctx *fasthttp.RequestCtx) {
			to, ok := links[string(ctx.Path())]
			if !ok {
				ctx.SetStatusCode(http.StatusNotFound)
				return
			}
			h := &ctx.Response.Header
			h.SetStatusCode(status)
			h.Set(fasthttp.HeaderLocation, to)
			h.Set(fasthttp.HeaderCacheControl, cacheControl)
		},
	}).Serve(ln)
}

func serveStandard(ln net.Listener, links map[string]string) error {
	return http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to, ok := links[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		h := w.Header()
		h.Set("Location", to)
		h.Set("Cache-Control", cacheControl)
		w.WriteHeader(status)
	}))
}
