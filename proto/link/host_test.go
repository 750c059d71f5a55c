package link_test

import (
	"net/netip"
	"strings"
	"testing"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func TestHostsTakeTheirCanonicalForm(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"Go.Example.COM", "go.example.com"},
		{"go.example.com:8080", "go.example.com"},
		{"go.example.com.", "go.example.com"},
		{"go.example.com.:80", "go.example.com"},
		{"127.0.0.1:80", "127.0.0.1"},
		{"[::1]:8080", "[::1]"},
		{"[2001:DB8::1]", "[2001:db8::1]"},
		{"[::FFFF:192.0.2.1]:80", "[::ffff:192.0.2.1]"},
		{"a_b", "a_b"},
		{"a:", "a"},
		{"", ""},
	} {
		got, ok := link.AppendCanonicalHost([]byte("x"), []byte(c.in))
		if !ok || string(got) != "x"+c.want {
			t.Errorf("%q becomes %q (%v), want %q", c.in, got, ok, c.want)
		}
	}
	for _, in := range []string{
		"a b", "a/b", "a@b", "a:b", ":80", ".", "é.com", "a:99999", "[::1", "[]", "[::1]x", "*", "a\x00",
		strings.Repeat("a", 254), "[" + strings.Repeat(":", 9000) + "]", "[...]", "[::1%25eth0]", "[::1%eth0]", "[127.0.0.1]", "[::1]]", "[[::1]]",
	} {
		if got, ok := link.AppendCanonicalHost([]byte("x"), []byte(in)); ok || string(got) != "x" {
			t.Errorf("%q becomes %q, want a refusal that leaves the buffer alone", in, got)
		}
	}
}

// A link could be stored under such a host once: it is read, and found and removed by
// name, and no new one is written.
func TestAHostInBracketsThatIsNoAddressIsAKeyThatNobodyWrites(t *testing.T) {
	const host = "[1:2]"
	if got, err := link.CanonicalHost(host); err != nil || got != host {
		t.Errorf("it becomes %q, %v", got, err)
	}
	if _, id, err := link.ParseName("links/" + host + "/a"); err != nil || id != host+"/a" {
		t.Errorf("its name is that of %q, %v", id, err)
	}
	r := &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: host, Path: "/a", Destination: "https://store.com/"}}}
	value, err := link.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := link.Compile(value); err != nil {
		t.Errorf("as it is stored: %v", err)
	}
	if err := link.Validate(r); err == nil || !strings.Contains(err.Error(), "is no IPv6 address") {
		t.Errorf("as it is written: %v", err)
	}
	for _, host := range []string{"[A:B]", "[1:2]:80", "[]", "[:", "[1:2", "[g:]"} {
		if _, err := link.CanonicalHost(host); err == nil {
			t.Errorf("%q is a key", host)
		}
	}
}

// FuzzHostsInBracketsAreAddresses compares with net/netip, and with what it takes for
// an address of IPv6 without a zone.
func FuzzHostsInBracketsAreAddresses(f *testing.F) {
	for _, s := range []string{
		"::", "::1", "1::", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8:9", "1:2:3:4::5:6:7:8", "1:2:3:4:5:6:7:", ":1:2:3:4:5:6:7",
		"1::2::3", ":::", "12345::", "g::", "fe80::1%eth0", "::1.2.3.4", "1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:1.2.3.4", "1:2:3:4:5:6:7:1.2.3.4", "1:2:3:4:5::1.2.3.4",
		"::1.2.3", "::1.2.3.256", "::01.2.3.4", "::1.2.3.4.5", "::1.2.3.4:1", "::1.2.3.4.", "1.2.3.4", "::a.2.3.4", "::1..3.4", "", "1", "::ffff:0:0", "::0000", "::00000", "::1234.2.3.4",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, s []byte) {
		addr, err := netip.ParseAddr(string(s))
		want := err == nil && addr.Is6() && addr.Zone() == ""
		got, ok := link.AppendCanonicalHost(nil, []byte("["+string(s)+"]"))
		if ok != want || ok && string(got) != "["+strings.ToLower(string(s))+"]" {
			t.Errorf("%q is a host: %v, %q; net/netip: %v", s, ok, got, want)
		}
	})
}
