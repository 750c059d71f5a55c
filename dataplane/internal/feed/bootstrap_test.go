package feed

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/affleet/affleet/dataplane/internal/table"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	"github.com/affleet/affleet/proto/statefile"
)

// stateFile writes a state to a file of its own.
func stateFile(t *testing.T, s state) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy.aff")
	if err := writeStateFile(path, "", heldTable(t, s), time.Time{}); err != nil {
		t.Fatal(err)
	}
	return path
}

// nobody is an address at which nobody answers.
const nobody = "127.0.0.1:1"

func TestNewNodeStartsFromAFileAURLOrAnotherNode(t *testing.T) {
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
	file := stateFile(t, s)
	files := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(file))))
	t.Cleanup(files.Close)

	dir := t.TempDir()
	if err := os.Link(file, filepath.Join(dir, currentName)); err != nil {
		t.Fatal(err)
	}
	other := startNode(t, dir, nobody)
	<-other.Ready()
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+StatePath, other.ServeState)
	admin := httptest.NewServer(mux)
	t.Cleanup(admin.Close)

	for name, from := range map[string]string{
		"file":         file,
		"URL":          files.URL + "/copy.aff",
		"another node": strings.TrimPrefix(admin.URL, "http://"),
	} {
		t.Run(name, func(t *testing.T) {
			own := t.TempDir()
			n := startNodeWith(t, Config{Dir: own, Targets: []string{nobody}, Bootstrap: from})
			<-n.Ready()
			wantHolds(t, n.live, 10, s)
			if age := n.metrics.age(); age < 0 || age > 60 {
				t.Errorf("the state is said to be %v s old", age)
			}
			n.stop()
			// It has it on its own disk now, and does not ask again.
			n = startNodeWith(t, Config{Dir: own, Targets: []string{nobody}, Bootstrap: "127.0.0.1:9"})
			<-n.Ready()
			wantHolds(t, n.live, 10, s)
			if strings.Contains(n.logs.String(), "another place") {
				t.Errorf("it asked again: %s", n.logs)
			}
		})
	}
}

func TestNodeStartsFromAControlPlaneWhenTheOtherPlaceIsOfNoUse(t *testing.T) {
	s := state{"/a": "https://x.test/a", "/b": "https://x.test/b"}
	whole, err := os.ReadFile(stateFile(t, s))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	give := func(path string, b []byte) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) })
	}
	give("/torn", whole[:len(whole)-5])
	give("/flipped", append(append(bytes.Clone(whole[:90]), whole[90]^1), whole[91:]...))
	give("/page", []byte("<!doctype html><title>This is a page of more than sixty-four bytes</title>"))
	give("/empty", nil)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	torn := filepath.Join(t.TempDir(), "torn.aff")
	if err := os.WriteFile(torn, whole[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	for from, says := range map[string]string{
		torn:                             "ends inside a block",
		filepath.Join(t.TempDir(), "no"): "no such file",
		server.URL + "/torn":             "ends inside a block",
		server.URL + "/flipped":          "damaged",
		server.URL + "/page":             "not a state file",
		server.URL + "/empty":            "ends inside a header",
		server.URL + "/nothing":          "404 Not Found",
		nobody:                           "refused",
	} {
		t.Run(says, func(t *testing.T) {
			c := startControl(t)
			n := startNodeWith(t, Config{Dir: t.TempDir(), Targets: []string{c.address}, Bootstrap: from})
			c.accept().end <- nil // it has no state to give
			p := c.accept()
			if p.hello.GetVersion() != nil {
				t.Fatalf("the node holds %v", p.hello.GetVersion())
			}
			log := n.logs.String()
			if !strings.Contains(log, says) || !strings.Contains(log, from) || !strings.Contains(log, "hint=") || strings.Count(log, "cannot start from") != 1 {
				t.Errorf("the log does not say once what is wrong with %s (%s):\n%s", from, says, log)
			}
			p.send(s.snapshot(11)...)
			p.wantApplied(11)
			<-n.Ready()
		})
	}
}

func TestNewNodeAsksEachControlPlaneBeforeAnotherPlace(t *testing.T) {
	old, s := state{"/gone": "https://x.test/gone"}, state{"/a": "https://x.test/a"}
	c := startControl(t)
	for i := range 4 { // it begins with any of them
		n := startNodeWith(t, Config{Dir: t.TempDir(), Targets: []string{nobody, c.address, "127.0.0.1:2"}, Bootstrap: stateFile(t, old)})
		p := c.accept()
		if p.hello.GetVersion() != nil || n.live.Load() != nil {
			t.Fatalf("node %d serves %v before it has asked all", i, p.hello.GetVersion())
		}
		p.send(heartbeat(11, time.Second))
		p.send(s.snapshot(11)...)
		p.wantApplied(11)
		<-n.Ready()
		wantHolds(t, n.live, 11, s)
		n.stop()
		if log := n.logs.String(); strings.Contains(log, "another place") {
			t.Errorf("it took the other state: %s", log)
		}
	}
}

func TestNewNodeIsNotKeptFromAnotherPlaceByWhoGivesItNoState(t *testing.T) {
	s := state{"/a": "https://x.test/a"}
	file := stateFile(t, s)
	hole, err := net.Listen("tcp", "127.0.0.1:0") // it accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hole.Close() })
	away := &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_RetryLater{RetryLater: &feedv1.RetryLater{After: durationpb.New(time.Minute), Reason: "test"}}}
	none := &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Behind{Behind: &feedv1.Behind{Reason: "test"}}}
	for name, says := range map[string]*feedv1.SubscribeResponse{"does not answer": nil, "sends it away": away, "has none": none} {
		t.Run(name, func(t *testing.T) {
			c := startControl(t)
			target := c.address
			if says == nil {
				target = hole.Addr().String()
			}
			start := time.Now()
			n := startNodeWith(t, Config{Dir: t.TempDir(), Targets: []string{target}, Bootstrap: file})
			if says != nil {
				c.accept().send(says)
			}
			select {
			case <-n.Ready():
			case <-time.After(2 * firstAnswers):
				t.Fatal("it waits for a control plane")
			}
			wantHolds(t, n.live, 10, s)
			t.Logf("after %v", time.Since(start))
		})
	}
}

