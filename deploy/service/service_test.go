package service

import (
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// try runs a server with one setting, and gives its exit code, what it printed
// and the value that the setting had when it ran.
func try(t *testing.T, run error, args ...string) (code int, stdout, stderr, value string) {
	t.Helper()
	var listen, ran string
	s := Server{
		Name: "afftest", Summary: "afftest tests.", Example: "afftest --listen :1",
		Flags: func(fs *flag.FlagSet) { fs.StringVar(&listen, "listen", "default", "`address`") },
		Check: func() error {
			if listen == "bad" {
				return errors.New("listen: bad is bad")
			}
			return nil
		},
		Run: func(context.Context, *slog.Logger) error { ran = listen; return run },
	}
	files := make([]*os.File, 2)
	for i := range files {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		files[i] = f
	}
	code = s.Main(args, files[0], files[1])
	out, _ := os.ReadFile(files[0].Name())
	errs, _ := os.ReadFile(files[1].Name())
	return code, string(out), string(errs), ran
}

func TestFlagsWinOverVariablesAndThoseOverTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "aff.yaml")
	if err := os.WriteFile(file, []byte("listen: from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, _, got := try(t, nil); got != "default" {
		t.Errorf("without anything: %q", got)
	}
	if _, _, _, got := try(t, nil, "--config", file); got != "from-file" {
		t.Errorf("with the file: %q", got)
	}
	t.Setenv("AFF_LISTEN", "from-variable")
	if _, _, _, got := try(t, nil, "--config", file); got != "from-variable" {
		t.Errorf("with the file and the variable: %q", got)
	}
	if _, _, _, got := try(t, nil, "--config", file, "--listen", "from-flag"); got != "from-flag" {
		t.Errorf("with all three: %q", got)
	}
}

func TestWrongSettingsEndWithOneReasonAndExitCode2(t *testing.T) {
	file := filepath.Join(t.TempDir(), "aff.yaml")
	if err := os.WriteFile(file, []byte("lisen: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for says, args := range map[string][]string{
		"lisen":       {"--config", file},
		"nowhere":     {"--config", "nowhere.yaml"},
		"nope":        {"--nope"},
		"surplus":     {"surplus"},
		"bad is bad":  {"--listen", "bad"},
		"log-level":   {"--log-level", "loud"},
		"afftest: li": {"--listen", "bad", "--check-config"},
	} {
		code, _, stderr, ran := try(t, nil, args...)
		if code != 2 || !strings.Contains(stderr, says) || ran != "" {
			t.Errorf("%v: exit code %d, says %q, ran with %q; want 2 and %q", args, code, stderr, ran, says)
		}
	}
}

func TestCheckConfigHelpAndVersionDoNotRun(t *testing.T) {
	for says, arg := range map[string]string{"valid": "--check-config", "--listen address": "--help", Version: "--version"} {
		code, stdout, _, ran := try(t, nil, arg)
		if code != 0 || !strings.Contains(stdout, says) || ran != "" {
			t.Errorf("%s: exit code %d, says %q, ran with %q", arg, code, stdout, ran)
		}
	}
}

func TestFailureIsOneLineAndExitCode1(t *testing.T) {
	code, _, stderr, _ := try(t, errors.New("listen tcp :1: in use"))
	if code != 1 || stderr != "afftest: listen tcp :1: in use\n" {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

func TestAdminAddressAnswersUntilThePartHasEnded(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "aff_test_total"}, func() float64 { return 7 }))
	var unhealthy error
	page := Page{"GET /page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a page") }}
	admin, err := ListenAdmin(Part{Admin: "127.0.0.1:0", Healthy: func() error { return unhealthy }, Metrics: registry, Pages: []Page{page}})
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string) (int, string) {
		client := http.Client{Timeout: 10 * time.Second}
		resp, err := client.Get("http://" + admin.Addr().String() + path)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		if resp.Uncompressed { // the client asks for gzip
			t.Errorf("%s is compressed", path)
		}
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = admin.Serve(ctx, func(ctx context.Context) error {
		if code, body := get("/readyz"); code != http.StatusOK || body != "ok\n" {
			t.Errorf("ready: %d %q", code, body)
		}
		if _, body := get("/metrics"); !strings.Contains(body, "aff_test_total 7") {
			t.Errorf("metrics: %q", body)
		}
		if code, body := get("/page"); code != http.StatusOK || body != "a page" {
			t.Errorf("page: %d %q", code, body)
		}
		cancel()
		<-ctx.Done()
		unhealthy = errors.New("draining")
		if code, body := get("/readyz"); code != http.StatusServiceUnavailable || body != "draining\n" {
			t.Errorf("draining: %d %q", code, body)
		}
		if code, _ := get("/livez"); code != http.StatusOK {
			t.Errorf("live while draining: %d", code)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if code, _ := get("/livez"); code != 0 {
		t.Errorf("answers %d after the end", code)
	}
}
