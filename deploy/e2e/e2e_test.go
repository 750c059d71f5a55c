package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/deploy/processes"
)

// clicks gives how often each path was clicked.
func (f *fleet) clicks(n int) map[string]int {
	f.t.Helper()
	paths := map[string]int{}
	f.readClicks(n, func(c *clickstream.Click) { paths[c.Path]++ })
	return paths
}

// readClicks consumes the stream from its beginning until it has seen n clicks, or
// for as long as processes.Patience lasts.
func (f *fleet) readClicks(n int, read func(*clickstream.Click)) {
	f.t.Helper()
	nc, err := nats.Connect("nats://"+f.NATSAddr, nats.RetryOnFailedConnect(true), nats.ReconnectWait(50*time.Millisecond), nats.MaxReconnects(-1))
	if err != nil {
		f.t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), processes.Patience)
	defer cancel()
	seen := 0
	_ = clickstream.Consume(ctx, js, clickstream.Options{}, func(_ context.Context, batch *clickstream.Batch) error {
		for i := range batch.Clicks {
			read(&batch.Clicks[i])
			seen++
		}
		if seen >= n {
			cancel()
		}
		return nil
	})
	if seen != n {
		f.t.Errorf("%d clicks are in the stream, want %d", seen, n)
	}
}

func TestLinkWrittenWithAffctlIsServedByEveryNodeAndEveryRedirectIsAClick(t *testing.T) {
	f := startFleet(t, 2, 3)
	f.do("domain", "create", "*", "--not-found", "https://store.com/")
	f.do("affiliate", "create", "aff_01")
	f.do("link", "create", "/go/summer", "https://store.com/p/123?ref=aff_01", "--affiliate", "aff_01", "--wait")
	f.wantRedirect("/go/summer", "https://store.com/p/123?ref=aff_01")

	f.do("link", "update", "/go/summer", "https://store.com/p/456", "--wait")
	f.wantRedirect("/go/summer", "https://store.com/p/456")

	nodes := f.do("nodes")
	for _, name := range []string{"node-1", "node-2", "node-3"} {
		if !strings.Contains(nodes, name) {
			t.Errorf("affctl nodes does not show %s:\n%s", name, nodes)
		}
	}
	if out := f.do("explain", "http://"+f.NodeAddr[0]+"/go/summer"); !strings.Contains(out, "https://store.com/p/456") {
		t.Errorf("affctl explain does not say where it goes:\n%s", out)
	}

	f.do("link", "delete", "/go/summer", "--wait")
	f.wantRedirect("/go/summer", "https://store.com/")
	f.clicks(9)
}

func TestPartsStartInAnyOrder(t *testing.T) {
	f := newFleet(t, 1, 1)
	f.must(f.StartNode(0))
	f.eventually("the node lives and is not ready", func() bool {
		return status(f.NodeAdmin[0], "/livez") == http.StatusOK && status(f.NodeAdmin[0], "/readyz") == http.StatusServiceUnavailable
	})
	if got := status(f.NodeAddr[0], "/x"); got != http.StatusServiceUnavailable {
		t.Errorf("a node without state answers %d, want 503", got)
	}
	f.must(f.StartControl(0))
	f.eventually("the control plane lives and is not ready", func() bool {
		return status(f.ControlAdmin[0], "/livez") == http.StatusOK && status(f.ControlAdmin[0], "/readyz") == http.StatusServiceUnavailable
	})
	f.must(f.StartEtcd())
	f.must(f.WaitReady())
	f.do("link", "create", "/a", "https://store.com/a", "--wait")
	f.wantRedirect("/a", "https://store.com/a")
	f.must(f.StartNATS())
	if paths := f.clicks(1); paths["/a"] != 1 {
		t.Errorf("the click from before NATS was there: %v", paths)
	}
}

func TestRedirectsGoOnWhenEverythingElseIsDownAndNoClickIsLost(t *testing.T) {
	f := startFleet(t, 1, 2)
	f.do("link", "create", "/a", "https://store.com/a", "--wait")
	f.Etcd.Kill()
	out, code := f.affctl("link", "create", "/b", "https://store.com/b")
	if code != 6 || !strings.Contains(out, "hint:") {
		t.Errorf("a write without etcd: exit code %d, want 6 and a hint:\n%s", code, out)
	}
	f.NATS.Kill()
	f.Control[0].Kill()
	for range 50 {
		f.wantRedirect("/a", "https://store.com/a")
	}
	if out, code = f.affctl("link", "list"); code != 6 || !strings.Contains(out, f.ControlAddr[0]) {
		t.Errorf("without a control plane: exit code %d, want 6 and the address:\n%s", code, out)
	}

	// A node that starts now serves what it had.
	if code, err := f.Nodes[0].Stop(); code != 0 {
		t.Errorf("SIGTERM ends with exit code %d %v, want 0", code, err)
	}
	f.must(f.Nodes[0].Restart())
	f.eventually("the node is ready", func() bool { return status(f.NodeAdmin[0], "/readyz") == http.StatusOK })
	f.wantRedirect("/a", "https://store.com/a")

	f.must(f.Etcd.Restart())
	f.must(f.NATS.Restart())
	f.must(f.Control[0].Restart())
	f.must(f.WaitReady())
	f.connected(2)
	f.do("link", "create", "/b", "https://store.com/b", "--wait")
	f.wantRedirect("/b", "https://store.com/b")
	if paths := f.clicks(104); paths["/a"] != 102 || paths["/b"] != 2 {
		t.Errorf("the stream holds %v, want 102 of /a and 2 of /b", paths)
	}
}

