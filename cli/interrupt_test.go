package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/cli"
	"github.com/affleet/affleet/deploy/local"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
)

// stalledImport imports rows from a pipe that gives nothing more after them,
// and gives what it prints to stderr when it has ended.
func stalledImport(t *testing.T, fleet *local.Fleet, rows string) (stop func(), ended <-chan int, stderr *bytes.Buffer) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	in, feed := io.Pipe()
	t.Cleanup(func() { stop(); _ = feed.Close() }) // never fails
	done := make(chan int, 1)
	stderr = new(bytes.Buffer)
	getenv := environment(t, fleet)
	go func() {
		done <- cli.Main(ctx, []string{"import", "ndjson", "-"}, in, io.Discard, stderr, getenv)
	}()
	if _, err := io.WriteString(feed, rows); err != nil {
		t.Fatal(err)
	}
	return stop, done, stderr
}

// endsWith waits for the end of affctl and checks its exit code.
func endsWith(t *testing.T, ended <-chan int, want int) {
	t.Helper()
	select {
	case code := <-ended:
		if code != want {
			t.Errorf("exit code %d, want %d", code, want)
		}
	case <-time.After(30 * time.Second): // for what would never end
		t.Fatal("affctl waits for its stdin")
	}
}

func TestImportFromAPipeThatStallsEndsWhenItIsInterrupted(t *testing.T) {
	fleet, err := local.Start(t.Context(), local.Options{Nodes: 1})
	if err != nil {
		t.Fatal(err)
	}
	stop, ended, stderr := stalledImport(t, fleet, `{"domain":"go.example.com","path":"/a","destination":"https://store.com/"}`+"\n")
	stop()
	endsWith(t, ended, 1)
	if got := stderr.String(); got != "affctl: interrupted\n" {
		t.Errorf("it said %q", got)
	}
	if err := fleet.Close(); err != nil {
		t.Error(err)
	}
}

func TestImportFromAPipeThatStallsEndsWhenTheControlPlaneDoes(t *testing.T) {
	fleet, err := local.Start(t.Context(), local.Options{Nodes: 1})
	if err != nil {
		t.Fatal(err)
	}
	const rows = 1000 // are sent at once
	var text strings.Builder
	for i := range rows {
		fmt.Fprintf(&text, `{"domain":"go.example.com","path":"/%03d","destination":"https://store.com/"}`+"\n", i)
	}
	_, ended, stderr := stalledImport(t, fleet, text.String())
	for deadline := time.Now().Add(30 * time.Second); ; {
		get := []string{"link", "get", fmt.Sprintf("go.example.com/%03d", rows-1)}
		if cli.Main(t.Context(), get, strings.NewReader(""), io.Discard, io.Discard, environment(t, fleet)) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing was imported")
		}
	}
	if err := fleet.Close(); err != nil {
		t.Error(err)
	}
	endsWith(t, ended, 6)
	if got := stderr.String(); !strings.Contains(got, "written before that: 1,000 resources") {
		t.Errorf("it said %q", got)
	}
}

// halfway is a control plane that is lost behind the first message of an import, when
// it has the second: whoever is between them says so, behind what has been answered.
type halfway struct {
	adminv1.UnimplementedLinkServiceServer
}

func (halfway) Import(stream adminv1.LinkService_ImportServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	rows := int64(len(first.GetResources()))
	if err := stream.Send(&adminv1.ImportResponse{Progress: &adminv1.ImportProgress{Rows: rows, Created: rows - 400, Unchanged: 400}}); err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	return status.Error(codes.Unavailable, "connection reset by peer")
}

func TestImportThatIsNotAnsweredSaysHowFarItGotForSure(t *testing.T) {
	var text strings.Builder
	for i := range 1500 { // two messages
		fmt.Fprintf(&text, `{"domain":"go.example.com","path":"/%d","destination":"https://store.com/"}`+"\n", i)
	}
	for _, tt := range []struct{ flag, want string }{
		{"--create-only=false", "written before that: 600 resources, and perhaps some of 500 more rows; done again, what is written counts as unchanged\n"},
		{"--create-only", "written before that: 600 resources, and perhaps some of 500 more rows; done again, what is written fails as existing\n"},
		{"--dry-run", ""},
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		adminv1.RegisterLinkServiceServer(s, halfway{})
		served := make(chan error, 1)
		go func() { served <- s.Serve(ln) }()
		var stderr bytes.Buffer
		args := []string{"import", "ndjson", "-", tt.flag, "--server", ln.Addr().String()}
		code := cli.Main(t.Context(), args, strings.NewReader(text.String()), io.Discard, &stderr, func(string) string { return "" })
		told, rest, _ := strings.Cut(stderr.String(), "affctl: no answer from the control plane at ")
		if code != 6 || told != tt.want || rest == "" {
			t.Errorf("%s: exit code %d, and it said\n%swant\n%s", tt.flag, code, &stderr, tt.want)
		}
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}
