package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/affleet/affleet/deploy/bench/linkset"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// set is the links that are imported.
var set = linkset.Set{Seed: 1}

var imports = measurement{
	name: "import",
	method: "One control plane, three nodes, etcd and NATS, each a process, all empty at the start of each round. The time is that of " +
		"`affctl import ndjson FILE --wait`, from its start to its end: it ends when all nodes have acknowledged the last row. " +
		"Then every link is asked for at every node, and its Location compared.",
	run: measureImport,
}

func measureImport(ctx context.Context, b *bench) ([]row, error) {
	affiliates := filepath.Join(b.dir, "affiliates.ndjson")
	if err := writeFile(affiliates, linkset.WriteAffiliates); err != nil {
		return nil, err
	}
	var rows []row
	for _, size := range []struct {
		links int
		goal  string
	}{{100_000, "10 s"}, {1_000_000, "60 s"}} {
		file := filepath.Join(b.dir, fmt.Sprintf("%d.ndjson", size.links))
		if err := writeFile(file, func(w io.Writer) error { return set.WriteNDJSON(w, size.links) }); err != nil {
			return nil, err
		}
		r := row{what: fmt.Sprintf("import of %d links with --wait, all served", size.links), goal: size.goal}
		for range b.rounds {
			d, err := importRound(ctx, b, affiliates, file, size.links)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(os.Stderr, "%d links: %s\n", size.links, show(d))
			r.samples = append(r.samples, d)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func writeFile(file string, write func(io.Writer) error) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(write(out), out.Close())
}

func importRound(ctx context.Context, b *bench, affiliates, file string, n int) (time.Duration, error) {
	f, end, err := b.fleet()
	if err != nil {
		return 0, err
	}
	defer end()
	if out, code := f.Affctl(ctx, "import", "ndjson", affiliates); code != 0 {
		return 0, fmt.Errorf("affctl import of affiliates: exit code %d\n%s", code, out)
	}
	begin := time.Now()
	if out, code := f.Affctl(ctx, "import", "ndjson", file, "--wait"); code != 0 {
		return 0, fmt.Errorf("affctl import: exit code %d\n%s", code, out)
	}
	took := time.Since(begin)
	for _, addr := range f.NodeAddr {
		if err := checkServed(addr, n); err != nil {
			return 0, fmt.Errorf("node at %s: %w", addr, err)
		}
	}
	return took, nil
}

// checkServed asks a node for every link of the set, some at a time over one
// connection.
func checkServed(addr string, n int) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	in, out := bufio.NewReaderSize(conn, 1<<16), bufio.NewWriterSize(conn, 1<<16)
	const window = 100
	var asked []*linkv1.Link
	answer := func() error {
		if err := out.Flush(); err != nil {
			return err
		}
		for _, l := range asked {
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				return err
			}
			_ = resp.Body.Close() // a redirect has none
			if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusFound || got != l.GetDestination() {
				return fmt.Errorf("%s%s is answered with %s %q, want %q", l.GetDomain(), l.GetPath(), resp.Status, got, l.GetDestination())
			}
		}
		asked = asked[:0]
		return nil
	}
	for l := range set.Links(n) {
		fmt.Fprintf(out, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", l.GetPath(), l.GetDomain())
		if asked = append(asked, l); len(asked) == window {
			if err := answer(); err != nil {
				return err
			}
		}
	}
	return answer()
}
