package cli_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/affleet/affleet/cli"
	"github.com/affleet/affleet/deploy/local"
)

func environment(t *testing.T, fleet *local.Fleet) func(string) string {
	env := map[string]string{"AFFCTL_SERVER": fleet.Control, "AFFCTL_NATS": fleet.NATS, "AFFCTL_CONFIG": t.TempDir() + "/none"}
	return func(name string) string { return env[name] }
}

// follow runs affctl, and gives the lines of its stdout and what ends it.
func follow(t *testing.T, fleet *local.Fleet, args ...string) (lines <-chan string, stop func() (code int)) {
	t.Helper()
	const patience = 30 * time.Second // ends what would never end; not what is awaited
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	r, w := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- cli.Main(ctx, args, strings.NewReader(""), w, io.Discard, environment(t, fleet))
		_ = w.Close() // never fails
	}()
	out := make(chan string, 1000)
	go func() {
		defer close(out)
		for scanner := bufio.NewScanner(r); scanner.Scan(); {
			out <- scanner.Text()
		}
	}()
	return out, func() int {
		cancel()
		_ = r.Close() // nobody reads any more
		return <-ended
	}
}

// await takes lines until one contains text.
func await(t *testing.T, lines <-chan string, text string) {
	t.Helper()
	var seen []string
	for line := range lines {
		if seen = append(seen, line); strings.Contains(line, text) {
			return
		}
	}
	t.Fatalf("no %q in\n%s", text, strings.Join(seen, "\n"))
}

func TestWatchesGoOnUntilTheyAreInterrupted(t *testing.T) {
	fleet, err := local.Start(t.Context(), local.Options{Nodes: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := fleet.Close(); err != nil {
			t.Error(err)
		}
	}()
	// What is not found is a redirect, and so a click.
	setup := []string{"domain", "create", "*", "--not-found", "https://store.com/", "--wait"}
	if code := cli.Main(t.Context(), setup, strings.NewReader(""), io.Discard, io.Discard, environment(t, fleet)); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	nodes, stopNodes := follow(t, fleet, "nodes", "--watch", "--interval", "100ms", "-o", "name")
	await(t, nodes, "node-1")

	// A click from before shows that the tail follows; the next one is new.
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	visit := func(path string) {
		t.Helper()
		resp, err := client.Get("http://" + fleet.HTTP[0] + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close() // it was not read
	}
	visit("/before")
	clicks, stopClicks := follow(t, fleet, "clicks", "tail", "--since", "1h")
	await(t, clicks, "/before)")
	visit("/after")
	await(t, clicks, "/after)")

	if code := stopNodes(); code != 0 {
		t.Errorf("nodes --watch ended with %d", code)
	}
	if code := stopClicks(); code != 0 {
		t.Errorf("clicks tail ended with %d", code)
	}
}
