package visitor

import (
	"sync"

	useragent "github.com/medama-io/go-useragent"
	"github.com/medama-io/go-useragent/agents"

	"github.com/affleet/affleet/proto/link"
)

// maxAgent is how much of a user agent is looked at, in bytes. What browsers
// send is a third of it.
const maxAgent = 1 << 10

// The words for what the parser knows.
var (
	devices = map[agents.Device]string{
		agents.DeviceDesktop: "desktop", agents.DeviceMobile: "mobile", agents.DeviceTablet: "tablet",
		agents.DeviceTV: "tv", agents.DeviceBot: deviceBot,
	}
	systems = map[agents.OS]string{
		agents.OSAndroid: "android", agents.OSChromeOS: "chromeos", agents.OSIOS: "ios", agents.OSLinux: "linux",
		agents.OSOpenBSD: "openbsd", agents.OSMacOS: "macos", agents.OSWindows: "windows",
	}
	browsers = map[agents.Browser]string{
		agents.BrowserAndroid: "android", agents.BrowserChrome: "chrome", agents.BrowserEdge: "edge",
		agents.BrowserFirefox: "firefox", agents.BrowserIE: "ie", agents.BrowserOpera: "opera",
		agents.BrowserOperaMini: "opera-mini", agents.BrowserSafari: "safari", agents.BrowserVivaldi: "vivaldi",
		agents.BrowserSamsung: "samsung", agents.BrowserFalkon: "falkon", agents.BrowserNintendo: "nintendo",
		agents.BrowserYandex: "yandex",
	}
)

const deviceBot = "bot"

var newParser = sync.OnceValue(useragent.NewParser)

// parseAgent is the one place that knows the parser.
func parseAgent(agent string) link.Agent {
	p := newParser().Parse(agent)
	return link.Agent{Device: devices[p.Device()], OS: systems[p.OS()], Browser: browsers[p.Browser()]}
}

// agentSlots is how many user agents are remembered. Each takes at most 1.2 kB,
// and 300 bytes as a rule.
const agentSlots = 1 << 13

// userAgent is what is known of a user agent.
type userAgent struct {
	link.Agent
	botList string // which list says that it is a bot, with its version; empty if it is none
	preview string // likewise, that it fetches previews of links
	claim   claim
}

// agentCache belongs to one list of bots.
type agentCache struct {
	bots  *bots
	cache *cache[userAgent]
	parse func(string) userAgent // made once: a method value is an allocation
}

func newAgentCache(b *bots) *agentCache {
	c := &agentCache{bots: b, cache: newCache[userAgent](agentSlots)}
	c.parse = func(agent string) userAgent {
		a := userAgent{Agent: parseAgent(agent), preview: previewer(agent), claim: claimOf(agent)}
		switch {
		case c.bots.match(agent):
			a.botList = b.name
		case a.Device == deviceBot:
			a.botList = parserName
		}
		if a.Bot = a.botList != ""; a.Bot && a.Device == "" {
			a.Device = deviceBot
		}
		return a
	}
	return c
}

// parserName is the parser, which knows bots too, with its version.
const parserName = "go-useragent v1.1.0"

// get gives what a User-Agent header says.
func (c *agentCache) get(agent []byte) *userAgent {
	if len(agent) == 0 {
		return &noAgent
	}
	return c.cache.get(agent[:min(len(agent), maxAgent)], c.parse)
}

var noAgent userAgent

// Hints are the client hints of a request, as it sent them; nil where it did
// not.
type Hints struct {
	Brands   []byte // Sec-CH-UA
	Mobile   []byte // Sec-CH-UA-Mobile
	Platform []byte // Sec-CH-UA-Platform
}

// apply puts what the hints say over what the user agent says. A bot stays one,
// whatever its hints.
func (h *Hints) apply(a *link.Agent) {
	if os := platforms[string(unquote(h.Platform))]; os != "" {
		a.OS = os
	}
	switch string(h.Mobile) {
	case "?1":
		if a.Device != "tablet" {
			a.Device = "mobile"
		}
	case "?0":
		switch {
		case a.Device == "tv" || a.Device == deviceBot:
		case a.OS == "android" || a.OS == "ios":
			a.Device = "tablet"
		case a.OS != "":
			a.Device = "desktop"
		}
	}
	if b := brand(h.Brands); b != "" {
		a.Browser = b
	}
}

// platforms are the values of Sec-CH-UA-Platform.
var platforms = map[string]string{
	"Android": "android", "Chrome OS": "chromeos", "Chromium OS": "chromeos", "iOS": "ios", "Linux": "linux",
	"macOS": "macos", "Windows": "windows",
}

// brands are the names in Sec-CH-UA. The others, some of which are invented so
// that nobody relies on the list, say nothing.
var brands = map[string]string{
	"Google Chrome": "chrome", "Microsoft Edge": "edge", "Opera": "opera", "Opera GX": "opera", "Opera Mini": "opera-mini",
	"Samsung Internet": "samsung", "Vivaldi": "vivaldi", "YaBrowser": "yandex", "Yandex": "yandex", "Android WebView": "android",
}

// brand finds the browser in a list such as
// "Chromium";v="124", "Google Chrome";v="124", "Not-A.Brand";v="99".
func brand(list []byte) string {
	for i := 0; i < len(list); i++ {
		if list[i] != '"' {
			continue
		}
		begin := i + 1
		for i++; i < len(list) && list[i] != '"'; i++ {
			if list[i] == '\\' {
				i++
			}
		}
		if b := brands[string(list[begin:min(i, len(list))])]; b != "" {
			return b
		}
	}
	return ""
}

func unquote(b []byte) []byte {
	if len(b) >= 2 && b[0] == '"' && b[len(b)-1] == '"' {
		return b[1 : len(b)-1]
	}
	return nil
}

// IsPreview says whether a request only prepares for a click that may never
// come: whether one of the headers Sec-Purpose, Purpose and X-Moz says so.
func IsPreview(secPurpose, purpose, xMoz []byte) bool {
	return contains(secPurpose, "prefetch") || contains(secPurpose, "prerender") ||
		contains(purpose, "prefetch") || contains(purpose, "preview") || contains(xMoz, "prefetch")
}

// contains says whether a word stands in b, in any case.
func contains(b []byte, word string) bool {
	for i := 0; i+len(word) <= len(b); i++ {
		if equalFold(b[i:i+len(word)], word) {
			return true
		}
	}
	return false
}

// equalFold compares with a word in lower case.
func equalFold(b []byte, word string) bool {
	if len(b) != len(word) {
		return false
	}
	for i, c := range b {
		if lower(c) != word[i] {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}
