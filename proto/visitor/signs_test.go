package visitor

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/affleet/affleet/proto/link"
)

// what is a request as HTTP has it: lines of headers.
type what struct {
	headers      string
	head, secure bool
	addr         string
}

func labelsOf(t testing.TB, s *Sources, w what) (all []string) {
	t.Helper()
	var h Headers
	for line := range strings.Lines(w.headers) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if i := slices.IndexFunc(HeaderNames[:], func(known string) bool { return strings.EqualFold(known, name) }); i >= 0 {
			h[i] = []byte(value)
		}
	}
	var v Visitor
	addr, _ := netip.ParseAddr(w.addr)
	v.Reset(s, addr, &h)
	var labels link.Labels
	v.Label(&labels, w.head, w.secure)
	for _, p := range labels.Append(nil) {
		all = append(all, string(p.Name)+": "+string(p.Value))
	}
	return all
}

// Requests as browsers send them, taken down from what they document and send:
// over TLS, and without.
const (
	sends      = "\nAccept: text/html,*/*;q=0.8\nAccept-Language: de\n"
	fetches    = sends + "Sec-Fetch-Site: none\nSec-Fetch-Mode: navigate\n"
	hints      = fetches + "Sec-CH-UA: \"Chromium\";v=\"124\"\nSec-CH-UA-Mobile: ?0\n"
	webView    = "Mozilla/5.0 (Linux; Android 14; SM-S918B Build/UP1A; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/124.0.0.0 Mobile Safari/537.36"
	facebook   = webView + " [FB_IAB/FB4A;FBAV/460.0.0.0.1;]"
	instagram  = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 Instagram 330.0.0.1 (iPhone14,5; iOS 17_4)"
	tor        = "Mozilla/5.0 (Windows NT 10.0; rv:115.0) Gecko/20100101 Firefox/115.0"
	firefoxOld = "Mozilla/5.0 (Windows NT 6.1; rv:52.0) Gecko/20100101 Firefox/52.0"
	safariOld  = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/15.6 Safari/605.1.15"
	firefoxDro = "Mozilla/5.0 (Android 14; Mobile; rv:125.0) Gecko/125.0 Firefox/125.0"
	focusiOS   = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) FxiOS/125.0 Mobile/15E148 Safari/605.1.15"
	chromeiOS  = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/124.0.0.0 Mobile/15E148 Safari/604.1"
	duckDroid  = chromeAndroid + " Ddg/124"
	television = "Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/94.0.0.0 Safari/537.36 WebAppManager"
	electron   = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Slack/4.3 Chrome/124.0.0.0 Electron/30.0 Safari/537.36"
)

func TestHonestRequestsHaveNoLabel(t *testing.T) {
	s := open(t, Config{})
	for _, w := range []what{
		{headers: "User-Agent: " + chromeWindows + hints, secure: true},
		{headers: "User-Agent: " + chromeWindows + sends}, // over plain HTTP
		{headers: "User-Agent: " + edgeWindows + hints, secure: true},
		{headers: "User-Agent: " + operaWindows + hints, secure: true},
		{headers: "User-Agent: " + safariPhone + fetches, secure: true},
		{headers: "User-Agent: " + safariMac + fetches, secure: true},
		{headers: "User-Agent: " + safariPad + sends},
		{headers: "User-Agent: " + safariOld + sends, secure: true},
		{headers: "User-Agent: " + firefoxLinux + fetches, secure: true},
		{headers: "User-Agent: " + firefoxDro + fetches, secure: true},
		{headers: "User-Agent: " + firefoxOld + sends, secure: true},
		{headers: "User-Agent: " + tor + fetches, secure: true},
		{headers: "User-Agent: " + chromeAndroid + fetches, secure: true}, // a browser made of a web view
		{headers: "User-Agent: " + chromeTablet + fetches, secure: true},
		{headers: "User-Agent: " + samsungPhone + sends, secure: true},
		{headers: "User-Agent: " + duckDroid + sends, secure: true},
		{headers: "User-Agent: " + webView + "\nAccept: */*", secure: true},
		{headers: "User-Agent: " + facebook, secure: true},
		{headers: "User-Agent: " + instagram, secure: true},
		{headers: "User-Agent: " + focusiOS + sends, secure: true},
		{headers: "User-Agent: " + chromeiOS + sends, secure: true},
		{headers: "User-Agent: " + television, secure: true},
		{headers: "User-Agent: " + electron, secure: true},
		{headers: "User-Agent: " + chromeWindows + hints + "Sec-Purpose: other\nPurpose: x\nX-Moz: y", secure: true},
		{headers: "User-Agent: SomeApp/1.0 CFNetwork/1494.0.7 Darwin/23.4.0"},
	} {
		if got := labelsOf(t, s, w); got != nil {
			t.Errorf("%q: %q", w.headers, got)
		}
	}
}