func TestKilledNodeLosesNoAnsweredClick(t *testing.T) {
	f := startFleet(t, 1, 1)
	f.do("link", "create", "/a", "https://store.com/a", "--wait")
	f.NATS.Kill()
	var answered atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if status(f.NodeAddr[0], "/a") != http.StatusFound {
				return
			}
			answered.Add(1)
		}
	}()
	f.eventually("500 clicks are answered", func() bool { return answered.Load() >= 500 })
	f.Nodes[0].Kill()
	<-done
	f.must(f.NATS.Restart())
	f.must(f.Nodes[0].Restart())
	f.must(f.WaitReady())
	f.connected(1)

	// The one that was under way when the node died may have been recorded
	// without its answer having arrived.
	want := int(answered.Load())
	f.do("link", "create", "/last", "https://store.com/", "--wait")
	f.wantRedirect("/last", "https://store.com/")
	got := 0
	f.eventually("every answered click is in the stream", func() bool {
		got = f.count()
		return got >= want+1
	})
	if got > want+2 {
		t.Errorf("%d clicks were answered, %d are in the stream", want+1, got)
	}
}

// count gives how many clicks the stream holds now, without duplicates.
func (f *fleet) count() (n int) {
	f.t.Helper()
	f.readStream(clickstream.Options{}, func(batch *clickstream.Batch) { n += len(batch.Clicks) })
	return n
}

func TestNodesMoveToAnotherReplicaWhenTheirsIsKilled(t *testing.T) {
	f := startFleet(t, 2, 3)
	f.do("link", "create", "/a", "https://store.com/a", "--wait")
	f.Control[0].Kill()
	f.connected(3)
	f.do("link", "create", "/b", "https://store.com/b", "--wait")
	f.wantRedirect("/b", "https://store.com/b")
}

// connected waits until so many nodes are connected to the replicas that live.
func (f *fleet) connected(nodes int) {
	f.t.Helper()
	f.eventually(fmt.Sprintf("%d nodes are connected", nodes), func() bool {
		out, code := f.affctl("nodes", "-o", "name") // a replica may be on its way up
		return code == 0 && strings.Count(out, "node-") == nodes
	})
}

func TestPortInUseIsOneLineThatNamesIt(t *testing.T) {
	f := newFleet(t, 1, 1)
	f.must(f.StartNode(0))
	f.eventually("the node listens", func() bool { return status(f.NodeAddr[0], "/") != 0 })
	second, err := processes.Start(t.TempDir(), f.Nodes[0].Path, f.Nodes[0].Args...)
	f.must(err)
	if code, err := second.Wait(); code != 1 {
		t.Errorf("exit code %d %v, want 1", code, err)
	}
	if out := second.Output(); strings.Count(out, "\n") != 1 || !strings.Contains(out, f.NodeAddr[0]) {
		t.Errorf("it says:\n%s", out)
	}
}

func TestCheckConfigValidatesAndEnds(t *testing.T) {
	for _, c := range []struct {
		program, arg string
		code         int
		says         string
	}{
		{"affcontrol", "--etcd=http://127.0.0.1:1", 0, "valid"},
		{"affcontrol", "--etcd=", 2, "etcd"},
		{"affnode", "--control=127.0.0.1:1", 0, "valid"},
		{"affnode", "--control=", 2, "control"},
		{"affnode", "--node=a/b", 2, "node"},
		{"affnode", "--no-such-flag", 2, "no-such-flag"},
	} {
		p, err := processes.Start(t.TempDir(), filepath.Join(binaries, c.program), "--check-config", c.arg)
		if err != nil {
			t.Fatal(err)
		}
		code, err := p.Wait()
		if code != c.code || !strings.Contains(p.Output(), c.says) {
			t.Errorf("%s: exit code %d %v, want %d and %q:\n%s", p, code, err, c.code, c.says, p.Output())
		}
	}
}
