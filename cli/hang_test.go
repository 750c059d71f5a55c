package cli_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"google.golang.org/grpc"

	"github.com/affleet/affleet/cli"
	"github.com/affleet/affleet/deploy/local"
)

// silence is an address that is connected to, and never answers. It tells of each
// connection.
func silence(t *testing.T) (address string, connected <-chan struct{}) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	came, ended := make(chan struct{}, 100), make(chan struct{})
	t.Cleanup(func() { _ = ln.Close(); <-ended })
	go func() {
		defer close(ended)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			came <- struct{}{}
		}
	}()
	return ln.Addr().String(), came
}

// plainNATS is a NATS server without JetStream that asks for a token, if there is one.
func plainNATS(t *testing.T, token string) (address string) {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, Authorization: token, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the NATS server is not ready after 20 s")
	}
	return s.Addr().String()
}

// says runs affctl to its end, and gives its exit code and what it prints.
func says(ctx context.Context, t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = cli.Main(ctx, args, strings.NewReader(""), &out, &errs, func(string) string { return "" })
	return code, out.String(), errs.String()
}

func TestControlPlaneThatDoesNotAnswerInTimeIsNamed(t *testing.T) {
	address, _ := silence(t)
	code, _, stderr := says(t.Context(), t, "nodes", "--server", address, "--timeout", "200ms")
	want := "affctl: no answer from the control plane at " + address + " within 200ms\nhint: is it well? give it more time with --timeout\n"
	if code != 7 || stderr != want {
		t.Errorf("exit code %d, and it said\n%swant\n%s", code, stderr, want)
	}
}

// mute is a control plane that takes calls and ends each as it is told to: never, as
// far as affctl can wait, or with its connection.
func mute(t *testing.T, end func(s *grpc.Server, call context.Context)) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var s *grpc.Server
	s = grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		end(s, stream.Context())
		return stream.Context().Err()
	}))
	var running sync.WaitGroup
	running.Go(func() { _ = s.Serve(ln) }) // ends with Stop
	t.Cleanup(func() { s.Stop(); running.Wait() })
	return ln.Addr().String()
}

func TestWriteThatIsNotAnsweredIsSaidToBePerhapsMade(t *testing.T) {
	silent := mute(t, func(_ *grpc.Server, call context.Context) { <-call.Done() })
	gone := func() string { // it serves one call
		return mute(t, func(s *grpc.Server, call context.Context) { go s.Stop(); <-call.Done() })
	}
	unheard, _ := silence(t)
	const perhaps = "; what was being written may or may not have been\nhint: look whether it is before you repeat it"
	var all sync.WaitGroup
	create := []string{"link", "create", "go.example.com/a", "https://store.com/"}
	for _, tt := range []struct {
		server  string
		args    []string
		code    int
		perhaps bool
	}{
		{silent, create, 7, true},
		{silent, []string{"link", "update", "go.example.com/a", "--disabled"}, 7, true},
		{silent, []string{"link", "delete", "go.example.com/a"}, 7, true},
		{silent, []string{"fraud", "policy", "set", "--off"}, 7, true},
		{silent, []string{"fleet", "release", "--version", "7"}, 7, true},
		{gone(), create, 6, true},
		{gone(), []string{"link", "get", "go.example.com/a"}, 6, false},
		{silent, append(create, "--dry-run"), 7, false},
		{silent, []string{"link", "get", "go.example.com/a"}, 7, false},
		{unheard, create, 7, false}, // nobody was told of it
		{"127.0.0.1:1", create, 6, false},
	} {
		all.Go(func() { // each waits for as long as it may take to be heard on a busy machine
			code, _, stderr := says(t.Context(), t, append(tt.args, "--server", tt.server, "--timeout", "3s")...)
			if code != tt.code || strings.Contains(stderr, perhaps) != tt.perhaps || !strings.HasPrefix(stderr, "affctl: no answer from the control plane at "+tt.server) {
				t.Errorf("%q: exit code %d, and it said\n%s", tt.args, code, stderr)
			}
		})
	}
	all.Wait()
}

func TestWriteThatIsInterruptedIsSaidToBePerhapsMade(t *testing.T) {
	for said, args := range map[string][]string{
		"affctl: interrupted; what was being written may or may not have been\nhint: look whether it is before you repeat it\n": {"link", "delete", "go.example.com/a"},
		"affctl: interrupted\n": {"link", "get", "go.example.com/a"},
	} {
		ctx, interrupt := context.WithCancel(t.Context())
		server := mute(t, func(_ *grpc.Server, call context.Context) { interrupt(); <-call.Done() })
		code, _, stderr := says(ctx, t, append(args, "--server", server, "--timeout", "1h")...)
		if code != 1 || stderr != said {
			t.Errorf("%q: exit code %d, and it said\n%swant\n%s", args, code, stderr, said)
		}
	}
}

func TestServerWithoutAPortIsRefusedBeforeAnythingIsDialled(t *testing.T) {
	for _, server := range []string{
		"host", "host:", "[::1]", "::1", "host:0", "host:70000", "host:no-such-port", "http://host:7070",
		"dns:host", "dns:///host", "dns:///host:", "dns://127.0.0.1:53/host", "xds:///host", "passthrough:///host",
	} {
		for _, args := range [][]string{{"nodes", "--timeout", "5s"}, {"context", "set", "prod"}} {
			code, _, stderr := says(t.Context(), t, append(args, "--server", server)...)
			want := "affctl: --server " + server + " is not HOST:PORT\nhint: it looks like control.example.com:7070\n"
			if code != 2 || stderr != want {
				t.Errorf("%s: exit code %d, and it said\n%swant\n%s", args[0], code, stderr, want)
			}
		}
	}
	for _, server := range []string{"127.0.0.1:1", "[::1]:1", ":1", "dns:127.0.0.1:1", "dns:///127.0.0.1:1", "dns:///[::1]:1", "unix:///no/such/socket", "unix-abstract:none"} {
		if code, _, stderr := says(t.Context(), t, "nodes", "--server", server); code != 6 {
			t.Errorf("%s: exit code %d, and it said\n%s", server, code, stderr)
		}
	}
}

