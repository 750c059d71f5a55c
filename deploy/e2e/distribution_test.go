package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/deploy/processes"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// replica are the admin services of one replica.
type replica struct {
	links adminv1.LinkServiceClient
	fleet adminv1.FleetServiceClient
}

func (f *fleet) replica(i int) replica {
	f.t.Helper()
	conn, err := grpc.NewClient(f.ControlAddr[i], grpc.WithTransportCredentials(insecure.NewCredentials()))
	f.must(err)
	f.t.Cleanup(func() { _ = conn.Close() })
	return replica{adminv1.NewLinkServiceClient(conn), adminv1.NewFleetServiceClient(conn)}
}

func linkTo(path, destination string) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: "*", Path: path, Destination: destination}}}
}

// put writes a link.
func (r replica) put(ctx context.Context, path, destination string) (*linkv1.Version, error) {
	w, err := r.links.Update(ctx, &adminv1.UpdateRequest{Resource: linkTo(path, destination), AllowMissing: true})
	return w.GetVersion(), err
}

// served waits until so many nodes serve a version.
func (f *fleet) served(r replica, v *linkv1.Version, nodes int) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), processes.Patience)
	defer cancel()
	if _, err := r.fleet.WaitForVersion(ctx, &adminv1.WaitForVersionRequest{Version: v, MinNodes: int32(nodes)}); err != nil {
		f.t.Fatalf("version %v is not served by %d nodes: %v", v, nodes, err)
	}
}

// stateFile is a node's last known good state.
func stateFile(p *processes.Process) string {
	return filepath.Join(p.Dir, "data", "state", "state.aff")
}

// soon bounds a call.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), processes.Patience)
	t.Cleanup(cancel)
	return ctx
}

func TestNoAcknowledgedWriteIsLostWhenAReplicaIsKilled(t *testing.T) {
	f := startFleet(t, 2, 2)
	replicas := []replica{f.replica(0), f.replica(1)}
	_, err := replicas[1].put(t.Context(), "/stable", "https://store.com/stable")
	f.must(err)
	var acknowledged [4]atomic.Int64 // the last of each writer
	var writers sync.WaitGroup
	done := make(chan struct{})
	for w := range acknowledged {
		writers.Go(func() {
			for i := int64(1); ; i++ {
				select {
				case <-done:
					return
				default:
				}
				// Half of them write through the replica that is killed, until it
				// is: then it says so, and they go to the other one.
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				_, err := replicas[w%2].put(ctx, fmt.Sprintf("/w%d", w), fmt.Sprintf("https://store.com/%d", i))
				if err != nil {
					_, err = replicas[1].put(ctx, fmt.Sprintf("/w%d", w), fmt.Sprintf("https://store.com/%d", i))
				}
				cancel()
				if err != nil {
					t.Errorf("the replica that lives does not take a write: %v", err)
					return
				}
				acknowledged[w].Store(i)
			}
		})
	}
	written := func(more int64) {
		var at [len(acknowledged)]int64
		for w := range at {
			at[w] = acknowledged[w].Load()
		}
		f.eventually("writes go on", func() bool {
			for w := range at {
				if acknowledged[w].Load() < at[w]+more {
					return false
				}
			}
			return true
		})
	}
	written(50)
	f.Control[0].Kill()
	written(50)
	close(done)
	writers.Wait()
	f.connected(2)
	v, err := replicas[1].put(soon(t), "/last", "https://store.com/last")
	f.must(err)
	f.served(replicas[1], v, 2)
	f.wantRedirect("/stable", "https://store.com/stable")
	for w := range acknowledged {
		f.wantRedirect(fmt.Sprintf("/w%d", w), fmt.Sprintf("https://store.com/%d", acknowledged[w].Load()))
	}
}

func TestNodesThatAreKilledWhileAllReplicasAreDownServeWhatTheyServed(t *testing.T) {
	f := startFleet(t, 2, 2)
	f.do("link", "create", "/a", "https://store.com/1", "--wait")
	f.eventually("the nodes have a file", func() bool {
		for _, n := range f.Nodes {
			if _, err := os.Stat(stateFile(n)); err != nil {
				return false
			}
		}
		return true
	})
	f.do("link", "update", "/a", "https://store.com/2", "--wait")
	for _, p := range append(f.Control, f.Nodes...) {
		p.Kill()
	}
	for i := range f.Nodes {
		f.must(f.Nodes[i].Restart())
		f.ready(i)
	}
	f.wantRedirect("/a", "https://store.com/2")
	for i := range f.Control {
		f.must(f.Control[i].Restart())
	}
	f.must(f.WaitReady())
	f.connected(2)
	f.do("link", "update", "/a", "https://store.com/3", "--wait")
	f.wantRedirect("/a", "https://store.com/3")
}

