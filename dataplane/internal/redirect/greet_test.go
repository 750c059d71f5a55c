package redirect

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/affleet/affleet/dataplane/internal/click"
)

// proxyV2 is a header of version 2 as bytes.
func proxyV2(command, family byte, rest ...byte) string {
	b := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x20|command, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(rest)))
	return string(append(b, rest...))
}

// clickAddresses gives the addresses of the clicks so far.
func clickAddresses(t testing.TB, n *node) (addrs []string) {
	t.Helper()
	cursor := n.clicks.Log().Cursor(0)
	defer cursor.Close()
	var k click.Click
	for {
		ok, err := cursor.Next(&k)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return addrs
		}
		addr, _ := netip.AddrFromSlice(k.Address)
		addrs = append(addrs, addr.String())
	}
}

var (
	v1       = "PROXY TCP4 198.51.100.7 192.0.2.1 4711 80\r\n"
	v1IPv6   = "PROXY TCP6 2001:db8::7 2001:db8::1 4711 80\r\n"
	v2       = proxyV2(1, 0x11, 198, 51, 100, 8, 192, 0, 2, 1, 1, 2, 0, 80)
	v2TLV    = proxyV2(1, 0x11, 198, 51, 100, 9, 192, 0, 2, 1, 1, 2, 0, 80, 4, 0, 3, 'a', 'b', 'c')
	v2IPv6   = proxyV2(1, 0x21, append(append(netip.MustParseAddr("2001:db8::8").AsSlice(), make([]byte, 16)...), 1, 2, 0, 80)...)
	v2Mapped = proxyV2(1, 0x21, append(append([]byte{10: 0xff, 11: 0xff, 12: 198, 13: 51, 14: 100, 15: 10}, make([]byte, 16)...), 1, 2, 0, 80)...)
	v2Local  = proxyV2(0, 0x00)
)

func behindProxy(c *Config) {
	c.ProxyProtocol = true
	c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
}

func TestProxyProtocolNamesTheClient(t *testing.T) {
	n := startNode(t, time.Second, behindProxy)
	var want []string
	for _, tt := range []struct{ name, header, addr string }{
		{"v1", v1, "198.51.100.7"},
		{"v1, IPv6", v1IPv6, "2001:db8::7"},
		{"v1, unknown", "PROXY UNKNOWN\r\n", "127.0.0.1"},
		{"v2", v2, "198.51.100.8"},
		{"v2 with more", v2TLV, "198.51.100.9"},
		{"v2, IPv6", v2IPv6, "2001:db8::8"},
		{"v2, IPv4 as IPv6", v2Mapped, "198.51.100.10"},
		{"v2, the proxy itself", v2Local, "127.0.0.1"},
	} {
		for _, pieces := range [][]string{
			{tt.header + getA + getA + getLast[:9], getLast[9:]},
			{tt.header, getA, getA + getLast},
		} {
			c := n.dial(t)
			c.send(pieces[0])
			for _, p := range pieces[1:] {
				if strings.HasPrefix(p, getA) { // the header came alone
					time.Sleep(time.Millisecond)
				}
				c.send(p)
			}
			for range 3 {
				c.expect(302)
				want = append(want, tt.addr)
			}
			c.expectEnd()
		}
	}
	if got := clickAddresses(t, n); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("got clicks from\n%v, want\n%v", got, want)
	}
	if st := n.Stats(); st.ProxyErrors != 0 {
		t.Errorf("got %+v", st)
	}
}

func TestTrustedProxyWithoutAHeaderIsRefused(t *testing.T) {
	n := startNode(t, time.Second, behindProxy, func(c *Config) { c.HeadTimeout = 100 * time.Millisecond })
	for i, first := range []string{
		getA, "PROXY TCP4 198.51.100.7\r\n" + getA, "PROXY TCP4 x y 1 2\r\n", "PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n",
		proxyV2(1, 0x11, 1, 2, 3) + getA, "\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x00" + getA, "PRO", "",
	} {
		c := n.dial(t)
		c.send(first)
		if b, _ := io.ReadAll(c.r); len(b) > 0 {
			t.Errorf("%q: got %q", first, b)
		}
		if st := n.Stats(); st.ProxyErrors != uint64(i+1) {
			t.Errorf("%q: got %d errors, want %d", first, st.ProxyErrors, i+1)
		}
	}
	if got := clickAddresses(t, n); len(got) > 0 {
		t.Errorf("got clicks from %v", got)
	}
}

func TestAProxyHeaderThatIsCutIsReadInVersion2AndRefusedInVersion1(t *testing.T) {
	n := startNode(t, time.Second, behindProxy)
	for cut := 5; cut < len(v1); cut += 9 {
		c := n.dial(t)
		c.send(v1[:cut])
		c.expectEnd() // at once, whatever would follow
	}
	refused := n.Stats().ProxyErrors
	for cut := 1; cut < len(v2); cut += 9 {
		c := n.dial(t)
		c.send(v2[:cut])
		time.Sleep(20 * time.Millisecond) // until that is read
		c.send(v2[cut:] + getLast)
		c.expect(302)
		c.expectEnd()
	}
	if st := n.Stats(); refused != 5 || st.ProxyErrors != refused || st.HeadTimeouts != 0 {
		t.Errorf("%d were refused; %+v", refused, st)
	}
}

func TestProxyProtocolOfAStrangerIsABadRequest(t *testing.T) {
	n := startNode(t, time.Second, behindProxy, func(c *Config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	})
	c := n.dial(t)
	c.send(v1 + getA)
	c.expect(400)
	c.expectEnd()
	c = n.dial(t)
	c.send(getA)
	c.expect(302)
	if got := clickAddresses(t, n); strings.Join(got, " ") != "127.0.0.1" {
		t.Errorf("got clicks from %v", got)
	}
}

