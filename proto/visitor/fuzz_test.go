package visitor

import (
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzHeaders gives every parser of headers the same bytes.
func FuzzHeaders(f *testing.F) {
	for _, seed := range []string{
		"", safariPhone, `"Chromium";v="126", "Not/A)Brand";v="8"`, `"Windows"`, "?1", "de-AT,de;q=0.9,*;q=0.1", "https://[::1]:80/x?y#z", "\"\\", "AS64500", "DE",
	} {
		f.Add([]byte(seed))
	}
	s := open(f, Config{})
	f.Fuzz(func(t *testing.T, b []byte) {
		a := s.Agent(b, &Hints{b, b, b})
		if again := s.Agent(b, &Hints{b, b, b}); again != a {
			t.Errorf("%q is %+v, then %+v", b, a, again)
		}
		for _, tag := range s.Languages(b) {
			if !isTag(tag) {
				t.Errorf("%q has the language %q", b, tag)
			}
		}
		if d := s.ReferrerDomain(b); len(d) > 253 || d != strings.ToLower(d) || strings.ContainsAny(d, "/?#@") {
			t.Errorf("%q comes from %q", b, d)
		}
		p := s.PlaceFrom(&GeoValues{b, b, b, b}, netip.Addr{})
		if p.Country != "" && !isCountry(p.Country) || len(p.Region) > 3 || !utf8.ValidString(p.City) {
			t.Errorf("%q is at %+v", b, p)
		}
		IsPreview(b, b, b)
	})
}

// FuzzBots gives the list of bots anything.
func FuzzBots(f *testing.F) {
	f.Add([]byte("# a\nGoogle[bB]ot\n(a|b)+c\n"), "Googlebot")
	f.Add([]byte("a{100}{100}\n"), "x")
	f.Fuzz(func(_ *testing.T, list []byte, agent string) {
		if b, err := parseBots("x", list); err == nil {
			b.match(agent[:min(len(agent), maxAgent)])
		}
	})
}

// FuzzDatabase gives the reader of databases anything: what it takes, it can be
// asked about.
func FuzzDatabase(f *testing.F) {
	cities, systems := testDatabases(f)
	for _, path := range []string{cities, systems} {
		f.Add(readFile(f, path))
	}
	s := open(f, Config{})
	f.Fuzz(func(_ *testing.T, data []byte) {
		if d, err := openDatabase("x", data, &s.lookupErrors); err == nil {
			d.lookup(netip.MustParseAddr("192.0.2.1"))
			d.lookup(netip.MustParseAddr("2001:db8::1"))
		}
	})
}
