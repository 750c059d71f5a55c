package linkset

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func TestLinksAreValidAndOfTheSizesThatTheBenchmarksState(t *testing.T) {
	const n = 20_000
	var paths, destinations, affiliates, count int
	shares := map[string]int{}
	for l := range (Set{Seed: 1}).Links(n) {
		if err := link.Validate(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}}); err != nil {
			t.Fatal(err)
		}
		paths += len(l.GetPath())
		destinations += len(l.GetDestination())
		affiliates += len(l.GetAffiliate())
		shares[l.GetAffiliate()]++
		count++
	}
	mean := func(sum int) float64 { return float64(sum) / float64(count) }
	t.Logf("means of %d: path %.1f, destination %.1f, affiliate %.1f bytes; %d affiliates", count, mean(paths), mean(destinations), mean(affiliates), len(shares))
	if count != n || len(Domain) != 14 || affiliates != 8*n {
		t.Errorf("%d links, domain %d bytes, affiliates %d", count, len(Domain), affiliates)
	}
	if m := mean(paths); m < 18 || m > 22 {
		t.Errorf("paths have %.1f bytes", m)
	}
	if m := mean(destinations); m < 42 || m > 48 {
		t.Errorf("destinations have %.1f bytes", m)
	}
	if len(shares) < Affiliates/2 || shares["aff_0001"] < 2*shares["aff_0900"] {
		t.Errorf("%d affiliates, the first with %d, a late one with %d", len(shares), shares["aff_0001"], shares["aff_0900"])
	}
}

func TestPathsNeverRepeat(t *testing.T) {
	seen := map[string]int{}
	set := Set{Seed: 42}
	for p := range set.Paths(300_000) {
		seen[p]++
	}
	if len(seen) != 300_000 {
		t.Errorf("%d paths are different", len(seen))
	}
	// The code alone is unique, also where the set ends.
	codes := map[uint64]bool{}
	for i := range uint64(100_000) {
		codes[set.code(i)] = true
		codes[set.code(MaxLinks-1-i)] = true
	}
	if len(codes) != 200_000 {
		t.Errorf("%d codes are different", len(codes))
	}
}

func TestASetDependsOnItsSeedAlone(t *testing.T) {
	a, b := Set{Seed: 1}, Set{Seed: 2}
	i, same := 0, 0
	for l := range a.Links(1000) {
		if got := a.Link(i); got.String() != l.String() {
			t.Fatalf("link %d: %v, and %v", i, l, got)
		}
		if b.Link(i).GetPath() == l.GetPath() {
			same++
		}
		i++
	}
	if same > 10 {
		t.Errorf("two seeds share %d of 1000 paths", same)
	}
	// Figures are compared over time: the set must not change.
	first := a.Link(0)
	if got := first.GetPath() + " " + first.GetDestination() + " " + first.GetAffiliate(); got != golden {
		t.Errorf("the first link is now %q", got)
	}
}

func TestWritersWriteTheLinks(t *testing.T) {
	const n = 500
	set := Set{Seed: 3}
	var nginx, ndjson, affiliates bytes.Buffer
	if err := errors.Join(set.WriteNginxMap(&nginx, n), set.WriteNDJSON(&ndjson, n), WriteAffiliates(&affiliates)); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for line := range strings.Lines(affiliates.String()) {
		var a struct{ Kind, ID string }
		if err := json.Unmarshal([]byte(line), &a); err != nil || a.Kind != "Affiliate" || len(a.ID) != 8 {
			t.Fatalf("%s: %v", line, err)
		}
		known[a.ID] = true
	}
	want := "map $uri $target {\n    default \"\";\n"
	lines := bufio.NewScanner(&ndjson)
	for l := range set.Links(n) {
		want += fmt.Sprintf("    %s %s;\n", l.GetPath(), l.GetDestination())
		var got struct{ Kind, Domain, Path, Destination, Affiliate string }
		if !lines.Scan() {
			t.Fatal("too few lines")
		}
		if err := json.Unmarshal(lines.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if got.Kind != "Link" || got.Domain != l.GetDomain() || got.Path != l.GetPath() || got.Destination != l.GetDestination() ||
			got.Affiliate != l.GetAffiliate() || !known[got.Affiliate] {
			t.Errorf("got %+v, want %v", got, l)
		}
	}
	if got := nginx.String(); got != want+"}\n" {
		t.Errorf("map starts with\n%.300s", got)
	}
	if lines.Scan() {
		t.Error("too many lines")
	}
}

// full is a disk without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

var errFull = errors.New("no space left on device")

func TestWritersGiveTheErrorOfTheDisk(t *testing.T) {
	set := Set{}
	for _, n := range []int{1, 10_000} {
		if err := set.WriteNginxMap(full{}, n); !errors.Is(err, errFull) {
			t.Errorf("map of %d: %v", n, err)
		}
		if err := set.WriteNDJSON(full{}, n); !errors.Is(err, errFull) {
			t.Errorf("ndjson of %d: %v", n, err)
		}
	}
}

const golden = "/go/cool-tool-272ca2 https://deals.shop/p/579477680?ref=aff_0494 aff_0494"
