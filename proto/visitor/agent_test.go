package visitor

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/affleet/affleet/proto/link"
)

const (
	chromeWindows = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36"
	edgeWindows   = chromeWindows + " Edg/124.0.0.0"
	safariPhone   = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Mobile/15E148 Safari/604.1"
	safariMac     = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Safari/605.1.15"
	safariPad     = "Mozilla/5.0 (iPad; CPU OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Mobile/15E148 Safari/604.1"
	chromeAndroid = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Mobile Safari/537.36"
	chromeTablet  = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36"
	firefoxLinux  = "Mozilla/5.0 (X11; Linux x86_64; rv:125.0) Gecko/20100101 Firefox/125.0"
	samsungPhone  = "Mozilla/5.0 (Linux; Android 13; SAMSUNG SM-S918B) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/24.0 Chrome/117.0.0.0 Mobile Safari/537.36"
	googlebot     = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
	operaWindows  = chromeWindows + " OPR/109.0.0.0"
)

func agentOf(device, os, browser string, bot bool) link.Agent {
	return link.Agent{Device: device, OS: os, Browser: browser, Bot: bot}
}

func TestUserAgentsOfCommonBrowsers(t *testing.T) {
	s := open(t, Config{})
	for agent, want := range map[string]link.Agent{
		"":                   {},
		"Foo/1.0":            {},
		chromeWindows:        agentOf("desktop", "windows", "chrome", false),
		edgeWindows:          agentOf("desktop", "windows", "edge", false),
		operaWindows:         agentOf("desktop", "windows", "opera", false),
		safariPhone:          agentOf("mobile", "ios", "safari", false),
		safariMac:            agentOf("desktop", "macos", "safari", false),
		safariPad:            agentOf("tablet", "ios", "safari", false),
		chromeAndroid:        agentOf("mobile", "android", "chrome", false),
		firefoxLinux:         agentOf("desktop", "linux", "firefox", false),
		samsungPhone:         agentOf("mobile", "android", "samsung", false),
		googlebot:            agentOf("bot", "", "", true),
		"curl/8.5.0":         agentOf("bot", "", "", true),
		"Go-http-client/1.1": agentOf("bot", "", "", true),
	} {
		for range 2 {
			if got := s.Agent([]byte(agent), &Hints{}); got != want {
				t.Errorf("%q is %+v, want %+v", agent, got, want)
			}
		}
	}
}

