package store

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/proto/link"
)

// listAll follows the pages to the end, and gives the names.
func listAll(t *testing.T, s *Store, q Query) (names []string, pages int) {
	t.Helper()
	for {
		page, err := s.List(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		pages++
		for _, o := range page.Objects {
			names = append(names, o.Name)
		}
		if q.PageToken = page.Next; q.PageToken == "" {
			return names, pages
		}
	}
}

func linkAt(domain, path, affiliate string, labels map[string]string) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
		Domain: domain, Path: path, Destination: "https://store.example/", Affiliate: affiliate, Labels: labels,
	}}}
}

func TestListFilters(t *testing.T) {
	s := start(t)
	s.mustPut(t,
		testAffiliate("aff_01"), testAffiliate("aff_02"), testDomain("*"), testDomain("go.example.com"), testDomain("go.example.com.au"),
		linkAt("*", "/any", "", nil),
		linkAt("go.example.com", "/a", "aff_01", map[string]string{"team": "eu", "tier": "1"}),
		linkAt("go.example.com", "/ab", "aff_02", map[string]string{"team": "us"}),
		linkAt("go.example.com", "/b", "aff_01", nil),
		linkAt("go.example.com.au", "/a", "", map[string]string{"team": "eu"}),
	)
	for _, c := range []struct {
		name string
		f    Filter
		want []string
	}{
		{"all links", Filter{Kind: link.Links}, []string{"links/*/any", "links/go.example.com.au/a", "links/go.example.com/a", "links/go.example.com/ab", "links/go.example.com/b"}},
		{"domain", Filter{Kind: link.Links, Domain: "go.example.com"}, []string{"links/go.example.com/a", "links/go.example.com/ab", "links/go.example.com/b"}},
		{"any domain", Filter{Kind: link.Links, Domain: "*"}, []string{"links/*/any"}},
		{"path prefix", Filter{Kind: link.Links, Domain: "go.example.com", PathPrefix: "/a"}, []string{"links/go.example.com/a", "links/go.example.com/ab"}},
		{"affiliate", Filter{Kind: link.Links, Affiliate: "aff_01"}, []string{"links/go.example.com/a", "links/go.example.com/b"}},
		{"label", Filter{Kind: link.Links, Labels: map[string]string{"team": "eu"}}, []string{"links/go.example.com.au/a", "links/go.example.com/a"}},
		{"any value", Filter{Kind: link.Links, Labels: map[string]string{"team": ""}}, []string{"links/go.example.com.au/a", "links/go.example.com/a", "links/go.example.com/ab"}},
		{"two labels", Filter{Kind: link.Links, Labels: map[string]string{"team": "eu", "tier": "1"}}, []string{"links/go.example.com/a"}},
		{"all at once", Filter{Kind: link.Links, Domain: "go.example.com", PathPrefix: "/a", Affiliate: "aff_02", Labels: map[string]string{"team": "us"}}, []string{"links/go.example.com/ab"}},
		{"nothing", Filter{Kind: link.Links, Domain: "go.example"}, nil},
		{"domains", Filter{Kind: link.Domains}, []string{"domains/*", "domains/go.example.com", "domains/go.example.com.au"}},
		{"one domain", Filter{Kind: link.Domains, Domain: "go.example.com"}, []string{"domains/go.example.com"}},
		{"affiliates", Filter{Kind: link.Affiliates}, []string{"affiliates/aff_01", "affiliates/aff_02"}},
		{"blocks", Filter{Kind: link.Blocks}, nil},
	} {
		for _, size := range []int{0, 1, 2} {
			got, _ := listAll(t, s, Query{Filter: c.f, PageSize: size})
			if !slices.Equal(got, c.want) {
				t.Errorf("%s, pages of %d: got %v, want %v", c.name, size, got, c.want)
			}
		}
	}
}

func TestListRefusesFiltersThatMakeNoSense(t *testing.T) {
	s := start(t)
	for field, f := range map[string]Filter{
		"filter.kind":        {},
		"filter.path_prefix": {Kind: link.Links, PathPrefix: "/a"},
		"filter.domain":      {Kind: link.Links, Domain: "go.example.com/a"},
		"filter.affiliate":   {Kind: link.Domains, Affiliate: "aff_01"},
		"filter.labels":      {Kind: link.Blocks, Labels: map[string]string{"a": "b"}},
	} {
		_, err := s.List(t.Context(), Query{Filter: f})
		if e := wantKind(t, err, link.Invalid); e.Field != field {
			t.Errorf("field is %q, want %q", e.Field, field)
		}
	}
	for _, f := range []Filter{
		{Kind: link.Links, Domain: "go.example.co", PathPrefix: "m/a"},
		{Kind: link.Affiliates, Domain: "go.example.com"},
		{Kind: link.Domains, PathPrefix: "/a", Domain: "go.example.com"},
		{Kind: 9},
	} {
		_, err := s.List(t.Context(), Query{Filter: f})
		wantKind(t, err, link.Invalid)
	}
	_, err := s.List(t.Context(), Query{Filter: Filter{Kind: link.Links}, PageSize: -1})
	wantKind(t, err, link.Invalid)
}

