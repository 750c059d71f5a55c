package browser

import (
	"bufio"
	"bytes"
	"net/http"
	"testing"

	"github.com/affleet/affleet/deploy/bench/linkset"
)

func TestRequestsAreWholeAndAsVariedAsBrowsers(t *testing.T) {
	const n = 5000
	agents, languages, referrers, paths, size := map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}, 0
	for head := range Requests(linkset.Set{Seed: 1}, 1_000_000, n, 1) {
		in := bufio.NewReader(bytes.NewReader(head))
		r, err := http.ReadRequest(in)
		if err != nil || in.Buffered() > 0 {
			t.Fatalf("%v\n%s", err, head)
		}
		if r.Host != linkset.Domain || r.UserAgent() == "" || r.Header.Get("Accept-Language") == "" {
			t.Errorf("incomplete:\n%s", head)
		}
		agents[r.UserAgent()], languages[r.Header.Get("Accept-Language")], referrers[r.Referer()], paths[r.URL.Path] = true, true, true, true
		size += len(head)
	}
	t.Logf("%d bytes a request; %d agents, %d languages, %d referrers", size/n, len(agents), len(languages), len(referrers))
	if mean := size / n; mean < 500 || mean > 900 {
		t.Errorf("%d bytes a request", mean)
	}
	if len(agents) < 200 || len(languages) < 10 || len(referrers) < 200 || len(paths) < n*9/10 {
		t.Errorf("%d agents, %d languages, %d referrers, %d paths", len(agents), len(languages), len(referrers), len(paths))
	}
}

func TestRequestsDependOnTheirSeedAlone(t *testing.T) {
	collect := func(seed uint64) (all []byte) {
		for head := range Requests(linkset.Set{Seed: 1}, 1000, 50, seed) {
			all = append(all, head...)
		}
		return all
	}
	if !bytes.Equal(collect(1), collect(1)) {
		t.Error("one seed gives different requests")
	}
	if bytes.Equal(collect(1), collect(2)) {
		t.Error("two seeds give the same requests")
	}
}