func TestClientHintsWinOverTheUserAgent(t *testing.T) {
	s := open(t, Config{})
	for _, test := range []struct {
		agent, brands, mobile, platform string
		want                            link.Agent
	}{
		{chromeWindows, `"Chromium";v="124", "Vivaldi";v="6.7", "Not-A.Brand";v="99"`, "?0", `"Linux"`, agentOf("desktop", "linux", "vivaldi", false)},
		{chromeAndroid, `"Not \"A;Brand";v="8", "Google Chrome";v="124"`, "?1", `"Android"`, agentOf("mobile", "android", "chrome", false)},
		{chromeTablet, "", "?0", `"Android"`, agentOf("tablet", "android", "chrome", false)},
		{chromeWindows, `"Microsoft Edge";v="1"`, "", "", agentOf("desktop", "windows", "edge", false)},
		{"", `"Google Chrome";v="124"`, "?1", `"Android"`, agentOf("mobile", "android", "chrome", false)},
		{googlebot, `"Google Chrome";v="124"`, "?0", `"Linux"`, agentOf("bot", "linux", "chrome", true)},
		{firefoxLinux, `"`, "?2", `Windows`, agentOf("desktop", "linux", "firefox", false)},
		{firefoxLinux, `"\`, "x", `"`, agentOf("desktop", "linux", "firefox", false)},
	} {
		got := s.Agent([]byte(test.agent), &Hints{[]byte(test.brands), []byte(test.mobile), []byte(test.platform)})
		if got != test.want {
			t.Errorf("%+v is %+v", test, got)
		}
	}
}

// TestEveryKnownBotIsFound reads the user agents that the list gives with its
// patterns.
func TestEveryKnownBotIsFound(t *testing.T) {
	f, err := os.Open("testdata/bots.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, n := loadBuiltinBots(), 0
	for lines := bufio.NewScanner(f); lines.Scan(); n++ {
		if !b.match(lines.Text()) {
			t.Errorf("not a bot: %s", lines.Text())
		}
	}
	if n < 2000 {
		t.Errorf("only %d user agents were read", n)
	}
	for _, agent := range []string{chromeWindows, edgeWindows, safariPhone, safariMac, safariPad, chromeAndroid, chromeTablet, firefoxLinux, samsungPhone, operaWindows, ""} {
		if b.match(agent) {
			t.Errorf("a bot: %s", agent)
		}
	}
}

// TestBotsMatchAsTheirPatternsDo compares with all patterns one by one.
func TestBotsMatchAsTheirPatternsDo(t *testing.T) {
	text := "Foo(bot)?\n[cC]urebot\n^BW/\n(?i:mixed)\nab|cd|e+fgh\nx\\d+y\n^q\n(abc|abd)z\nSpider[\\s\\S]*spider\\.com\nend$\nab.c\n"
	b, err := parseBots("x", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var all []*regexp.Regexp
	for pattern := range strings.Lines(text) {
		all = append(all, regexp.MustCompile(strings.TrimSuffix(pattern, "\n")))
	}
	pieces := []string{"Foo", "bot", "c", "C", "urebot", "BW/", "mIxEd", "a", "b", "cd", "ee", "fgh", "x", "1", "22", "y", "q", "z", "Spider", " ", "spider.com", "end", "abd", "\xff"}
	seed := uint64(1)
	for range 200_000 {
		var agent string
		for range seed >> 60 & 7 {
			seed = seed*6364136223846793005 + 1442695040888963407
			agent += pieces[seed>>33%uint64(len(pieces))]
		}
		seed = seed*6364136223846793005 + 1442695040888963407
		want := false
		for _, re := range all {
			want = want || re.MatchString(agent)
		}
		if got := b.match(agent); got != want {
			t.Fatalf("%q: %v, want %v", agent, got, want)
		}
	}
}

func TestAMalformedListOfBotsIsRefusedWithItsLinesAndTheOldOneStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bots.txt")
	writeFile(t, path, []byte("# mine\n\nEvil(One|Two)\r\n"))
	s := open(t, Config{Bots: path})
	evil := func() bool { return s.Agent([]byte("EvilTwo/1"), &Hints{}).Bot }
	if !evil() || s.Agent([]byte(googlebot+"x"), &Hints{}).Device != "bot" || s.Stats().BotPatterns != 1 {
		t.Fatalf("the list is not in use: %+v", s.Stats())
	}
	for text, want := range map[string]string{
		"ok\n(\n":                           `bots.txt:2: missing closing ): "("`,
		"a[\n\nb**\n":                       `bots.txt:3: invalid nested repetition operator: "**"`,
		"a\n.*\n":                           `bots.txt:2: ".*" matches every user agent`,
		"a\nb|\n":                           `bots.txt:2: "b|" matches every user agent`,
		"# nothing\n":                       "bots.txt: has no pattern",
		"":                                  "bots.txt: has no pattern",
		"a{2000}\n":                         "bots.txt:1: invalid repeat count",
		strings.Repeat("x", maxBotsBytes+1): "at most",
	} {
		writeFile(t, path, []byte(text))
		errs := s.read()
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), want) {
			t.Errorf("%.40q: %v, want %s", text, errs, want)
		}
		if !evil() || s.Stats().Broken != 1 {
			t.Errorf("%.40q: the old list is not in use", text)
		}
	}
	writeFile(t, path, []byte("Good\n"))
	if errs := s.read(); errs != nil || evil() || s.Stats().Broken != 0 {
		t.Errorf("the new list is not in use: %v", errs)
	}
	if _, err := Open(Config{Bots: filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("a missing list was accepted")
	}
}

func TestPreviewsAreKnownByTheirHeaders(t *testing.T) {
	for _, test := range []struct {
		secPurpose, purpose, xMoz string
		want                      bool
	}{
		{"", "", "", false},
		{"prefetch;prerender", "", "", true},
		{"Prefetch", "", "", true},
		{"", "preview", "", true},
		{"", "", "prefetch", true},
		{"pre", "view", "moz", false},
	} {
		if got := IsPreview([]byte(test.secPurpose), []byte(test.purpose), []byte(test.xMoz)); got != test.want {
			t.Errorf("%+v", test)
		}
	}
}

func TestTheCacheStaysBoundedAndRightUnderAFloodOfAgents(t *testing.T) {
	s := open(t, Config{})
	for i := range 4 * agentSlots {
		agent := fmt.Sprintf("%s %d", chromeWindows, i)
		if i%3 == 0 {
			agent = fmt.Sprintf("Googlebot/%d", i)
		}
		if got := s.Agent([]byte(agent), &Hints{}); got.Bot != (i%3 == 0) {
			t.Fatalf("%q is %+v", agent, got)
		}
	}
	full := 0
	for i := range s.agents.Load().cache.slots {
		if s.agents.Load().cache.slots[i].Load() != nil {
			full++
		}
	}
	if full < agentSlots*9/10 {
		t.Errorf("only %d of %d places are used", full, agentSlots)
	}
}

func TestLanguages(t *testing.T) {
	s := open(t, Config{})
	for header, want := range map[string]string{
		"":                              "",
		"de-AT,de;q=0.9,en;q=0.8":       "de-at de en",
		"en;q=0.5, fr , de ;q=0.75":     "fr de en",
		"*, en;q=0, fr;q=2, it;q=x, es": "es",
		"en,EN;q=0.9":                   "en",
		"en;q=0.1234,fr;q=1.0,de;q=1.":  "fr de",
		";;,,=,q=1, 1de, a b":           "",
		"zh-Hant-TW;Q=0.001":            "zh-hant-tw",
		"x\xff,de\r\n,de":               "de",
	} {
		got := s.Languages([]byte(header))
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %q", header, got, want)
		}
		if first, _, _ := strings.Cut(want, " "); Languages(got).First() != first {
			t.Errorf("%q: first %q", header, Languages(got).First())
		}
	}
	if got := s.Languages([]byte(strings.Repeat("en,", 1000) + "de")); strings.Join(got, " ") != "en" {
		t.Errorf("a long header: %q", got)
	}
}

