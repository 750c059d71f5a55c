package redirect

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func mustProxies(t testing.TB, list ...string) []netip.Prefix {
	t.Helper()
	proxies, err := ParseProxies(list)
	if err != nil {
		t.Fatal(err)
	}
	return proxies
}

var forwardedCases = []struct {
	name   string
	header ForwardedHeader
	values []string
	want   string // "peer": the peer's
}{
	{"no header", XForwardedFor, nil, "peer"},
	{"an empty header", XForwardedFor, []string{""}, "peer"},
	{"only blanks and commas", XForwardedFor, []string{" ,\t, "}, "peer"},
	{"one address", XForwardedFor, []string{"198.51.100.7"}, "198.51.100.7"},
	{"what a client wrote itself is to the left", XForwardedFor, []string{"203.0.113.1, 198.51.100.7"}, "198.51.100.7"},
	{"trusted proxies are passed over", XForwardedFor, []string{"203.0.113.1, 198.51.100.7, 10.0.0.9,10.1.2.3"}, "198.51.100.7"},
	{"all are trusted", XForwardedFor, []string{"10.0.0.1, 10.0.0.2"}, "10.0.0.1"},
	{"several lines", XForwardedFor, []string{"203.0.113.1", "198.51.100.7", "10.0.0.9"}, "198.51.100.7"},
	{"a port", XForwardedFor, []string{"198.51.100.7:1234"}, "198.51.100.7"},
	{"IPv6", XForwardedFor, []string{"2001:db8::1"}, "2001:db8::1"},
	{"IPv6 in brackets", XForwardedFor, []string{"[2001:db8::1]"}, "2001:db8::1"},
	{"IPv6 with a port", XForwardedFor, []string{"[2001:db8::1]:443"}, "2001:db8::1"},
	{"trusted IPv6", XForwardedFor, []string{"198.51.100.7, fd00::1"}, "198.51.100.7"},
	{"IPv4 as IPv6", XForwardedFor, []string{"::ffff:198.51.100.7"}, "198.51.100.7"},
	{"a trusted IPv4 as IPv6", XForwardedFor, []string{"198.51.100.7, ::ffff:10.0.0.1"}, "198.51.100.7"},
	{"unknown", XForwardedFor, []string{"unknown"}, "peer"},
	{"unknown behind an address", XForwardedFor, []string{"198.51.100.7, unknown"}, "peer"},
	{"unknown behind an address, then a trusted one", XForwardedFor, []string{"198.51.100.7, unknown, 10.0.0.1"}, "peer"},
	{"unknown in front of an address", XForwardedFor, []string{"unknown, 198.51.100.7"}, "198.51.100.7"},
	{"an obfuscated id", XForwardedFor, []string{"198.51.100.7, _hidden"}, "peer"},
	{"a zone", XForwardedFor, []string{"fe80::1%eth0"}, "peer"},
	{"a port that is none", XForwardedFor, []string{"198.51.100.7:x"}, "peer"},
	{"a port that is too large", XForwardedFor, []string{"198.51.100.7:65536"}, "peer"},
	{"an empty port", XForwardedFor, []string{"198.51.100.7:"}, "peer"},
	{"IPv4 in brackets", XForwardedFor, []string{"[198.51.100.7]"}, "peer"},
	{"an open bracket", XForwardedFor, []string{"[2001:db8::1"}, "peer"},
	{"more behind the bracket", XForwardedFor, []string{"[2001:db8::1]x"}, "peer"},
	{"leading zeros", XForwardedFor, []string{"198.051.100.7"}, "peer"},
	{"over-long", XForwardedFor, []string{strings.Repeat("1", 100)}, "peer"},

	{"an address", Forwarded, []string{"for=198.51.100.7"}, "198.51.100.7"},
	{"among other pairs", Forwarded, []string{`proto=https;for=198.51.100.7;by="[fd00::1]:80"; host=example.com`}, "198.51.100.7"},
	{"a name in any case, blanks", Forwarded, []string{" proto=http ; FOR=198.51.100.7 "}, "198.51.100.7"},
	{"IPv6 with a port", Forwarded, []string{`for="[2001:db8::1]:4711"`}, "2001:db8::1"},
	{"IPv6 with a hidden port", Forwarded, []string{`for="[2001:db8::1]:_x"`}, "2001:db8::1"},
	{"not quoted where it should be", Forwarded, []string{`for=198.51.100.7:80, for=10.0.0.1:80`}, "198.51.100.7"},
	{"several elements", Forwarded, []string{`for=203.0.113.1, for="198.51.100.7:80";proto=http, for=10.0.0.1`}, "198.51.100.7"},
	{"several lines", Forwarded, []string{"for=203.0.113.1", "for=198.51.100.7,for=10.0.0.1"}, "198.51.100.7"},
	{"unknown", Forwarded, []string{"for=198.51.100.7, for=unknown"}, "peer"},
	{"an obfuscated id", Forwarded, []string{`for=198.51.100.7, for="_gazonk"`}, "peer"},
	{"an element for nobody", Forwarded, []string{"for=198.51.100.7, proto=https"}, "peer"},
	{"an element for two", Forwarded, []string{"for=198.51.100.7;for=198.51.100.8"}, "peer"},
	{"empty elements", Forwarded, []string{",for=198.51.100.7,,for=10.0.0.1,"}, "198.51.100.7"},
	{"a comma inside quotes", Forwarded, []string{`for=198.51.100.7;ext="a,for=203.0.113.1;"`}, "198.51.100.7"},
	{"a quote that is escaped", Forwarded, []string{`for=198.51.100.7;ext="a\",for=203.0.113.1"`}, "198.51.100.7"},
	{"a quote that does not end", Forwarded, []string{`for=198.51.100.7, for="198.51.100.8`}, "peer"},
	{"a client's quote that does not end", Forwarded, []string{`for="203.0.113.1, for=198.51.100.7`}, "198.51.100.7"},
	{"a client's quote that ends in the proxy's", Forwarded, []string{`x=", for="[2001:db8::1]:80";proto=https, for=10.0.0.1`}, "2001:db8::1"},
	{"what a client wrote cannot be read", Forwarded, []string{`for, =;, "x" y, for=198.51.100.7`}, "198.51.100.7"},
	{"escapes in an address", Forwarded, []string{`for="198\.51.100.7"`}, "peer"},
	{"IPv6 without quotes", Forwarded, []string{"for=[2001:db8::1]:80"}, "2001:db8::1"},
	{"IPv6 without brackets", Forwarded, []string{`for="2001:db8::1"`}, "2001:db8::1"},
	{"blanks around the equals sign", Forwarded, []string{"for = 198.51.100.7"}, "peer"},
	{"a quote that does not end, on another line", Forwarded, []string{`for="203.0.113.1`, "for=198.51.100.7"}, "198.51.100.7"},
	{"a pair without a value", Forwarded, []string{"for"}, "peer"},
	{"an empty value", Forwarded, []string{"for=;proto=http"}, "peer"},
	{"two values", Forwarded, []string{"for=198.51.100.7 for=198.51.100.8"}, "peer"},
	{"the other header's form", Forwarded, []string{"198.51.100.7"}, "peer"},
}

