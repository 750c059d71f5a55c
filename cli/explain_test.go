package cli_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/affleet/affleet/cli"
	"github.com/affleet/affleet/deploy/local"
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
	}
}