func TestDoctorWaitsOnceForAControlPlaneThatDoesNotAnswer(t *testing.T) {
	address, _ := silence(t)
	_, stdout, _ := says(t.Context(), t, "doctor", "--server", address, "--nats", "nats://127.0.0.1:1", "--timeout", "200ms", "-o", "json")
	if n := strings.Count(stdout, "within 200ms"); n != 1 {
		t.Errorf("it has waited %d times:\n%s", n, stdout)
	}
	if !strings.Contains(stdout, "whether the kill switch is pulled") {
		t.Errorf("it does not say what it has not found out:\n%s", stdout)
	}
}

func TestConnectingToNATSEndsWhenItIsInterrupted(t *testing.T) {
	address, connected := silence(t)
	ctx, interrupt := context.WithCancel(t.Context())
	ended := make(chan string, 1)
	go func() {
		_, _, stderr := says(ctx, t, "stats", "--nats", "nats://"+address, "--timeout", "1h")
		ended <- stderr
	}()
	<-connected
	interrupt()
	select {
	case stderr := <-ended:
		if stderr != "affctl: interrupted\n" {
			t.Errorf("it said %q", stderr)
		}
	case <-time.After(30 * time.Second): // for what would never end
		t.Fatal("it goes on")
	}
}

func TestWhatNATSRefusesIsNoOutageAndShowsNoSecret(t *testing.T) {
	address := plainNATS(t, "s3cret")

	code, _, stderr := says(t.Context(), t, "stats", "--nats", "nats://wr0ng@"+address)
	want := "affctl: NATS at nats://xxxxx@" + address + " refuses: Authorization Violation\n" +
		"hint: give user and password, or a token, in the URL: nats://USER:PASSWORD@HOST:PORT, nats://TOKEN@HOST:PORT\n"
	if code != 1 || stderr != want {
		t.Errorf("exit code %d, and it said\n%swant\n%s", code, stderr, want)
	}
	for _, secret := range []string{"wr0ng", "s3cret", "ada:wr0ng"} {
		_, stdout, stderr := says(t.Context(), t, "doctor", "--server", "127.0.0.1:1", "--nats", "nats://"+secret+"@"+address)
		if !strings.Contains(stdout, "nats://xxxxx@"+address) || strings.Contains(stdout+stderr, secret) {
			t.Errorf("with %s, doctor says\n%s%s", secret, stdout, stderr)
		}
		if secret != "s3cret" && strings.Contains(stdout, "spool") {
			t.Errorf("what refuses affctl is taken for an outage:\n%s", stdout)
		}
	}
}

func TestURLOfNATSIsShownWithoutSecretHoweverItIsWritten(t *testing.T) {
	for given, shown := range map[string]string{
		"s3cret@127.0.0.1:1":           "affctl: no answer from NATS at xxxxx@127.0.0.1:1: ",
		"127.0.0.1:1,ada:s3cret@[::1]": "affctl: no answer from NATS at 127.0.0.1:1,xxxxx@[::1]: ",
		"nats://s3cret%zz@127.0.0.1:1": "affctl: the URL of NATS cannot be read\nhint: ",
		"nats://ada:s3cret/@127.0.0.1": "affctl: the URL of NATS cannot be read\nhint: ",
	} {
		_, stdout, stderr := says(t.Context(), t, "stats", "--nats", given)
		if !strings.HasPrefix(stderr, shown) || strings.Contains(stdout+stderr, "s3cret") {
			t.Errorf("of %s it says\n%s%s", given, stdout, stderr)
		}
	}
}

func TestTailSaysWhatNATSLacks(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // for what would never end
	defer cancel()
	code, _, stderr := says(ctx, t, "clicks", "tail", "--nats", "nats://"+plainNATS(t, ""))
	if code != 1 || !strings.HasPrefix(stderr, "affctl: this NATS server has no JetStream\nhint: ") {
		t.Errorf("exit code %d, and it said\n%s", code, stderr)
	}
}

func TestWatchEndsWhenTheControlPlaneIsGoneWithoutAWord(t *testing.T) {
	t.Parallel() // it takes a while to be sure
	fleet, err := local.Start(t.Context(), local.Options{Nodes: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fleet.Close(); err != nil {
			t.Error(err)
		}
	})
	gate := openGate(t, fleet.Control)
	gate.let(1 << 40)
	r, w := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		args := []string{"nodes", "--watch", "-o", "name", "--server", strings.TrimPrefix(gate.url, "nats://")}
		ended <- cli.Main(t.Context(), args, strings.NewReader(""), w, io.Discard, func(string) string { return "" })
		_ = w.Close() // never fails
	}()
	if _, err := r.Read(make([]byte, 100)); err != nil { // it watches
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, r) }() // ends with the writer
	gate.let(0)
	select {
	case code := <-ended:
		if code != 6 {
			t.Errorf("exit code %d, want 6", code)
		}
	case <-time.After(60 * time.Second): // for what would never end
		t.Fatal("it shows for ever what was")
	}
}
