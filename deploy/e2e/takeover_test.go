package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/affleet/affleet/deploy/processes"
)

// startSharing starts a node with a name, data and admin address of its own
// that shares the first node's address.
func (f *fleet) startSharing(i int) *processes.Process {
	f.t.Helper()
	return f.startSharingWith(i, f.t.TempDir(), strings.Join(f.ControlAddr, ","))
}

// startSharingWith is startSharing with data that may be there already, and with
// other control planes.
func (f *fleet) startSharingWith(i int, dir, control string) *processes.Process {
	f.t.Helper()
	p, err := processes.Start(dir, filepath.Join(binaries, "affnode"),
		"--control", control, "--nats", "nats://"+f.NATSAddr,
		"--listen", f.NodeAddr[0], "--reuse-port", "--admin", f.NodeAdmin[i],
		"--node", "node-"+strconv.Itoa(i+1), "--data-dir", "data", "--drain", "5s")
	f.must(err)
	f.t.Cleanup(func() {
		p.Kill()
		if f.t.Failed() {
			f.t.Logf("%s:\n%s", p, p.Output())
		}
	})
	return p
}

func (f *fleet) ready(i int) {
	f.t.Helper()
	f.eventually(fmt.Sprintf("node %d is ready", i+1), func() bool { return status(f.NodeAdmin[i], "/readyz") == http.StatusOK })
}

// askOnce opens a connection, asks for a path, wants a redirect and a clean end,
// and gives where it leads to.
func askOnce(addr, path string) (location string, err error) {
	nc, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return "", err
	}
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: e2e\r\nConnection: close\r\n\r\n", path); err != nil {
		return "", err
	}
	in := bufio.NewReader(nc)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusFound {
		return "", fmt.Errorf("got %s", resp.Status)
	}
	if _, err := in.ReadByte(); err != io.EOF {
		return "", fmt.Errorf("at the end: got %w", err)
	}
	return resp.Header.Get("Location"), nil
}

func TestNewNodeTakesOverUnderLoadWithoutALostRequest(t *testing.T) {
	f := newFleet(t, 1, 2)
	f.must(f.StartEtcd())
	f.must(f.StartNATS())
	f.must(f.StartControl(0))
	old := f.startSharing(0)
	f.ready(0)
	f.do("link", "create", "/a", "https://store.com/a", "--wait")

	var asked atomic.Int64
	var clients sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := askOnce(f.NodeAddr[0], "/a"); err != nil {
					t.Errorf("connection %d: %v", asked.Load(), err)
				}
				if asked.Add(1) > 1_000_000 {
					return
				}
			}
		})
	}
	const takeovers = 4
	for i := 1; i <= takeovers; i++ {
		next := f.startSharing(i % 2)
		f.ready(i % 2)
		before := asked.Load()
		if code, err := old.Stop(); code != 0 {
			t.Errorf("SIGTERM ends with exit code %d %v, want 0", code, err)
		}
		f.eventually("the new node answers", func() bool { return asked.Load() > before+100 })
		old = next
	}
	close(done)
	clients.Wait()
	t.Logf("%d connections over %d takeovers", asked.Load(), takeovers)
	f.clicks(int(asked.Load()))
}

func TestNodeThatTakesOverIsNotAskedBeforeItHasAState(t *testing.T) {
	f := newFleet(t, 1, 2)
	f.must(f.StartEtcd())
	f.must(f.StartNATS())
	f.must(f.StartControl(0))
	f.startSharing(0)
	f.ready(0)
	f.do("link", "create", "/a", "https://store.com/a", "--wait")
	f.Control[0].Kill()
	f.startSharing(1)
	f.eventually("the new node lives", func() bool { return status(f.NodeAdmin[1], "/livez") == http.StatusOK })
	for range 200 {
		if _, err := askOnce(f.NodeAddr[0], "/a"); err != nil {
			t.Fatal(err)
		}
	}
	if got := status(f.NodeAdmin[1], "/readyz"); got != http.StatusServiceUnavailable {
		t.Errorf("a node without state is ready: %d", got)
	}
}