func TestEtcdThatStandsStillStopsWritesAndNothingElse(t *testing.T) {
	const stands = 10 * time.Second
	f := startFleet(t, 1, 2)
	r := f.replica(0)
	f.do("link", "create", "/a", "https://store.com/1", "--wait")
	f.must(syscall.Kill(f.Etcd.PID(), syscall.SIGSTOP))
	goes := sync.OnceFunc(func() { _ = syscall.Kill(f.Etcd.PID(), syscall.SIGCONT) })
	t.Cleanup(goes)
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), stands)
	if v, err := r.put(ctx, "/a", "https://store.com/2"); err == nil {
		t.Errorf("a write while etcd stands still is acknowledged: %v", v)
	}
	cancel()
	for time.Since(begin) < stands {
		f.wantRedirect("/a", "https://store.com/1")
		time.Sleep(20 * time.Millisecond)
	}
	goes()
	// A write that was not acknowledged may have been made or not. The next one
	// decides.
	var v *linkv1.Version
	f.eventually("writes go on", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var err error
		v, err = r.put(ctx, "/a", "https://store.com/3")
		return err == nil
	})
	f.served(r, v, 2)
	f.wantRedirect("/a", "https://store.com/3")
}

func TestLinksThatWereDeletedBehindAPartitionDoNotComeBackAsZombies(t *testing.T) {
	f := newFleet(t, 2, 1)
	f.must(f.StartEtcd())
	f.must(f.StartNATS())
	f.must(f.StartControl(0))
	// The node's own replica reaches etcd through a line that can be cut.
	line := openLine(t, f.EtcdAddr)
	cut, err := processes.Start(t.TempDir(), filepath.Join(binaries, "affcontrol"),
		"--etcd", "http://"+line.addr, "--listen", f.ControlAddr[1], "--admin", f.ControlAdmin[1])
	f.must(err)
	t.Cleanup(cut.Kill)
	node, err := processes.Start(t.TempDir(), filepath.Join(binaries, "affnode"), "--control", f.ControlAddr[1], "--nats", "nats://"+f.NATSAddr,
		"--listen", f.NodeAddr[0], "--admin", f.NodeAdmin[0], "--node", "node-1", "--data-dir", "data")
	f.must(err)
	t.Cleanup(func() {
		node.Kill()
		if t.Failed() {
			t.Logf("%s:\n%s\n%s:\n%s", cut, cut.Output(), node, node.Output())
		}
	})
	f.must(f.WaitReady())
	a, b := f.replica(0), f.replica(1)
	var v *linkv1.Version
	for i := range 20 {
		v, err = a.put(soon(t), fmt.Sprintf("/%d", i), "https://store.com/")
		f.must(err)
	}
	f.served(b, v, 1)

	line.cut()
	for i := range 10 {
		_, err := a.links.Delete(soon(t), &adminv1.DeleteRequest{Name: fmt.Sprintf("links/*/%d", i)})
		f.must(err)
	}
	v, err = a.put(soon(t), "/new", "https://store.com/new")
	f.must(err)
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + f.EtcdAddr}, Logger: zap.NewNop()})
	f.must(err)
	defer etcd.Close()
	_, err = etcd.Compact(soon(t), v.GetRevision(), clientv3.WithCompactPhysical())
	f.must(err)
	f.wantRedirect("/3", "https://store.com/") // nobody has told the node
	line.mend()
	f.served(b, v, 1)
	f.wantRedirect("/new", "https://store.com/new")
	for i := range 20 {
		if got := status(f.NodeAddr[0], fmt.Sprintf("/%d", i)); (got == http.StatusFound) != (i >= 10) {
			t.Errorf("link %d is answered with %d", i, got)
		}
	}
}

func TestTruncatedFileIsRefusedWithOneLineAndThePreviousOneServes(t *testing.T) {
	f := startFleet(t, 1, 1)
	f.do("link", "create", "/a", "https://store.com/a", "--wait")
	if code, err := f.Nodes[0].Stop(); code != 0 {
		t.Fatalf("exit code %d %v", code, err)
	}
	f.must(f.Nodes[0].Restart())
	f.ready(0)
	f.connected(1)
	f.do("link", "create", "/b", "https://store.com/b", "--wait")
	if code, err := f.Nodes[0].Stop(); code != 0 {
		t.Fatalf("exit code %d %v", code, err)
	}
	f.Control[0].Kill()
	file := stateFile(f.Nodes[0])
	content, err := os.ReadFile(file)
	f.must(err)
	f.must(os.WriteFile(file, content[:len(content)*2/3], 0o600))

	before := len(f.Nodes[0].Output())
	f.must(f.Nodes[0].Restart())
	f.ready(0)
	f.wantRedirect("/a", "https://store.com/a")
	said := func() int { return strings.Count(f.Nodes[0].Output()[before:], "is not used") }
	f.eventually("the node says that the file is not used", func() bool { return said() > 0 })
	f.must(f.Control[0].Restart())
	f.connected(1)
	f.do("link", "create", "/c", "https://store.com/c", "--wait")
	f.wantRedirect("/b", "https://store.com/b")
	f.wantRedirect("/c", "https://store.com/c")
	if n := said(); n != 1 {
		t.Errorf("%d lines say that the file is not used", n)
	}
}

