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
	send := func(addr, path string) string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36")
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			return ""
		}
		_ = resp.Body.Close()
		return resp.Header.Get("Location")
	}
	// A click of a bot or a preview does not count.
	for range 20 {
		if got := location(t, f.HTTP[0], "/one"); got != "302 https://store.example/one" {
			t.Fatalf("a bot is sent to %s", got)
		}
	}
	if got := send(f.HTTP[0], "/one"); got != "https://store.example/one" {
		t.Errorf("the first click is sent to %s", got)
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