func TestRequestsThatSayWhatTheyAreHaveThatLabel(t *testing.T) {
	s := open(t, Config{})
	crawlers, preview := "bot: crawler-user-agents "+BotsVersion, "preview: link-previews 2026.1"
	for _, c := range []struct {
		what
		want string
	}{
		{what{}, "no_ua: user-agent 1"},
		{what{headers: "User-Agent: "}, "no_ua: user-agent 1"},
		{what{headers: "User-Agent: " + googlebot}, crawlers},
		{what{headers: "User-Agent: curl/8.5.0"}, crawlers},
		{what{headers: "User-Agent: " + safariPhone + sends, head: true}, "head: method 1"},
		{what{headers: "User-Agent: " + chromeWindows + hints + "Sec-Purpose: prefetch;prerender", secure: true}, "prefetch: sec-purpose 1"},
		{what{headers: "User-Agent: " + chromeWindows + hints + "Sec-Purpose: Prefetch;anonymous-client-ip", secure: true}, "prefetch: sec-purpose 1"},
		{what{headers: "User-Agent: " + chromeWindows + sends + "Purpose: prefetch"}, "prefetch: purpose 1"},
		{what{headers: "User-Agent: " + firefoxLinux + sends + "X-Moz: prefetch"}, "prefetch: x-moz 1"},
		{what{headers: "User-Agent: " + safariMac + sends + "Purpose: preview"}, "preview: purpose 1"},
		{what{headers: "User-Agent: facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)"}, crawlers + " " + preview},
		{what{headers: "User-Agent: Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)"}, crawlers + " " + preview},
		{what{headers: "User-Agent: WhatsApp/2.23.20.0"}, crawlers + " " + preview},
		{what{headers: "User-Agent: Twitterbot/1.0"}, crawlers + " " + preview},
		{what{headers: "User-Agent: TelegramBot (like TwitterBot)"}, crawlers + " " + preview},
		{what{headers: "User-Agent: Mozilla/5.0 (compatible; Discordbot/2.0; +https://discordapp.com)"}, crawlers + " " + preview},
		{what{headers: "User-Agent: LinkedInBot/1.0 (compatible; Mozilla/5.0)"}, crawlers + " " + preview},
	} {
		if got := strings.Join(labelsOf(t, s, c.what), " "); got != c.want {
			t.Errorf("%q: %q, want %q", c.headers, got, c.want)
		}
	}
}

func TestClaimsOfBrowsersThatLackWhatTheySendAreOdd(t *testing.T) {
	s := open(t, Config{})
	for _, c := range []struct {
		what
		why string
	}{
		{what{headers: "User-Agent: " + chromeWindows}, "accept-language 1"},
		{what{headers: "User-Agent: " + chromeWindows + "\nAccept: */*"}, "accept-language 1"},
		{what{headers: "User-Agent: " + safariPhone + "\nAccept-Language: de"}, "accept 1"},
		{what{headers: "User-Agent: " + firefoxLinux + "\nAccept: */*"}, "accept-language 1"},
		{what{headers: "User-Agent: " + chromeWindows + sends, secure: true}, "sec-fetch 1"},
		{what{headers: "User-Agent: " + edgeWindows + sends, secure: true}, "sec-fetch 1"},
		{what{headers: "User-Agent: " + chromeAndroid + sends, secure: true}, "sec-fetch 1"},
		{what{headers: "User-Agent: " + firefoxLinux + sends, secure: true}, "sec-fetch 1"},
		{what{headers: "User-Agent: " + firefoxDro + sends, secure: true}, "sec-fetch 1"},
		{what{headers: "User-Agent: " + safariMac + sends, secure: true}, "sec-fetch 1"},
		{what{headers: "User-Agent: " + safariPad + sends, secure: true}, "sec-fetch 1"},
		{what{headers: "User-Agent: " + chromeWindows + fetches, secure: true}, "sec-ch-ua 1"},
		{what{headers: "User-Agent: " + operaWindows + fetches, secure: true}, "sec-ch-ua 1"},
	} {
		if got := labelsOf(t, s, c.what); len(got) != 1 || got[0] != "odd_headers: "+c.why {
			t.Errorf("%q: %q, want %q", c.headers, got, c.why)
		}
	}
}