// headWith gives a head in which other lines are between those of the header.
func headWith(t testing.TB, header ForwardedHeader, values []string) *head {
	t.Helper()
	name := [numForwardedHeaders]string{"", "x-forwarded-FOR", "FORWARDED"}[header]
	request := "GET /a HTTP/1.1\r\nHost: h\r\n"
	for _, v := range values {
		request += name + ":" + v + "\r\nX-Other: 192.0.2.9\r\nForwarded-For: 192.0.2.9\r\n"
	}
	h := &head{}
	if n, why := h.parse([]byte(request + "\r\n")); n == 0 || why != accepted {
		t.Fatalf("%q is refused as %q", request, refusals[why].reason)
	}
	return h
}

func TestClientIsTheRightMostAddressThatIsNotTrusted(t *testing.T) {
	peer := netip.MustParseAddr("10.0.0.200")
	for _, tt := range forwardedCases {
		tr := trust{proxies: mustProxies(t, "10.0.0.0/8", "fd00::/8"), header: tt.header}
		h := headWith(t, tt.header, tt.values)
		got := tr.client(peer, h)
		want := peer
		if tt.want != "peer" {
			want = netip.MustParseAddr(tt.want)
		}
		if got != want {
			t.Errorf("%s: %q: got %v, want %v", tt.name, tt.values, got, want)
		}
		if want == peer || strings.Contains(tt.values[0], "unknown") {
			continue // net/netip makes an error of what is no address
		}
		allocateNothing(t, tt.name, 1, func() { tr.client(peer, h) })
	}
}

