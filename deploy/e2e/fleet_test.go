package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/affleet/affleet/deploy/processes"
)

var binaries string

// TestMain builds the programs as they are shipped.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "affleet-e2e-")
		if err == nil {
			defer os.RemoveAll(dir)
			err = processes.Build(dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		binaries = dir
		return m.Run()
	}())
}

// fleet is a fleet whose failures fail the test.
type fleet struct {
	*processes.Fleet
	t *testing.T
}

// newFleet lays out a fleet. When the test ends it is killed, and its output is
// shown if the test has failed.
func newFleet(t *testing.T, controls, nodes int) *fleet {
	t.Helper()
	laidOut, err := processes.New(binaries, t.TempDir(), controls, nodes)
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{laidOut, t}
	t.Cleanup(func() {
		f.Kill()
		if t.Failed() {
			for _, p := range f.Processes() {
				t.Logf("%s:\n%s", p, p.Output())
			}
		}
	})
	return f
}

// startFleet starts everything and waits until it is ready.
func startFleet(t *testing.T, controls, nodes int) *fleet {
	t.Helper()
	f := newFleet(t, controls, nodes)
	f.must(f.StartAll())
	return f
}

func (f *fleet) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// eventually waits until what is true.
func (f *fleet) eventually(what string, is func() bool) {
	f.t.Helper()
	if !processes.Eventually(is) {
		f.t.Fatalf("it does not come true that %s", what)
	}
}

// affctl runs a command and gives its output and exit code.
func (f *fleet) affctl(args ...string) (string, int) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), processes.Patience)
	defer cancel()
	return f.Affctl(ctx, args...)
}

// do runs a command that must succeed.
func (f *fleet) do(args ...string) string {
	f.t.Helper()
	out, code := f.affctl(args...)
	if code != 0 {
		f.t.Fatalf("affctl %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// status asks for a path and gives the status.
func status(addr, path string) int { return processes.Get(addr, path).Status }

// wantRedirect checks what every node answers at once.
func (f *fleet) wantRedirect(path, location string) {
	f.t.Helper()
	for i, addr := range f.NodeAddr {
		if a := processes.Get(addr, path); a.Status != http.StatusFound || a.Location != location {
			f.t.Fatalf("node %d answers %s with %+v, want 302 to %s", i+1, path, a, location)
		}
	}
}
