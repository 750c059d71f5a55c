package visitor

import (
	"strconv"
	"strings"
)

// claim is the browser that a user agent claims to be, of those whose habits
// are known. It is made so that an honest client is never taken for one that
// has other habits: the user agent must have the very form that the browser
// gives it, so that web views, apps, televisions and browsers that are built on
// another one, all of which say more, claim nothing.
type claim struct {
	browser browser
	desktop bool
	major   int // version
}

type browser uint8

const (
	noBrowser browser = iota
	chrome            // and Edge and Opera, which are as it
	firefox
	safari
)

// claimOf reads a user agent.
func claimOf(agent string) (c claim) {
	rest, ok := strings.CutPrefix(agent, "Mozilla/5.0 (")
	if !ok {
		return c
	}
	platform, rest, ok := strings.Cut(rest, ") ")
	if !ok || !isPlatform(platform) {
		return c
	}
	c.desktop = !strings.Contains(platform, "Android") && !strings.HasPrefix(platform, "iP")
	if after, ok := strings.CutPrefix(rest, "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/"); ok {
		return c.asChrome(after)
	}
	if after, ok := strings.CutPrefix(rest, "Gecko/"); ok {
		return c.asFirefox(platform, after)
	}
	if after, ok := strings.CutPrefix(rest, "AppleWebKit/605.1.15 (KHTML, like Gecko) Version/"); ok {
		return c.asSafari(platform, after)
	}
	return c
}

// isPlatform says whether a browser on a computer, telephone or tablet says so
// of what it runs on.
func isPlatform(platform string) bool {
	for _, known := range []string{"Windows NT ", "Macintosh; ", "X11; Linux ", "X11; Ubuntu; Linux ", "X11; CrOS ", "Linux; Android ", "Android ", "iPhone; ", "iPad; "} {
		if strings.HasPrefix(platform, known) {
			for _, other := range []string{"wv", "TV", "compatible", "Tizen", "Web0S", "CrKey", "VR", "Quest", "AFT", "Build/"} {
				if strings.Contains(platform, other) {
					return false
				}
			}
			return true
		}
	}
	return false
}

// asChrome reads what follows "Chrome/": "124.0.0.0 Mobile Safari/537.36", with
// Edge or Opera behind it.
func (c claim) asChrome(rest string) claim {
	major, rest := version(rest)
	rest = strings.TrimPrefix(rest, " Mobile")
	rest, ok := strings.CutPrefix(rest, " Safari/537.36")
	for _, of := range []string{" Edg/", " EdgA/", " OPR/"} {
		if after, is := strings.CutPrefix(rest, of); is {
			_, rest = version(after)
		}
	}
	if !ok || rest != "" || major == 0 {
		return claim{}
	}
	c.browser, c.major = chrome, major
	return c
}

// asFirefox reads what follows "Gecko/": "20100101 Firefox/125.0".
func (c claim) asFirefox(platform, rest string) claim {
	_, rest = version(rest)
	rest, ok := strings.CutPrefix(rest, " Firefox/")
	major, rest := version(rest)
	if !ok || rest != "" || major == 0 || !strings.Contains(platform, "; rv:") {
		return claim{}
	}
	c.browser, c.major = firefox, major
	return c
}

// asSafari reads what follows "Version/": "17.4 Mobile/15E148 Safari/604.1".
func (c claim) asSafari(platform, rest string) claim {
	major, rest := version(rest)
	rest = strings.TrimPrefix(rest, " Mobile/15E148")
	rest, ok := strings.CutPrefix(rest, " Safari/")
	_, rest = version(rest)
	if !ok || rest != "" || major == 0 || !strings.HasPrefix(platform, "Macintosh; ") && !strings.HasPrefix(platform, "iP") {
		return claim{}
	}
	c.browser, c.major = safari, major
	return c
}

// version cuts a version off the start of s, and gives its first number.
func version(s string) (major int, rest string) {
	end := len(s) - len(strings.TrimLeft(s, "0123456789."))
	first, _, _ := strings.Cut(s[:end], ".")
	if len(first) > 4 {
		return 0, s[end:] // Gecko's 20100101 among them
	}
	major, _ = strconv.Atoi(first)
	return major, s[end:]
}