// What a control plane asks for, it gets, also when another one is asked behind it.
func TestNewNodeComesBackWhenTheControlPlaneSaidThatItMay(t *testing.T) {
	for _, first := range []time.Duration{time.Second, time.Minute} {
		r := firstRound{client: &Client{cfg: Config{
			Targets: []string{"a", "b"}, Bootstrap: t.TempDir() + "/none", Live: &table.Live{}, Log: slog.New(slog.DiscardHandler),
		}, applier: newApplier(nil, Guard{})}}
		if r.patience() != firstAnswers/2 {
			t.Errorf("each has %v", r.patience())
		}
		if wait := r.asked(t.Context(), first); wait != 0 {
			t.Errorf("it waits %v before it has asked all", wait)
		}
		if wait := r.asked(t.Context(), 2*time.Second); wait != max(first, 2*time.Second) {
			t.Errorf("it comes back after %v", wait)
		}
		if r.patience() != 0 {
			t.Errorf("the other place is of no use, and each has %v", r.patience())
		}
	}
}

// What a file system and a server say of a file is when it was copied there.
func TestStateOfACopiedFileIsAsOldAsItWas(t *testing.T) {
	s := state{"/a": "https://x.test/a"}
	dir := t.TempDir()
	c := startControl(t)
	n := startNode(t, dir, c.address)
	p := c.accept()
	p.send(s.snapshot(10)...)
	p.wantApplied(10)
	n.stop()
	own := filepath.Join(dir, currentName)
	if _, at, err := readStateFile(own, &n.applier.guard, n.applier.wire.arm); err != nil || time.Since(at) > time.Minute || time.Since(at) < 0 {
		t.Errorf("a node writes that its state is of %v: %v", at, err)
	}

	old := filepath.Join(t.TempDir(), "old.aff")
	if err := writeStateFile(old, "", heldTable(t, s), time.Now().Add(-5*time.Hour)); err != nil {
		t.Fatal(err)
	}
	older := stateFile(t, s) // of a program that did not write the time
	if err := os.Chtimes(older, time.Time{}, time.Now().Add(-3*time.Hour)); err != nil {
		t.Fatal(err)
	}
	files := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(old))))
	t.Cleanup(files.Close)
	for from, hours := range map[string]float64{old: 5, files.URL + "/old.aff": 5, older: 3} {
		own := t.TempDir()
		n := startNodeWith(t, Config{Dir: own, Targets: []string{nobody}, Bootstrap: from})
		<-n.Ready()
		if age := n.metrics.age() / 3600; age < hours-0.1 || age > hours+0.1 {
			t.Errorf("%s: the state is said to be %v hours old, not %v", from, age, hours)
		}
		n.stop()
		n = startNodeWith(t, Config{Dir: own, Targets: []string{nobody}}) // it is no newer on its own disk
		<-n.Ready()
		if age := n.metrics.age() / 3600; age < hours-0.1 || age > hours+0.1 {
			t.Errorf("%s: from its own disk, the state is said to be %v hours old, not %v", from, age, hours)
		}
	}
}