func TestHTTP2HeadersMeanTheSameClient(t *testing.T) {
	peer := netip.MustParseAddr("10.0.0.200")
	for _, tt := range forwardedCases {
		tr := trust{proxies: mustProxies(t, "10.0.0.0/8", "fd00::/8"), header: tt.header}
		r := &http.Request{Method: http.MethodGet, Host: "h", RequestURI: "/a", Header: http.Header{}}
		if tt.values != nil {
			r.Header[[numForwardedHeaders]string{"", "X-Forwarded-For", "Forwarded"}[tt.header]] = tt.values
		}
		var h head
		if why := h.take(r); why != accepted {
			t.Fatalf("%s: refused as %q", tt.name, refusals[why].reason)
		}
		if got, want := tr.client(peer, &h), tr.client(peer, headWith(t, tt.header, tt.values)); got != want {
			t.Errorf("%s: got %v, want %v as over HTTP/1", tt.name, got, want)
		}
	}
}

func TestProxiesThatCannotBeMeantAreRefused(t *testing.T) {
	for _, s := range []string{"", "x", "10.0.0.0/33", "10.0.0.1/8", "::ffff:10.0.0.0/104", "fe80::1%eth0", "10.0.0.1:80"} {
		if got, err := ParseProxies([]string{s}); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
	got := mustProxies(t, "10.0.0.1", "fd00::1", "192.168.0.0/16")
	want := []netip.Prefix{
		netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("fd00::1/128"), netip.MustParsePrefix("192.168.0.0/16"),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// clientOfList is the rule for X-Forwarded-For in few words.
func clientOfList(tr *trust, peer netip.Addr, list string) netip.Addr {
	elements := slices.DeleteFunc(strings.Split(list, ","), func(s string) bool { return strings.Trim(s, " \t") == "" })
	answer := peer
	for _, e := range slices.Backward(elements) {
		e = strings.Trim(e, " \t")
		addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(e, "["), "]"))
		if strings.HasPrefix(e, "[") != strings.HasSuffix(e, "]") || strings.HasPrefix(e, "[") && addr.Is4() || err != nil {
			port, portErr := netip.ParseAddrPort(e)
			if portErr != nil {
				return peer
			}
			addr = port.Addr()
		}
		if addr.Zone() != "" {
			return peer
		}
		answer = addr.Unmap()
		if !tr.trusts(answer) {
			return answer
		}
	}
	return answer
}

// FuzzXForwardedFor compares with the rule in few words.
func FuzzXForwardedFor(f *testing.F) {
	for _, tt := range forwardedCases {
		f.Add(strings.Join(tt.values, ","))
	}
	f.Fuzz(func(t *testing.T, list string) {
		if strings.ContainsAny(list, "\r\n_") { // a hidden port is Forwarded's
			return
		}
		tr := trust{proxies: mustProxies(t, "10.0.0.0/8", "fd00::/8"), header: XForwardedFor}
		peer := netip.MustParseAddr("10.0.0.200")
		h := head{xForwardedFor: []byte(list)}
		got, want := tr.client(peer, &h), clientOfList(&tr, peer, list)
		if got != want && !strings.Contains(list, ":+") && !hasOddPort(list) {
			t.Errorf("%q: got %v, want %v", list, got, want)
		}
	})
}

// hasOddPort says whether a port has more digits than net/netip or this parser
// would take: they differ in leading zeros, and nobody sends those.
func hasOddPort(list string) bool {
	for e := range strings.SplitSeq(list, ",") {
		if i := strings.LastIndexByte(e, ':'); i >= 0 && strings.HasPrefix(e[i+1:], "0") {
			return true
		}
	}
	return false
}

// allOf gives all texts of up to n of some tokens.
func allOf(n int, tokens ...string) []string {
	all := []string{""}
	for from := 0; n > 0; n-- {
		to := len(all)
		for _, text := range all[from:to] {
			for _, token := range tokens {
				all = append(all, text+token)
			}
		}
		from = to
	}
	return all
}

// TestWhateverAClientWritesItsProxySaysWhoItIs tries all that is short, in front of
// what proxies write, quoted texts among it that the client has chosen, too.
func TestWhateverAClientWritesItsProxySaysWhoItIs(t *testing.T) {
	tr := trust{proxies: mustProxies(t, "10.0.0.0/8", "fd00::/8"), header: Forwarded}
	peer, client := netip.MustParseAddr("10.0.0.200"), netip.MustParseAddr("198.51.100.7")
	written := allOf(4, `"`, `\`, ",", ";", "=", "x", "for=203.0.113.1", " ") // the shortest are first
	check := func(text string, odd bool) {
		if got := tr.client(peer, &head{forwarded: []byte(text)}); got != client && (!odd || got != peer) {
			t.Fatalf("%q: got %v, want %v", text, got, client)
		}
	}
	for _, own := range written {
		for _, proxies := range []string{
			"for=198.51.100.7", `for="198.51.100.7:80" ; proto=http,for="[fd00::1]:_x"`, `by="[fd00::1]";For="[::ffff:198.51.100.7]", for=10.0.0.3;by=""`,
			`for=198.51.100.7;host="a.example:80";ext="x, for=203.0.113.1;", for=10.0.0.3;ext="\"\\"`,
		} {
			check(own+","+proxies, false)
			check(own+"\r\nForwarded: "+proxies, false)
		}
	}
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	for _, text := range written[:1+8+8*8] {
		odd := strings.HasPrefix(strings.TrimLeft(text, " "), ",") || strings.HasPrefix(strings.TrimLeft(text, " "), ";")
		quoted := `"` + escape.Replace(text) + `"`
		for _, own := range written[:1+8+8*8+8*8*8] {
			check(own+", for=198.51.100.7;host="+quoted, odd)
			check(own+",host="+quoted+`;for="198.51.100.7:80";ua=`+quoted+", for=10.0.0.3", odd)
		}
	}
}

// FuzzForwarded checks what must hold of any value: an address that a trusted
// proxy appends decides, whatever was there.
func FuzzForwarded(f *testing.F) {
	for _, tt := range forwardedCases {
		f.Add(strings.Join(tt.values, ","))
	}
	f.Fuzz(func(t *testing.T, value string) {
		if strings.ContainsAny(value, "\r\n") {
			return
		}
		tr := trust{proxies: mustProxies(t, "10.0.0.0/8", "fd00::/8"), header: Forwarded}
		peer, client := netip.MustParseAddr("10.0.0.200"), netip.MustParseAddr("198.51.100.7")
		if got := tr.client(peer, &head{forwarded: []byte(value)}); !got.IsValid() || got.Is4In6() || got.Zone() != "" {
			t.Errorf("%q: got %v", value, got)
		}
		next := value + "\r\nForwarded: for=198.51.100.7, for=10.0.0.3"
		if got := tr.client(peer, &head{forwarded: []byte(next)}); got != client {
			t.Errorf("%q: got %v, want %v", next, got, client)
		}
		for _, proxy := range []string{"for=198.51.100.7", `for="198.51.100.7:80";proto="https"`} {
			same := value + ", " + proxy + ", for=10.0.0.3"
			if got := tr.client(peer, &head{forwarded: []byte(same)}); got != client {
				t.Errorf("%q: got %v, want %v", same, got, client)
			}
		}
	})
}
