package local_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/affleet/affleet/deploy/local"
)

// TestACapHoldsOverAllNodes sends clicks to three nodes at once until the link's
// fallback is all that they answer with, and counts those that were sent on.
func TestACapHoldsOverAllNodes(t *testing.T) {
	const clicks, nodes = 200, 3
	f := start(t, local.Options{Nodes: nodes})
	affctl(t, f, "link", "create", "/deal", "https://store.example/deal", "--cap", "200/day", "--fallback", "https://store.example/later", "--wait")
	affctl(t, f, "link", "create", "/one", "https://store.example/one", "--cap", "1", "--fallback", "https://store.example/later", "--wait")
	ask := func(method, addr, path string, headers ...string) string {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36")
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			return ""
		}
		_ = resp.Body.Close()
		return resp.Header.Get("Location")
	}
	send := func(addr, path string) string { return ask(http.MethodGet, addr, path) }
	// What a bot asks for does not count, nor what a browser asks for in advance,
	// nor HEAD.
	for _, c := range []struct {
		who, method string
		headers     []string
	}{
		{"a bot", http.MethodGet, []string{"User-Agent", "Googlebot/2.1"}},
		{"Go's client", http.MethodGet, []string{"User-Agent", "Go-http-client/1.1"}},
		{"a prefetch", http.MethodGet, []string{"Sec-Purpose", "prefetch"}},
		{"a preview", http.MethodGet, []string{"Purpose", "preview"}},
		{"HEAD", http.MethodHead, nil},
	} {
		for range 10 {
			if got := ask(c.method, f.HTTP[0], "/one", c.headers...); got != "https://store.example/one" {
				t.Fatalf("%s is sent to %s", c.who, got)
			}
		}
	}
	if got := send(f.HTTP[0], "/one"); got != "https://store.example/one" {
		t.Errorf("the first click is sent to %s", got)
	}
	if got := send(f.HTTP[0], "/one"); got != "https://store.example/later" {
		t.Errorf("the second click is sent to %s", got)
	}

	var mu sync.Mutex
	sent := 0
	var running sync.WaitGroup
	for _, addr := range f.HTTP {
		running.Go(func() {
			// What another node gives back comes within seconds: the cap is used up
			// when a node has had nothing for ten.
			for last := time.Now(); time.Since(last) < 10*time.Second; {
				if send(addr, "/deal") == "https://store.example/deal" {
					mu.Lock()
					sent++
					mu.Unlock()
					last = time.Now()
					continue
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	running.Wait()
	if sent < clicks-nodes || sent > clicks+nodes {
		t.Errorf("%d clicks were sent on, and the cap is %d", sent, clicks)
	}
}