// copyFolder copies a folder's files.
func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func TestRestoredEtcdIsRefusedUntilAnOperatorBeginsANewEpoch(t *testing.T) {
	f := startFleet(t, 1, 2)
	r := f.replica(0)
	f.do("link", "create", "/a", "https://store.com/old", "--wait")
	if code, err := f.Etcd.Stop(); err != nil {
		t.Fatalf("exit code %d %v", code, err)
	}
	data, backup := filepath.Join(f.Etcd.Dir, "data"), filepath.Join(t.TempDir(), "backup")
	copyFolder(t, data, backup)
	f.must(f.Etcd.Restart())
	var v *linkv1.Version
	f.eventually("writes go on", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var err error
		v, err = r.put(ctx, "/a", "https://store.com/new")
		return err == nil
	})
	for i := range 20 {
		var err error
		v, err = r.put(soon(t), "/b", fmt.Sprintf("https://store.com/%d", i))
		f.must(err)
	}
	f.served(r, v, 2)

	f.Etcd.Kill()
	f.Control[0].Kill()
	f.must(os.RemoveAll(data))
	copyFolder(t, backup, data)
	f.must(f.Etcd.Restart())
	f.must(f.Control[0].Restart())
	// The replica knows nothing of what the nodes serve, and they do not go back.
	f.eventually("somebody says that the store went back", func() bool {
		got, err := r.fleet.GetStatus(soon(t), &adminv1.GetStatusRequest{})
		return err == nil && strings.Contains(strings.Join(got.GetAlarms(), "\n"), "affctl fleet new-epoch")
	})
	f.wantRedirect("/a", "https://store.com/new")
	f.wantRedirect("/b", "https://store.com/19")

	got, err := r.fleet.NewEpoch(soon(t), &adminv1.NewEpochRequest{Current: v.GetEpoch()})
	f.must(err)
	for _, addr := range f.NodeAddr {
		f.eventually("the nodes go over to the new epoch", func() bool {
			return processes.Get(addr, "/a").Location == "https://store.com/old"
		})
	}
	if got.GetVersion().GetRevision() >= v.GetRevision() {
		t.Errorf("the new epoch begins with revision %v, and the one before ended with %v: nothing was restored", got.GetVersion(), v)
	}
	if code := status(f.NodeAddr[0], "/b"); code == http.StatusFound {
		t.Error("a link that is not in the backup is served")
	}
	f.do("link", "update", "/a", "https://store.com/newer", "--wait")
	f.wantRedirect("/a", "https://store.com/newer")
}

func TestTakeDownReachesNodesWhileAGuardHoldsAVersionBack(t *testing.T) {
	f := startFleet(t, 1, 2)
	r := f.replica(0)
	const links = 1200
	batch := func(from, to int, write func(i int) *adminv1.Write) *linkv1.Version {
		req := new(adminv1.BatchWriteRequest)
		for i := from; i < to; i++ {
			req.Writes = append(req.Writes, write(i))
		}
		w, err := r.links.BatchWrite(soon(t), req)
		f.must(err)
		return w.GetVersion()
	}
	var v *linkv1.Version
	for from := 0; from < links; from += 100 {
		v = batch(from, from+100, func(i int) *adminv1.Write {
			return &adminv1.Write{Verb: &adminv1.Write_Create{Create: &adminv1.CreateRequest{Resource: linkTo(fmt.Sprintf("/%d", i), "https://store.com/")}}}
		})
	}
	f.served(r, v, 2)
	for from := 0; from < 500; from += 100 {
		v = batch(from, from+100, func(i int) *adminv1.Write {
			return &adminv1.Write{Verb: &adminv1.Write_Delete{Delete: &adminv1.DeleteRequest{Name: fmt.Sprintf("links/*/%d", i)}}}
		})
	}
	f.eventually("the deletions are held back", func() bool {
		got, err := r.fleet.GetStatus(soon(t), &adminv1.GetStatusRequest{})
		return err == nil && len(got.GetReplicas()) == 1 && got.GetReplicas()[0].GetHeldBack() != nil
	})
	f.wantRedirect("/499", "https://store.com/")

	disabled := linkTo("/900", "https://store.com/")
	disabled.GetLink().Disabled = true
	begin := time.Now()
	_, err := r.links.Update(soon(t), &adminv1.UpdateRequest{Resource: disabled})
	f.must(err)
	for _, addr := range f.NodeAddr {
		f.eventually("the link is taken down", func() bool { return status(addr, "/900") != http.StatusFound })
	}
	t.Logf("taken down after %v", time.Since(begin))
	f.wantRedirect("/499", "https://store.com/") // still held back
	f.wantRedirect("/901", "https://store.com/")

	_, err = r.fleet.Release(soon(t), &adminv1.ReleaseRequest{Version: v})
	f.must(err)
	f.served(r, v, 2)
	for _, path := range []string{"/499", "/900"} {
		if got := status(f.NodeAddr[1], path); got == http.StatusFound {
			t.Errorf("after the release %s is answered with %d", path, got)
		}
	}
}