func TestTheParsersVersionIsThatOfTheModule(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Replace(parserName, "go-useragent ", "github.com/medama-io/go-useragent ", 1); !strings.Contains(string(mod), want) {
		t.Errorf("go.mod has another version than %q", parserName)
	}
}

func TestDatacentersAreReadAgainAndAMalformedListIsRefusedWithItsLines(t *testing.T) {
	dir := t.TempDir()
	clouds, more := filepath.Join(dir, "clouds.txt"), filepath.Join(dir, "more.txt")
	writeFile(t, clouds, []byte("# example\n\n192.0.2.0/24 # a comment\n2001:db8::/32\n198.51.100.7\r\n"))
	writeFile(t, more, []byte("192.0.0.0/8\n192.0.2.0/24\n"))
	s := open(t, Config{Datacenters: []string{clouds, more}})
	list := func(addr string) string {
		name, _, _ := strings.Cut(string(s.Datacenter(netip.MustParseAddr(addr))), " ")
		return name
	}
	for addr, want := range map[string]string{
		"192.0.2.1": "clouds.txt", "::ffff:192.0.2.1": "clouds.txt", "192.1.2.3": "more.txt", "198.51.100.7": "clouds.txt", "198.51.100.8": "",
		"2001:db8:1::1": "clouds.txt", "2001:db9::1": "",
	} {
		if got := list(addr); got != want {
			t.Errorf("%s is in %q, want %q", addr, got, want)
		}
	}
	if s.Datacenter(netip.Addr{}) != nil {
		t.Error("no address is in a data centre")
	}
	if got := labelsOf(t, s, what{headers: "User-Agent: " + safariPhone + sends, addr: "192.0.2.9"}); len(got) != 1 || !strings.HasPrefix(got[0], "datacenter: clouds.txt ") {
		t.Errorf("%q", got)
	}
	before := string(s.Datacenter(netip.MustParseAddr("192.0.2.1")))
	writeFile(t, clouds, []byte("192.0.2.0/24\nnonsense\n\n10.0.0.1/8\n::ffff:1.2.3.4\n0.0.0.0/0\n"))
	errs := s.read()
	if len(errs) != 1 {
		t.Fatalf("%v", errs)
	}
	for _, want := range []string{"clouds.txt:2: ", "clouds.txt:4: ", "clouds.txt:5: ", "clouds.txt:6: ", "10.0.0.0/8"} {
		if !strings.Contains(errs[0].Error(), want) {
			t.Errorf("%q is not in\n%v", want, errs[0])
		}
	}
	if list("2001:db8::1") != "clouds.txt" || !s.Stats().Lists[2].Broken || s.Stats().Broken != 1 {
		t.Errorf("the old list is not in use: %+v", s.Stats())
	}
	writeFile(t, clouds, []byte("203.0.113.0/24\n"))
	if errs := s.read(); errs != nil || list("2001:db8::1") != "" || list("203.0.113.9") != "clouds.txt" || list("192.0.2.1") != "more.txt" {
		t.Errorf("%v, %q", errs, list("192.0.2.1"))
	}
	if after := string(s.Datacenter(netip.MustParseAddr("203.0.113.1"))); after == before || s.Stats().Lists[2].Name != after || s.Stats().Lists[2].Entries != 1 || s.Stats().Broken != 0 {
		t.Errorf("the list is called %q and was %q: %+v", after, before, s.Stats())
	}
}

