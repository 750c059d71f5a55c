package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/affleet/affleet/deploy/processes"
)

// onOneCore starts processes that have the first core that there is, and no other: a
// process inherits the cores of the thread that starts it.
func onOneCore(start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	return errors.Join(start(), unix.SchedSetaffinity(0, &all))
}

// metric is a number that a process shows, 0 if it does not.
func metric(t *testing.T, admin, name string) float64 {
	t.Helper()
	_, text, _ := strings.Cut(processes.Get(admin, "/metrics").Body, "\n"+name+" ")
	text, _, _ = strings.Cut(text, "\n")
	if text == "" {
		return 0
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// visitor asks for one path after the other on one connection.
type visitor struct {
	net.Conn
	t     *testing.T
	in    *bufio.Reader
	asked int
}

func newVisitor(t *testing.T, addr string) *visitor {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(processes.Patience)); err != nil {
		t.Fatal(err)
	}
	return &visitor{Conn: nc, t: t, in: bufio.NewReader(nc)}
}

// ask sends the next n requests in one piece: /go/1, /go/2 and so on. It waits for their
// answers, which are to be redirects.
func (v *visitor) ask(n int) {
	v.t.Helper()
	var out []byte
	for range n {
		v.asked++
		out = fmt.Appendf(out, "GET /go/%d HTTP/1.1\r\nHost: e2e\r\nUser-Agent: %s\r\n\r\n", v.asked, longAgent)
	}
	if _, err := v.Write(out); err != nil {
		v.t.Fatal(err)
	}
	for range n {
		resp, err := http.ReadResponse(v.in, nil)
		if err != nil {
			v.t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusFound {
			v.t.Fatalf("got %s", resp.Status)
		}
	}
}

// longAgent makes clicks of some 300 bytes, of which 40,000 are several segments.
const longAgent = "Mozilla/5.0 (Linux; Android 14; Pixel 8 Pro Build/AP2A.240805.005; wv) AppleWebKit/537.36 (KHTML, like Gecko) " +
	"Version/4.0 Chrome/127.0.6533.103 Mobile Safari/537.36 [FB_IAB/FB4A;FBAV/475.0.0.44.105;]"

func TestTheLoopThatHasTheOnlyCoreRunsWhatPublishesABacklog(t *testing.T) {
	f := newFleet(t, 1, 1)
	f.must(f.StartEtcd())
	f.must(f.StartControl(0))
	f.must(onOneCore(func() error { return f.StartNode(0) }))
	f.must(f.WaitReady())
	f.do("link", "create", "/go/*", "https://store.com/", "--wait")

	v := newVisitor(t, f.NodeAddr[0])
	for range 400 {
		v.ask(100)
	}
	// A loop that was busy learns that it has time again behind some turns, and some
	// time. In real life there are requests, too.
	for range 100 {
		v.ask(1)
		time.Sleep(time.Millisecond)
	}
	admin := f.NodeAdmin[0]
	if waiting := metric(t, admin, "aff_clicks_unacknowledged"); waiting != float64(v.asked) {
		t.Errorf("%v clicks wait for NATS, want %d", waiting, v.asked)
	}
	f.must(f.StartNATS())
	f.eventually("all clicks are published", func() bool {
		v.ask(1)
		return metric(t, admin, "aff_clicks_published_total") >= 40_000 && metric(t, admin, "aff_clicks_unacknowledged") == 0
	})
	const errands = "aff_redirect_errands_total"
	run, refused := metric(t, admin, errands+`{outcome="run"}`), metric(t, admin, errands+`{outcome="refused"}`)
	t.Logf("%v were run, and %v refused", run, refused)
	if run == 0 {
		t.Errorf("the loop has run nothing, and refused %v times", refused)
	}
	paths, gaps := f.pathsInStream()
	for n := range v.asked {
		if path := fmt.Sprintf("/go/%d", n+1); paths[path] != 1 {
			t.Fatalf("%s is in the stream %d times", path, paths[path])
		}
	}
	if len(paths) != v.asked || len(gaps) != 0 {
		t.Errorf("%d paths are in the stream, want %d; gaps: %v", len(paths), v.asked, gaps)
	}
}
