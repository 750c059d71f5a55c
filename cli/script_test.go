package cli_test

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/affleet/affleet/cli"
	"github.com/affleet/affleet/deploy/local"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"affctl": func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code := cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv)
		stop()
		os.Exit(code)
	}})
}

// TestScripts runs the transcripts in testdata/script, which are the manual of
// affctl, each against a fleet of its own where it asks for one.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("USER", "ada")
			env.Setenv("AFFCTL_USER", "ada@example.com")
			env.Setenv("AFFCTL_CONFIG", env.WorkDir+"/config.yaml")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"fleet": startFleet, "visit": visit, "shows": shows, "exits": exits, "nats": startNATS, "lose": lose, "guard": guardReports,
			"silent": silentReplica, "slow": slowNode, "publish": publish,
		},
		RequireExplicitExec: false,
	})
}

// startFleet is "fleet [NODES]": a fleet that lives as long as the script.
func startFleet(ts *testscript.TestScript, _ bool, args []string) {
	opts := local.Options{Nodes: 1, DataDir: ts.MkAbs("fleet"), Regions: []string{"eu", "us"}}
	if len(args) > 0 {
		n, err := strconv.Atoi(args[0])
		ts.Check(err)
		opts.Nodes = n
	}
	ts.Check(os.MkdirAll(opts.DataDir, 0o700))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	fleet, err := local.Start(ctx, opts)
	ts.Check(err)
	ts.Defer(func() { ts.Check(fleet.Close()) })
	ts.Setenv("AFFCTL_SERVER", fleet.Control)
	ts.Setenv("AFFCTL_NATS", fleet.NATS)
	ts.Setenv("ETCD", fleet.Etcd)
	ts.Setenv("NODES", strings.Join(fleet.HTTP, " "))
}

// visit is "visit HOST/PATH STATUS [LOCATION]": every node answers so.
func visit(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: visit HOST/PATH STATUS [LOCATION]")
	}
	host, path, _ := strings.Cut(args[0], "/")
	client := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{DisableKeepAlives: true},
	}
	for node := range strings.FieldsSeq(ts.Getenv("NODES")) {
		req, err := http.NewRequest(http.MethodGet, "http://"+node+"/"+path, nil)
		ts.Check(err)
		req.Host = host
		resp, err := client.Do(req)
		ts.Check(err)
		_, err = io.Copy(io.Discard, resp.Body)
		ts.Check(err)
		ts.Check(resp.Body.Close())
		if got := strconv.Itoa(resp.StatusCode); got != args[1] {
			ts.Fatalf("node %s answers %s with %s, want %s", node, args[0], got, args[1])
		}
		if len(args) > 2 && resp.Header.Get("Location") != args[2] {
			ts.Fatalf("node %s sends %s to %q, want %q", node, args[0], resp.Header.Get("Location"), args[2])
		}
	}
}

// What differs from run to run.
var varying = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`), "DATE TIME"},
	{regexp.MustCompile(`\bversion \d+`), "version N"},
	{regexp.MustCompile(`"version": \d+`), `"version": N`},
	{regexp.MustCompile(`\b\d+(\.\d+)?(ms|s|µs)\b`), "TIME"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z`), "NOW"},
	{regexp.MustCompile(`(?m)(revision"?:? +"?)\d+`), "${1}N"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "SERVER"},
}

// shows is "shows stdout|stderr FILE": what was printed is the file, but for
// versions, times and addresses.
func shows(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: shows stdout|stderr FILE")
	}
	got, want := ts.ReadFile(args[0]), ts.ReadFile(args[1])
	for _, v := range varying {
		got, want = v.pattern.ReplaceAllString(got, v.instead), v.pattern.ReplaceAllString(want, v.instead)
	}
	if got != want {
		ts.Fatalf("%s is\n%s\nwant\n%s", args[0], got, want)
	}
}

// exits is "exits CODE affctl ARGUMENTS...": with this exit code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARGUMENTS...")
	}
	got := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}
