package cli_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/affleet/affleet/cli"
	"github.com/affleet/affleet/deploy/local"
	"github.com/affleet/affleet/proto/statefile"
)

// TestExplainFindsAmongManyLinksWhatTheNodeFinds: more links than one page of a
// search has, at every letter of the path that is asked for.
func TestExplainFindsAmongManyLinksWhatTheNodeFinds(t *testing.T) {
	fleet, err := local.Start(t.Context(), local.Options{Nodes: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fleet.Close() })
	affctl := func(stdin string, args ...string) string {
		t.Helper()
		var out strings.Builder
		if code := cli.Main(t.Context(), args, strings.NewReader(stdin), &out, &out, environment(t, fleet)); code != 0 {
			t.Fatalf("affctl %s: exit code %d\n%s", strings.Join(args, " "), code, out.String())
		}
		return out.String()
	}
	rows := "domain,path\n"
	for _, head := range []string{"/", "/g", "/G", "/gO", "/GO", "/Go/a-", "/go/A-", "/GO/A-b", "/GO/A-b/"} {
		for i := range 110 {
			rows += fmt.Sprintf("h,%s%d\n", head, 100+i)
		}
	}
	for _, path := range []string{"/Go/a-B", "/gO/a-B", "/GO/a-b/", "/GO/A-b/*", "/Other/", "/other/"} {
		rows += "h," + path + "\n"
	}
	rows = strings.ReplaceAll(rows, "\n", ",https://store.com/\n")
	rows = strings.Replace(rows, ",https://store.com/", ",destination", 1)
	lines := strings.Split(strings.TrimSpace(rows), "\n")
	for i := range lines[1:] { // each goes somewhere else
		lines[i+1] += fmt.Sprint(i)
	}
	affctl(strings.Join(lines, "\n"), "import", "csv", "-")
	affctl("", "domain", "create", "h", "--case", "ignore", "--trailing-slash", "ignore", "--wait")
	saved := saveState(t, fleet.Admin[1])
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, path := range []string{"/go/a-b", "/go/a-b/", "/GO/A-B/x", "/gO/a-B", "/OTHER", "/other", "/go/a-107", "/go/none", "/", "/go/a-b/109/"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+fleet.HTTP[0]+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "h"
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		said := affctl("", "explain", "h"+path)
		want := "answer    404"
		if to := resp.Header.Get("Location"); to != "" {
			want = "Location: " + to + "\n"
		}
		if !strings.Contains(said, want) {
			t.Errorf("%s: the node says %s%s, explain\n%s", path, resp.Status, want, said)
		}
		if offline := affctl("", "explain", "h"+path, "--from-file", saved); offline != said {
			t.Errorf("%s: on the node's state, explain says\n%s\nand on the control plane\n%s", path, offline, said)
		}
	}
}

// saveState saves the state that a node gives, once it has one on disk that has
// all that was written so far.
func saveState(t *testing.T, admin string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.aff")
	for {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+admin+"/state", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == http.StatusOK {
			_, all, err := statefile.All(bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if all["domains/h"] != nil {
				if err := os.WriteFile(path, body, 0o600); err != nil {
					t.Fatal(err)
				}
				return path
			}
		}
		time.Sleep(100 * time.Millisecond) // until the test's time is over
	}
}