func TestLimitPerAddressIsTheClientsBehindAProxy(t *testing.T) {
	n := startNode(t, time.Second, behindProxy, func(c *Config) { c.MaxConnsPerAddr = 2 })
	for i := range 6 { // three clients, two connections each
		c := n.dial(t)
		c.send(strings.Replace(v1, "198.51.100.7", "198.51.100."+string(rune('1'+i/2)), 1) + getA)
		c.expect(302)
	}
	c := n.dial(t)
	c.send(strings.Replace(v1, "198.51.100.7", "198.51.100.1", 1))
	c.expectEnd()
	n.awaitOpen(6)
	if st := n.Stats(); st.OverAddrLimit != 1 {
		t.Errorf("got %+v", st)
	}
}

func TestLimitPerAddressIsThatOfASubnetOverIPv6(t *testing.T) {
	n := startNode(t, time.Second, behindProxy, func(c *Config) { c.MaxConnsPerAddr = 2 })
	for _, tt := range []struct {
		addr   string
		served bool
	}{
		{"2001:db8:1:2::1", true},
		{"2001:db8:1:2:ffff::2", true},
		{"2001:db8:1:2:3:4:5:6", false},
		{"2001:db8:1:3::1", true},
	} {
		c := n.dial(t)
		c.send(strings.Replace(v1IPv6, "2001:db8::7", tt.addr, 1))
		if !tt.served {
			c.expectEnd()
			continue
		}
		c.send(getA)
		c.expect(302)
	}
	n.awaitOpen(3)
	if st := n.Stats(); st.OverAddrLimit != 1 {
		t.Errorf("got %+v", st)
	}
}

func TestAClientIsAnIPv4AddressOrASubnetOfIPv6(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7": "192.0.2.7/32", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "fe80::1:2%eth0": "fe80::/64", "::1": "::/64",
	} {
		if got := clientOf(netip.MustParseAddr(addr)); got.String() != want {
			t.Errorf("%s is of %v, want %s", addr, got, want)
		}
	}
	if got := clientOf(netip.Addr{}); got.IsValid() {
		t.Errorf("nobody is of %v", got)
	}
}

func TestForwardedHeaderIsBelievedOfTrustedPeersOnly(t *testing.T) {
	for _, trusted := range []string{"127.0.0.0/8", "10.0.0.0/8"} {
		n := startNode(t, time.Second, func(c *Config) {
			c.ForwardedHeader, c.MaxConnsPerAddr = XForwardedFor, 1
			c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix(trusted)}
		})
		c := n.dial(t)
		c.send("GET /a HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 203.0.113.1\r\nX: y\r\nX-Forwarded-For: 198.51.100.7\r\n\r\n" + getA)
		c.expect(302)
		c.expect(302)
		want := "198.51.100.7 127.0.0.1"
		if trusted == "10.0.0.0/8" {
			want = "127.0.0.1 127.0.0.1"
		}
		if got := strings.Join(clickAddresses(t, n), " "); got != want {
			t.Errorf("with %s trusted: got clicks from %s, want %s", trusted, got, want)
		}
		second := n.dial(t)
		if trusted == "10.0.0.0/8" {
			second.expectEnd()
			continue
		}
		second.send(getA) // a proxy's connections are not counted as one client's
		second.expect(302)
	}
}

func TestForwardedHeaderBehindAProxyBehindAProxy(t *testing.T) {
	n := startNode(t, time.Second, behindProxy, func(c *Config) {
		c.ForwardedHeader = Forwarded
		c.TrustedProxies = mustProxies(t, "127.0.0.0/8", "198.51.100.7")
	})
	const request = "GET /a HTTP/1.1\r\nHost: h\r\nForwarded: for=203.0.113.1\r\nConnection: close\r\n\r\n"
	for _, header := range []string{v1, v2, v2Local} {
		c := n.dial(t)
		c.send(header + request)
		c.expect(302)
		c.expectEnd()
	}
	if got, want := strings.Join(clickAddresses(t, n), " "), "203.0.113.1 198.51.100.8 203.0.113.1"; got != want {
		t.Errorf("got clicks from %s, want %s", got, want)
	}
}

func TestRequestsBehindAProxyAllocateNothing(t *testing.T) {
	n := benchNode(t, behindProxy, func(c *Config) { c.ForwardedHeader = XForwardedFor })
	request := strings.TrimSuffix(browser, "\r\n") + "X-Forwarded-For: 203.0.113.1, 198.51.100.7\r\n\r\n"
	allocateNothing(t, "behind a proxy", 1, roundTrips(t, n, request, v2Local))
}

// FuzzProxyHeader checks that a header is read or refused, whatever it is, and
// that what is behind it stays.
func FuzzProxyHeader(f *testing.F) {
	for _, s := range []string{v1, v1IPv6, v2, v2TLV, v2IPv6, v2Mapped, v2Local, "PROXY UNKNOWN x y\r\n", getA} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, header []byte) {
		in := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(header), strings.NewReader(getA)), MinHead)
		addr, err := proxyAddr(in)
		if err != nil {
			return
		}
		if addr.Is4In6() || addr.Zone() != "" {
			t.Errorf("got %v", addr)
		}
		rest, err := io.ReadAll(in)
		if err != nil || !bytes.HasSuffix(rest, []byte(getA)) && len(rest) >= len(getA) {
			t.Errorf("%q: %q is left, %v", header, rest, err)
		}
	})
}
