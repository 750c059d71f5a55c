package local_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/cli"
	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/deploy/local"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// patience bounds every wait; each ends as soon as what it waits for is there.
const patience = 30 * time.Second

func start(t *testing.T, opts local.Options) *local.Fleet {
	t.Helper()
	f, err := local.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return f
}

var client = &http.Client{
	Timeout:       patience,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func location(t *testing.T, addr, path string) string {
	t.Helper()
	resp, err := client.Get("http://" + addr + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Location"))
}

func affctl(t *testing.T, f *local.Fleet, args ...string) string {
	t.Helper()
	env := map[string]string{"AFFCTL_SERVER": f.Control, "AFFCTL_NATS": f.NATS, "HOME": t.TempDir()}
	var out bytes.Buffer
	if code := cli.Main(t.Context(), args, strings.NewReader(""), &out, &out, func(k string) string { return env[k] }); code != 0 {
		t.Fatalf("affctl %s: exit code %d\n%s", strings.Join(args, " "), code, &out)
	}
	return out.String()
}

// consume gives the first n clicks of the stream.
func consume(t *testing.T, f *local.Fleet, n int) []clickstream.Click {
	t.Helper()
	nc, err := nats.Connect(f.NATS)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var clicks []clickstream.Click
	_ = clickstream.Consume(ctx, js, clickstream.Options{}, func(_ context.Context, batch *clickstream.Batch) error {
		clicks = append(clicks, batch.Clicks...)
		if len(clicks) >= n {
			cancel()
		}
		return nil
	})
	if len(clicks) != n {
		t.Fatalf("%d clicks are in the stream, want %d", len(clicks), n)
	}
	return clicks
}

func TestSamplesAreServedByEveryNodeAndEveryRedirectIsAClick(t *testing.T) {
	f := start(t, local.Options{Samples: true})
	if len(f.HTTP) != 3 || len(f.Admin) != 4 {
		t.Fatalf("%d nodes and %d admin addresses, want 3 and 4", len(f.HTTP), len(f.Admin))
	}
	for _, addr := range f.HTTP {
		for path, want := range map[string]string{
			"/go/summer-deal":  "302 https://store.com/p/123?ref=aff_01",
			"/go/tech-resolve": "302 https://store.com/p/456?ref=darian_v",
			"/anything/else":   "302 https://store.com/",
		} {
			if got := location(t, addr, path); got != want {
				t.Errorf("%s%s goes to %q, want %q", addr, path, got, want)
			}
		}
	}
	for _, addr := range f.Admin {
		for _, path := range []string{"/livez", "/readyz", "/metrics"} {
			if got := location(t, addr, path); got != "200 " {
				t.Errorf("%s%s: %q", addr, path, got)
			}
		}
	}
	// What was asked of the admin addresses is no click.
	nodes := map[string]int{}
	for _, c := range consume(t, f, 9) {
		nodes[c.Node]++
		if c.Region != "local" || c.Status != http.StatusFound || c.Revision == 0 {
			t.Errorf("click %+v", c)
		}
	}
	if len(nodes) != 3 || nodes["node-1"] != 3 {
		t.Errorf("clicks by node: %v", nodes)
	}
}

func TestNamedFolderIsFoundAgainAtTheNextStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "fleet")
	opts := local.Options{Nodes: 1, DataDir: dir, Samples: true}
	f, err := local.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	affctl(t, f, "link", "create", "/mine", "https://store.com/mine", "--wait")
	affctl(t, f, "link", "delete", "/go/summer-deal", "--wait")
	if got := location(t, f.HTTP[0], "/mine"); got != "302 https://store.com/mine" {
		t.Error(got)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	f = start(t, opts)
	if got := location(t, f.HTTP[0], "/mine"); got != "302 https://store.com/mine" {
		t.Errorf("the link is gone: %s", got)
	}
	if got := location(t, f.HTTP[0], "/go/summer-deal"); got != "302 https://store.com/" {
		t.Errorf("the deleted sample is back: %s", got)
	}
	consume(t, f, 3)
}

func TestTemporaryFolderIsRemoved(t *testing.T) {
	f, err := local.Start(t.Context(), local.Options{Nodes: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f.DataDir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", f.DataDir, err)
	}
}

func TestFolderInUseIsAnErrorThatNamesIt(t *testing.T) {
	dir := t.TempDir()
	start(t, local.Options{Nodes: 1, DataDir: dir})
	refused := make(chan error, 1)
	go func() {
		f, err := local.Start(context.Background(), local.Options{Nodes: 1, DataDir: dir})
		if err == nil {
			err = f.Close()
		}
		refused <- err
	}()
	select {
	case err := <-refused:
		if want := "another fleet uses the folder " + dir; err == nil || err.Error() != want {
			t.Errorf("the error is %v, want %s", err, want)
		}
	case <-time.After(patience):
		t.Fatal("it waits for the folder without a word")
	}
}

func TestPortInUseIsAnErrorThatNamesIt(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken := ln.Addr().String()
	for name, opts := range map[string]local.Options{
		"http": {HTTP: taken}, "control": {Control: taken}, "etcd": {Etcd: taken}, "nats": {NATS: taken}, "admin": {Admin: taken},
	} {
		opts.Nodes = 1
		f, err := local.Start(t.Context(), opts)
		if err == nil {
			t.Errorf("%s: starts on a port in use", name)
			_ = f.Close()
		} else if !strings.Contains(err.Error(), taken) {
			t.Errorf("%s: %v does not name %s", name, err, taken)
		}
	}
}

// TestEveryClickCarriesTheVersionThatDecidedIt writes and clicks at the same
// time, and afterwards finds each click's destination in what was written at
// its revision.
func TestEveryClickCarriesTheVersionThatDecidedIt(t *testing.T) {
	f := start(t, local.Options{Nodes: 2})
	conn, err := grpc.NewClient(f.Control, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	links, fleet := adminv1.NewLinkServiceClient(conn), adminv1.NewFleetServiceClient(conn)
	written := map[int64]string{} // destination by revision
	var last *linkv1.Version
	write := func(i int) {
		dest := fmt.Sprintf("https://store.com/p/%d", i)
		resp, err := links.Update(t.Context(), &adminv1.UpdateRequest{AllowMissing: true, Resource: &linkv1.Resource{
			Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: "*", Path: "/a", Destination: dest}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		last = resp.GetVersion()
		written[last.GetRevision()] = dest
	}
	write(0)
	if _, err := fleet.WaitForVersion(t.Context(), &adminv1.WaitForVersionRequest{Version: last, MinNodes: 2}); err != nil {
		t.Fatal(err)
	}

	stop := make(chan struct{})
	counts := make([]int, len(f.HTTP))
	var clickers sync.WaitGroup
	for i, addr := range f.HTTP {
		clickers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					resp, err := client.Get("http://" + addr + "/a")
					if err != nil {
						t.Error(err)
						return
					}
					_ = resp.Body.Close()
					counts[i]++
				}
			}
		})
	}
	for i := range 200 {
		write(i + 1)
	}
	if _, err := fleet.WaitForVersion(t.Context(), &adminv1.WaitForVersionRequest{Version: last}); err != nil {
		t.Fatal(err)
	}
	close(stop)
	clickers.Wait()
	for _, addr := range f.HTTP {
		if got := location(t, addr, "/a"); got != "302 "+written[last.GetRevision()] {
			t.Errorf("after WaitForVersion %s answers %s, want %s", addr, got, written[last.GetRevision()])
		}
	}

	seen := map[string]int64{} // the last revision by node
	for _, c := range consume(t, f, counts[0]+counts[1]+2) {
		if want := written[c.Revision]; c.Destination != want {
			t.Errorf("a click at revision %d went to %s, and %q was written there", c.Revision, c.Destination, want)
		}
		if c.Revision < seen[c.Node] {
			t.Errorf("%s went back from revision %d to %d", c.Node, seen[c.Node], c.Revision)
		}
		seen[c.Node] = c.Revision
	}
}