func TestListsThatCannotBeUsedAreRefusedAtTheStart(t *testing.T) {
	dir := t.TempDir()
	for i, text := range []string{"", "# nothing\n", "x\n", strings.Repeat("y\n", 100)} {
		path := filepath.Join(dir, fmt.Sprint(i))
		writeFile(t, path, []byte(text))
		if _, err := Open(Config{Datacenters: []string{path}}); err == nil || !strings.Contains(err.Error(), path) || strings.Count(err.Error(), "\n") > maxProblems {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := Open(Config{Datacenters: []string{filepath.Join(dir, "none")}}); err == nil {
		t.Error("a missing file is accepted")
	}
	if _, err := Open(Config{Datacenters: make([]string, MaxDatacenters+1)}); err == nil {
		t.Error("too many lists are accepted")
	}
}

func TestAMountedListOfBotsIsNamedByItsFileAndHash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "our bots.txt")
	writeFile(t, path, []byte("^Evil/\n"))
	s := open(t, Config{Bots: path})
	if got := labelsOf(t, s, what{headers: "User-Agent: Evil/1"}); len(got) != 1 || !strings.HasPrefix(got[0], "bot: our_bots.txt ") || len(got[0]) != len("bot: our_bots.txt ")+16 {
		t.Errorf("%q", got)
	}
}

func TestLabellingAllocatesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clouds.txt")
	writeFile(t, path, []byte("192.0.2.0/24\n"))
	s := open(t, Config{Datacenters: []string{path}})
	h := Headers{UserAgent: []byte(chromeWindows), SecPurpose: []byte("prefetch"), AcceptLanguage: []byte("de")}
	var v Visitor
	var labels link.Labels
	if allocs := testing.AllocsPerRun(100, func() {
		v.Reset(s, netip.MustParseAddr("192.0.2.1"), &h)
		labels.Reset()
		v.Label(&labels, false, true)
	}); allocs != 0 || labels.Set() != link.Of(link.LabelDatacenter, link.LabelPrefetch, link.LabelOddHeaders) {
		t.Errorf("%v allocations, labels %b", allocs, labels.Set())
	}
}

func FuzzNetworks(f *testing.F) {
	f.Add([]byte("# x\n192.0.2.0/24\n2001:db8::/32 # y\n\n198.51.100.7\r\n"))
	f.Add([]byte("1.2.3.4/33\n::ffff:1.2.3.4/100\nfe80::1%eth0\n0.0.0.0/0\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := parseNetworks("list.txt", text)
		if err != nil {
			if !strings.Contains(err.Error(), "list.txt") {
				t.Fatalf("the file is not named: %v", err)
			}
			return
		}
		if len(n.prefixes) == 0 {
			t.Fatal("an empty list is accepted")
		}
		for _, p := range n.prefixes {
			if !p.IsValid() || p != p.Masked() || p.Bits() == 0 || p.Addr().Is4In6() {
				t.Fatalf("%v is accepted", p)
			}
		}
	})
}

func FuzzLabels(f *testing.F) {
	s := open(f, Config{})
	for _, agent := range []string{chromeWindows, edgeWindows, safariPhone, firefoxLinux, firefoxDro, googlebot, webView, ""} {
		f.Add([]byte(agent), []byte("de"), []byte("*/*"), []byte("navigate"), []byte("prefetch"), true, false)
	}
	f.Fuzz(func(t *testing.T, agent, languages, accept, mode, purpose []byte, secure, isHead bool) {
		h := Headers{UserAgent: agent, AcceptLanguage: languages, Accept: accept, SecFetchMode: mode, Purpose: purpose}
		var v Visitor
		v.Reset(s, netip.Addr{}, &h)
		var labels link.Labels
		v.Label(&labels, isHead, secure)
		for _, p := range labels.Append(nil) {
			if len(p.Value) == 0 {
				t.Fatalf("%s has no reason", p.Name)
			}
		}
		odd := labels.Has(link.LabelOddHeaders)
		if odd && (isHead || labels.Has(link.LabelBot) || labels.Has(link.LabelNoUserAgent) || !strings.HasPrefix(string(agent), "Mozilla/5.0 (")) {
			t.Fatalf("%q is odd", agent)
		}
		if odd && len(languages) > 0 && len(accept) > 0 && !secure {
			t.Fatalf("%q is odd over plain HTTP, and sends all", agent)
		}
		if labels.Has(link.LabelNoUserAgent) != (len(agent) == 0) || labels.Has(link.LabelHead) != isHead {
			t.Fatalf("%q: labels %b", agent, labels.Set())
		}
	})
}
