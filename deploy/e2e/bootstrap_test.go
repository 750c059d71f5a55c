package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/affleet/affleet/deploy/processes"
)

// newcomer is a node that may take its first state from a place, and is asked for /a
// all the time.
type newcomer struct {
	*processes.Process
	addr, admin, place string

	mu  sync.Mutex
	all []string // answers, each that differs from the one before
}

// startFrom starts a new node, and asks it until the test ends.
func (f *fleet) startFrom(i int, place string) *newcomer {
	f.t.Helper()
	f.NodeArgs = []string{"--bootstrap", place}
	f.must(f.StartNode(i))
	n := &newcomer{Process: f.Nodes[i], addr: f.NodeAddr[i], admin: f.NodeAdmin[i], place: place}
	var asking sync.WaitGroup
	asking.Go(func() {
		for f.t.Context().Err() == nil {
			n.ask()
			time.Sleep(5 * time.Millisecond) // others want the cores, too
		}
	})
	f.t.Cleanup(asking.Wait)
	return n
}

// ask asks once. No answer at all is none.
func (n *newcomer) ask() {
	n.mu.Lock()
	defer n.mu.Unlock()
	got := processes.Get(n.addr, "/a")
	says := strconv.Itoa(got.Status)
	if got.Status == http.StatusFound {
		says = got.Location
	}
	if got.Status != 0 && (len(n.all) == 0 || n.all[len(n.all)-1] != says) {
		n.all = append(n.all, says)
	}
}

// wantAnswered checks that the node has redirected to these, one after the other, since
// it had a state, and does so to the last.
func (n *newcomer) wantAnswered(t *testing.T, locations ...string) {
	t.Helper()
	n.ask()
	n.mu.Lock()
	defer n.mu.Unlock()
	got := n.all
	if len(got) > 0 && got[0] == "503" {
		got = got[1:]
	}
	if !slices.Equal(got, locations) {
		t.Errorf("from %s: the node has answered %q, want %q", n.place, got, locations)
	}
}

// leaveOneNode starts a fleet in which /a leads to one destination and then to
// another, and ends all of it but a node, whose file has that. It gives the file.
func (f *fleet) leaveOneNode(before, then string) []byte {
	f.t.Helper()
	f.must(f.StartEtcd())
	f.must(f.StartControl(0))
	f.NodeArgs = []string{"--flush", "100ms"} // there is no NATS to publish to
	f.must(f.StartNode(0))
	f.ready(0)
	f.do("link", "create", "/a", before, "--wait")
	f.do("link", "update", "/a", then, "--wait")
	f.Etcd.Kill()
	f.Control[0].Kill()
	if code, err := f.Nodes[0].Stop(); code != 0 { // it writes its file
		f.t.Fatalf("exit code %d %v", code, err)
	}
	f.must(f.Nodes[0].Restart())
	f.ready(0)
	content, err := os.ReadFile(stateFile(f.Nodes[0]))
	f.must(err)
	return content
}

// What a node says of the place of its first state.
const (
	takesPlace   = "serving that of another place"
	refusesPlace = "cannot start from the state of another place"
)

// wantRefused checks that the node has said once what is wrong with a torn file, and
// goes on without a state.
func (n *newcomer) wantRefused(f *fleet) {
	f.t.Helper()
	said := func() (lines []string) {
		for line := range strings.Lines(n.Output()) {
			if strings.Contains(line, refusesPlace) {
				lines = append(lines, line)
			}
		}
		return lines
	}
	f.eventually("the torn file is refused", func() bool { return len(said()) > 0 })
	f.eventually("the node has tried again", func() bool {
		var streams int
		_, text, _ := strings.Cut(processes.Get(n.admin, "/metrics").Body, "\naff_feed_disconnects_total ")
		_, err := fmt.Sscan(text, &streams)
		return err == nil && streams > 2
	})
	lines := said()
	if len(lines) != 1 {
		f.t.Errorf("%d lines say that the file is not used, want 1: %q", len(lines), lines)
	}
	for _, says := range []string{n.place, "ends inside a block", `"hint":`} {
		if !strings.Contains(lines[0], says) {
			f.t.Errorf("it does not say %q: %s", says, lines[0])
		}
	}
	if live, ready := status(n.admin, "/livez"), status(n.admin, "/readyz"); live != http.StatusOK || ready != http.StatusServiceUnavailable {
		f.t.Errorf("with a torn file, /livez says %d and /readyz %d, want 200 and 503", live, ready)
	}
	n.wantAnswered(f.t)
}

// There is no NATS at any time. Etcd and the control plane come back in the end.
func TestNewNodeServesTheStateOfAnotherPlaceUntilAControlPlaneComes(t *testing.T) {
	const first, second, third = "https://store.com/1", "https://store.com/2", "https://store.com/3"
	f := newFleet(t, 1, 6)
	state := f.leaveOneNode(first, second)
	dir := t.TempDir()
	file, torn := filepath.Join(dir, "state.aff"), filepath.Join(dir, "torn.aff")
	f.must(os.WriteFile(file, state, 0o600))
	f.must(os.WriteFile(torn, state[:len(state)-5], 0o600))
	files := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(files.Close)

	nodes := []*newcomer{f.startFrom(1, f.NodeAdmin[0]), f.startFrom(2, file), f.startFrom(3, files.URL+"/state.aff")}
	without := f.startFrom(4, torn)
	for i, n := range nodes {
		f.ready(1 + i)
		n.wantAnswered(t, second)
		f.eventually("the node says what it serves", func() bool { return strings.Contains(n.Output(), takesPlace) })
	}
	without.wantRefused(f)

	f.must(f.Etcd.Restart())
	f.must(f.Control[0].Restart())
	f.connected(5)
	f.do("link", "update", "/a", third, "--wait")
	f.do("link", "create", "/b", "https://store.com/b", "--wait")
	late := f.startFrom(5, file) // which is older now than what the fleet serves
	f.must(f.WaitReady())
	f.wantRedirect("/a", third)
	f.wantRedirect("/b", "https://store.com/b")
	for _, n := range nodes {
		n.wantAnswered(t, second, third)
		if strings.Contains(n.Output(), "snapshot applied") {
			t.Errorf("from %s: the node began anew with a snapshot when the control plane came", n.place)
		}
	}
	if strings.Contains(late.Output(), takesPlace) {
		t.Error("a new node has taken an older state than its control plane had for it")
	}
}