func TestPlaceThatIsNoneIsRefusedAtOnce(t *testing.T) {
	for _, bad := range []string{"ftp://x/y", "http://", "https:///x", "http://%zz/", "host:", "host:http", ":9091", "host:99999"} {
		if err := ParseBootstrap(bad); err == nil || !strings.Contains(err.Error(), "bootstrap: ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for in, want := range map[string]source{
		"":                {},
		"state.aff":       {file: "state.aff"},
		"./a:1":           {file: "./a:1"},
		"/var/x:9/state":  {file: "/var/x:9/state"},
		"10.0.0.7:9091":   {url: "http://10.0.0.7:9091/state", node: true},
		"[::1]:9091":      {url: "http://[::1]:9091/state", node: true},
		"http://h/s?x=1":  {url: "http://h/s?x=1"},
		"https://h/s.aff": {url: "https://h/s.aff"},
	} {
		if got, err := parseSource(in); err != nil || got != want {
			t.Errorf("%s is %+v, %v", in, got, err)
		}
	}
}

func TestStateIsGivenToFewAtATime(t *testing.T) {
	dir := t.TempDir()
	n := startNode(t, dir, nobody)
	server := httptest.NewServer(http.HandlerFunc(n.ServeState))
	t.Cleanup(server.Close)
	get := func() (int, string) {
		resp, err := http.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK && resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: nothing says when to come again", resp.Status)
		}
		return resp.StatusCode, string(b)
	}
	if code, why := get(); code != 503 || !strings.Contains(why, "no state") {
		t.Errorf("without a state: %d %s", code, why)
	}
	// More than sockets take in, so that a reader that does not read is in the way.
	if err := os.WriteFile(filepath.Join(dir, currentName), make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for range maxServing {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if code, why := get(); code != 503 || !strings.Contains(why, "other nodes") {
		t.Errorf("while %d are given it: %d %s", maxServing, code, why)
	}
}

func TestStateOfAnEpochThatWasLeftIsNotTakenFromAnotherPlace(t *testing.T) {
	n := &Client{cfg: Config{Bootstrap: stateFile(t, state{"/a": "https://x.test/a"})}, applier: newApplier(nil, Guard{})}
	n.applier.past.add(epoch)
	if _, _, err := n.fetch(t.Context(), limits); err == nil || !strings.Contains(err.Error(), "has left") {
		t.Errorf("it is taken: %v", err)
	}
}

func TestPlaceThatGivesItsStateTooSlowlyIsGivenUp(t *testing.T) {
	b, err := os.ReadFile(stateFile(t, state{"/a": "https://x.test/a"}))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, c := range b {
			_, _ = w.Write([]byte{c})
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(10 * time.Millisecond):
			case <-r.Context().Done():
				return
			}
		}
	}))
	defer server.Close()
	n := &Client{cfg: Config{Bootstrap: server.URL}, applier: newApplier(nil, Guard{})}
	slow := limits
	slow.whole = 50 * time.Millisecond
	if _, _, err := n.fetch(t.Context(), slow); err == nil || !strings.Contains(err.Error(), "took too long") {
		t.Errorf("%d bytes were waited for: %v", len(b), err)
	}
}

func TestSilentPlaceIsGivenUp(t *testing.T) {
	stop := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(statefile.Magic))
		_ = http.NewResponseController(w).Flush()
		<-stop
	}))
	defer server.Close()
	defer close(stop)
	n := &Client{cfg: Config{Bootstrap: server.URL}, applier: newApplier(nil, Guard{})}
	start := time.Now()
	if _, _, err := n.fetch(t.Context(), download{30 * time.Millisecond, 30 * time.Millisecond, time.Minute}); err == nil || !strings.Contains(err.Error(), "nothing came") {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}