func TestPagesShowOneRevisionWhileOthersWrite(t *testing.T) {
	s := start(t)
	var want []string
	for i := range 25 {
		name := fmt.Sprintf("/%02d", i)
		s.mustPut(t, testLink(name, "https://store.example/"))
		want = append(want, "links/go.example.com"+name)
	}
	q := Query{Filter: Filter{Kind: link.Links}, PageSize: 4}
	var got []string
	revision := int64(0)
	for i := 0; ; i++ {
		page, err := s.List(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if revision != 0 && page.Revision != revision {
			t.Fatalf("page %d shows revision %d, the first %d", i, page.Revision, revision)
		}
		revision = page.Revision
		for _, o := range page.Objects {
			got = append(got, o.Name)
		}
		if q.PageToken = page.Next; q.PageToken == "" {
			break
		}
		s.mustPut(t, testLink(fmt.Sprintf("/%02dx", 20+i), "https://store.example/new"))
		s.mustWrite(t, Write{Verb: Delete, Name: want[24-i]})
	}
	if !slices.Equal(got, want) {
		t.Fatalf("got %v", got)
	}
}

func TestPageTokenIsTiedToItsListAndNotGarbled(t *testing.T) {
	s := start(t)
	s.mustPut(t, testLink("/a", "https://store.example/"), testLink("/b", "https://store.example/"))
	q := Query{Filter: Filter{Kind: link.Links}, PageSize: 1}
	page, err := s.List(t.Context(), q)
	if err != nil || page.Next == "" {
		t.Fatalf("got %+v, %v", page, err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(page.Next)
	if err != nil {
		t.Fatal(err)
	}
	raw[9] ^= 1
	for _, token := range []string{"x", "!", page.Next[1:], base64.RawURLEncoding.EncodeToString(raw)} {
		q.PageToken = token
		_, err := s.List(t.Context(), q)
		if e := wantKind(t, err, link.Invalid); e.Field != "page_token" {
			t.Errorf("field is %q", e.Field)
		}
	}
	_, err = s.List(t.Context(), Query{Filter: Filter{Kind: link.Links, Domain: "go.example.com"}, PageSize: 1, PageToken: page.Next})
	wantKind(t, err, link.Invalid)
}

func TestPageOfACompactedRevisionSaysStartAgain(t *testing.T) {
	server := etcdtest.New(t)
	client := server.Client()
	s := New(client)
	s.mustPut(t, testLink("/a", "https://store.example/"), testLink("/b", "https://store.example/"))
	q := Query{Filter: Filter{Kind: link.Links}, PageSize: 1}
	page, err := s.List(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	s.mustPut(t, testLink("/c", "https://store.example/"))
	server.Compact(client)
	q.PageToken = page.Next
	_, err = s.List(t.Context(), q)
	if e := wantKind(t, err, link.OutOfRange); e.Hint == "" {
		t.Fatalf("no hint: %v", e)
	}
}

func TestListLooksAtABoundedNumberOfKeysPerCall(t *testing.T) {
	s := start(t)
	importLinks(t, s, "a", 2*maxScanned+500)
	s.mustPut(t, linkAt("go.example.com", "/z", "", map[string]string{"rare": "yes"}))
	names, pages := listAll(t, s, Query{Filter: Filter{Kind: link.Links, Labels: map[string]string{"rare": "yes"}}})
	if len(names) != 1 || pages != 3 {
		t.Fatalf("got %v in %d pages", names, pages)
	}
}

func FuzzReadToken(f *testing.F) {
	filter := Filter{Kind: link.Links}
	f.Add(filter.token(7, "links/go.example.com/a"))
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		revision, last, err := filter.readToken("links/", token)
		if err == nil && filter.token(revision, last) != strings.NewReplacer("\r", "", "\n", "").Replace(token) {
			t.Fatalf("%q reads as %d %q, which is another token", token, revision, last)
		}
	})
}