func TestReferrerDomains(t *testing.T) {
	s := open(t, Config{})
	for referrer, want := range map[string]string{
		"": "", "about:blank": "", "https://": "", "/path": "",
		"https://Example.COM/a/b?c":           "example.com",
		"http://example.com:8080":             "example.com",
		"https://user:pw@example.com./":       "example.com",
		"https://example.com?x=https://b/":    "example.com",
		"https://example.com#@evil.com":       "example.com",
		"https://[2001:db8::1]:443/":          "2001:db8::1",
		"https://[2001":                       "",
		"android-app://com.example.app/":      "com.example.app",
		"https://" + strings.Repeat("a", 400): "",
	} {
		if got := s.ReferrerDomain([]byte(referrer)); got != want {
			t.Errorf("%q: %q, want %q", referrer, got, want)
		}
	}
}

func TestAClickIDIsNewForEachRequestAndTheSameWithinIt(t *testing.T) {
	s := open(t, Config{})
	var v Visitor
	var headers Headers
	seen := map[string]bool{}
	for range 10_000 {
		v.Reset(s, netip.Addr{}, &headers)
		if v.ClickID() != nil {
			t.Fatal("an id that nobody asked for")
		}
		id := string(v.AppendClickID(nil))
		if len(id) != ClickIDLen || seen[id] || string(v.AppendClickID([]byte("x"))) != "x"+id || string(v.ClickID()) != id {
			t.Fatalf("id %q", id)
		}
		seen[id] = true
	}
}

func TestAVisitorIsAnotherAfterReset(t *testing.T) {
	cities, _ := testDatabases(t)
	s := open(t, Config{Geo: []string{cities}})
	var v Visitor
	v.Reset(s, netip.MustParseAddr("192.0.2.1"), &Headers{UserAgent: []byte(safariPhone), Referrer: []byte("https://a.com/"), AcceptLanguage: []byte("de"), Purpose: []byte("prefetch")})
	if v.Place().Country != "DE" || v.Agent().OS != "ios" || v.ReferrerDomain() != "a.com" || v.Languages()[0] != "de" || !v.IsPreview() {
		t.Errorf("%+v", v)
	}
	v.Reset(s, netip.MustParseAddr("192.0.2.1"), &Headers{GeoCountry: []byte("US"), UserAgent: []byte(chromeWindows)})
	if v.Place().Country != "US" || v.Agent().OS != "windows" || v.ReferrerDomain() != "" || len(v.Languages()) != 0 || v.IsPreview() {
		t.Errorf("%+v", v)
	}
}
