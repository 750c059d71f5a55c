package contest

import (
	"bufio"
	"bytes"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/visitor"
)

func TestLinksOfEveryKindAreValidAndTellTheirProducts(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range decisions {
		for i := range 3 {
			l := d.link(i)
			if _, err := link.Encode(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}}); err != nil {
				t.Errorf("%s: %v", d.what, err)
			}
			if seen[l.GetPath()] || !strings.Contains(l.GetDestination(), l.GetCampaign()) {
				t.Errorf("%s: %s to %s", d.what, l.GetPath(), l.GetDestination())
			}
			seen[l.GetPath()] = true
		}
	}
}

func TestRequestsOfEveryKindAskForItsLinksFromKnownNetworks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "places.mmdb")
	if err := writeFile(file, writeGeoIP); err != nil {
		t.Fatal(err)
	}
	sources, err := visitor.Open(visitor.Config{Geo: []string{file}})
	if err != nil {
		t.Fatal(err)
	}
	const links = 10
	for _, d := range decisions {
		paths := map[string]bool{}
		for i := range links {
			paths[d.link(i).GetPath()] = true
		}
		n := 0
		for raw := range d.requests(links) {
			if n++; n > 1000 {
				break
			}
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
			if err != nil {
				t.Fatalf("%q: %v", raw, err)
			}
			addr, err := netip.ParseAddr(r.Header.Get("X-Forwarded-For"))
			if err != nil || sources.Place(addr).Country == "" || r.UserAgent() == "" || !paths[r.URL.Path] || "?"+r.URL.RawQuery != d.query && d.query != "" {
				t.Fatalf("%q", raw)
			}
		}
	}
}

func TestNginxKnowsTheCountriesThatTheDatabaseKnows(t *testing.T) {
	s := &stage{cfg: Config{Links: 2}}
	dir := t.TempDir()
	if err := s.writeDeciding(dir, &server{addr: "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	blocks, err := os.ReadFile(filepath.Join(dir, "countries.geo"))
	if err != nil || bytes.Count(blocks, []byte("\n")) != networks || !bytes.Contains(blocks, []byte(network(700)+" "+countryOf(700)+";")) {
		t.Errorf("%v: %.200s", err, blocks)
	}
	products, err := os.ReadFile(filepath.Join(dir, "products.map"))
	if want := decisions[1].link(1); err != nil || !bytes.Contains(products, []byte(want.GetPath()+" "+want.GetCampaign()+";")) {
		t.Errorf("%v: %s", err, products)
	}
}

func TestADecisionThatCostsTooMuchIsSaidToMissItsGoal(t *testing.T) {
	turns := func(node float64, d decision) *decisionTurns {
		return &decisionTurns{decision: d, node: server{samples: []sample{{cpu: node}}}, nginx: server{samples: []sample{{cpu: 4}}}}
	}
	for _, c := range []struct {
		node float64
		want string
	}{
		{4, "| at most 1.00 | reached | +1.00 |"}, {5, "| **1.25** (1.25 - 1.25) | at most 1.00 | **not reached** | +2.00 |"},
	} {
		r := &Decisions{Config: Config{Rounds: 1}, turns: []*decisionTurns{turns(3, decisions[0]), turns(c.node, decisions[1])}}
		if got := r.Markdown("Made."); !strings.Contains(got, c.want) {
			t.Errorf("%v µs: no %q in\n%s", c.node, c.want, got)
		}
	}
}