func TestNodeThatTakesOverIsNotAskedBeforeAControlPlaneHasConfirmedItsState(t *testing.T) {
	f := newFleet(t, 1, 2)
	f.must(f.StartEtcd())
	f.must(f.StartNATS())
	f.must(f.StartControl(0))
	line := openLine(t, f.ControlAddr[0])
	dir := t.TempDir()
	next := f.startSharingWith(1, dir, line.addr)
	f.ready(1)
	f.do("link", "create", "/a", "https://store.com/old", "--wait")
	if code, err := next.Stop(); code != 0 {
		t.Fatalf("SIGTERM ends with exit code %d %v, want 0", code, err)
	}

	old := f.startSharing(0)
	f.ready(0)
	f.do("link", "update", "/a", "https://store.com/new", "--wait")
	line.cut()
	next = f.startSharingWith(1, dir, line.addr)
	f.hasState(1)
	f.leads("/a", "https://store.com/new", 2*time.Second)
	if got := status(f.NodeAdmin[1], "/readyz"); got != http.StatusServiceUnavailable {
		t.Errorf("a node that has taken nothing over is ready: %d", got)
	}
	line.mend()
	f.ready(1)
	old.Kill()
	f.leads("/a", "https://store.com/new", 0)

	// Where nobody serves, any state is better than none.
	line.cut()
	old = f.startSharing(0)
	f.ready(0)
	if code, err := next.Stop(); code != 0 {
		t.Fatalf("SIGTERM ends with exit code %d %v, want 0", code, err)
	}
	next = f.startSharingWith(1, dir, line.addr)
	f.hasState(1)
	old.Kill()
	f.ready(1)
	f.leads("/a", "https://store.com/new", 0)
	next.Kill()
	f.startSharingWith(1, dir, line.addr)
	f.ready(1)
	f.leads("/a", "https://store.com/new", 0)
}

// hasState waits until a node has a state.
func (f *fleet) hasState(i int) {
	f.t.Helper()
	f.eventually(fmt.Sprintf("node %d has a state", i+1), func() bool {
		return strings.Contains(processes.Get(f.NodeAdmin[i], "/metrics").Body, "\naff_feed_entries 1\n")
	})
}

// leads asks the shared address where a path leads to, once and then for so long.
func (f *fleet) leads(path, to string, long time.Duration) {
	f.t.Helper()
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if location, err := askOnce(f.NodeAddr[0], path); err != nil || location != to {
			f.t.Fatalf("%s leads to %q, %v, want %s", path, location, err, to)
		}
		if time.Since(start) >= long {
			return
		}
	}
}

func TestAddressIsSharedOnlyWhenBothSaySo(t *testing.T) {
	f := newFleet(t, 1, 2)
	f.must(f.StartNode(0))
	f.eventually("the node listens", func() bool { return status(f.NodeAddr[0], "/") != 0 })
	second := f.startSharing(1)
	if code, err := second.Wait(); code != 1 {
		t.Errorf("exit code %d %v, want 1", code, err)
	}
	if out := second.Output(); strings.Count(out, "\n") != 1 || !strings.Contains(out, f.NodeAddr[0]) {
		t.Errorf("it says:\n%s", out)
	}
}

func TestCheckConfigSaysWhatIsWrongWithTheListeners(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"--max-head=100", 2, "max-head"},
		{"--max-conns=-1", 2, "max-conns"},
		{"--max-conns-per-addr=-1", 2, "max-conns-per-addr"},
		{"--head-timeout=-1s", 2, "head-timeout"},
		{"--idle-timeout=-1s", 2, "idle-timeout"},
		{"--max-head=0", 2, "max-head"},
		{"--head-timeout=0s", 2, "head-timeout"},
		{"--idle-timeout=0s", 2, "idle-timeout"},
		{"--drain=0s", 2, "drain"},
		{"--flush=0s", 2, "flush"},
		{"--click-keep=0s", 2, "click-keep"},
		{"--click-address=half", 2, "click-address"},
		{"--click-address=hashed --click-hash-key=none", 2, "click-hash-key: open none: no such file"},
		{"--click-hash-key=none", 2, "click-hash-key: it is for --click-address hashed"},
		{"--guard-grow=0", 2, "guard-grow"},
		{"--guard-floor=0", 2, "guard-floor"},
		{"--listen=8080", 2, "listen"},
		{"--listen-tls=:443", 2, "tls-certs"},
		{"--tls-certs=x", 2, "listen-tls"},
		{"--listen-tls=:443 --tls-certs=none", 2, "tls-certs"},
		{"--proxy-protocol", 2, "trusted-proxies"},
		{"--trusted-proxies=10.0.0.0/8", 2, "trusted-proxies"},
		{"--trusted-proxies=10.0.0.1/8 --proxy-protocol", 2, "10.0.0.0/8"},
		{"--forwarded-header=via", 2, "forwarded-header"},
		{"--trusted-proxies=10.0.0.0/8,::1 --proxy-protocol --forwarded-header=forwarded --reuse-port", 0, "valid"},
	} {
		p, err := processes.Start(t.TempDir(), filepath.Join(binaries, "affnode"), append(strings.Fields(c.args), "--check-config")...)
		if err != nil {
			t.Fatal(err)
		}
		code, err := p.Wait()
		if code != c.code || !strings.Contains(p.Output(), c.says) {
			t.Errorf("%s: exit code %d %v, want %d and %q:\n%s", p, code, err, c.code, c.says, p.Output())
		}
	}
}
