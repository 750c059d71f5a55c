package traffic

import (
	"fmt"
	"math/rand/v2"
)

// Browsers' shares are StatCounter's of 2025, rounded: of phones that are no
// iPhones 85 % Chrome, 8 % Samsung's browser; of iPhones 90 % Safari; of desktops
// 66 % Chrome, 13 % Edge, 9 % Safari, 7 % Firefox. What apps show pages in is
// assumed to be a tenth, and most of it where social networks refer.

// newest is the major version of Chrome at the time; others are counted from it.
const newest = 145

// age is how many versions behind the newest a browser is: browsers update
// themselves, so that two thirds have the newest or the one before (StatCounter,
// browser versions), and the rest is a long tail.
func age(r *rand.Rand) int {
	n := 0
	for n < 40 && r.Float64() < .42 {
		n++
	}
	if n > 6 { // tail of machines that are never updated
		n += r.IntN(30)
	}
	return n
}

// agent draws a person's browser. Since Chrome tells neither the device nor the
// minor version ("User-Agent reduction", 2023), a few user agents have most of
// the clicks: that is no sign of fraud.
func agent(r *rand.Rand, c *country, mobile bool) string {
	switch {
	case !mobile:
		return desktop(r)
	case r.Float64() < c.iPhone:
		return iPhone(r)
	}
	return android(r)
}

func desktop(r *rand.Rand) string {
	v := newest - age(r)
	system := []string{"Windows NT 10.0; Win64; x64", "Windows NT 10.0; Win64; x64", "Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10_15_7", "X11; Linux x86_64"}
	chrome := fmt.Sprintf("Mozilla/5.0 (%s) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.0.0 Safari/537.36", pick(r, system[min(r.IntN(5), r.IntN(5)):]), v)
	switch n := r.IntN(100); {
	case n < 68:
		return chrome
	case n < 81:
		return fmt.Sprintf("Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.0.0 Safari/537.36 Edg/%d.0.0.0", v, v)
	case n < 91:
		return fmt.Sprintf("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/%d.%d Safari/605.1.15", 18-min(age(r), 5), r.IntN(7))
	default:
		return fmt.Sprintf("Mozilla/5.0 (%s; rv:%d.0) Gecko/20100101 Firefox/%d.0", pick(r, system), v+3, v+3)
	}
}

func iPhone(r *rand.Rand) string {
	major, minor := 18-min(age(r), 5), r.IntN(7)
	if r.Float64() < .1 {
		return fmt.Sprintf("Mozilla/5.0 (iPhone; CPU iPhone OS %d_%d like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/%d.0.7500.%d Mobile/15E148 Safari/604.1", major, minor, newest-age(r), 50+r.IntN(60))
	}
	return fmt.Sprintf("Mozilla/5.0 (iPhone; CPU iPhone OS %d_%d like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/%d.%d Mobile/15E148 Safari/604.1", major, minor, major, minor)
}

func android(r *rand.Rand) string {
	v := newest - age(r)
	if r.Float64() < .08 {
		return fmt.Sprintf("Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/%d.0 Chrome/%d.0.0.0 Mobile Safari/537.36", 29-min(age(r), 8), v-8)
	}
	return fmt.Sprintf("Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.0.0 Mobile Safari/537.36", v)
}

var models = []string{"SM-G991B", "SM-A546B", "SM-S918B", "SM-A155F", "Pixel 8", "Pixel 7a", "M2101K6G", "2201117TG", "CPH2481", "moto g84 5G", "V2247", "RMX3710"}

// inApp is the browser of an app in which people follow links of a social
// network. It tells the device: these agents are many.
func inApp(r *rand.Rand, c *country) string {
	if r.Float64() < c.iPhone {
		major, minor := 18-min(age(r), 4), r.IntN(7)
		app := fmt.Sprintf("Instagram %d.0.0.%d.%d (iPhone%d,%d; iOS %d_%d; en_US; en; scale=3.00; 1170x2532; %d)", 380-age(r), 10+r.IntN(30), 80+r.IntN(20), 12+r.IntN(5), 1+r.IntN(5), major, minor, 700_000_000+r.IntN(60))
		if r.IntN(2) == 0 {
			app = fmt.Sprintf("[FBAN/FBIOS;FBAV/%d.0.0.%d.70;FBDV/iPhone%d,%d;FBSN/iOS;FBSV/%d.%d;FBLC/en_US]", 540-age(r), 30+r.IntN(20), 12+r.IntN(5), 1+r.IntN(5), major, minor)
		}
		return fmt.Sprintf("Mozilla/5.0 (iPhone; CPU iPhone OS %d_%d like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 %s", major, minor, app)
	}
	v := newest - age(r)
	return fmt.Sprintf("Mozilla/5.0 (Linux; Android %d; %s Build/UP1A.231005.007; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/%d.0.7500.%d Mobile Safari/537.36 Instagram %d.0.0.%d.%d Android",
		12+r.IntN(4), pick(r, models), v, 50+r.IntN(60), 380-age(r), 10+r.IntN(30), 80+r.IntN(20))
}

// outdated are browsers of some years ago, which tools and their lists of user
// agents still send.
func outdated(r *rand.Rand) string {
	return fmt.Sprintf("Mozilla/5.0 (Windows NT %s; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.%d.%d Safari/537.36",
		pick(r, []string{"6.1", "10.0", "6.3"}), 70+r.IntN(40), 3500+r.IntN(1500), r.IntN(200))
}

// previewer fetches what is shown beside a link that was shared. The last
// versions are those that the services name in their documentation.
var previewers = []string{
	"facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)", "WhatsApp/2.23.20.0 A", "Twitterbot/1.0",
	"TelegramBot (like TwitterBot)", "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)", "Mozilla/5.0 (compatible; Discordbot/2.0; +https://discordapp.com)",
	"LinkedInBot/1.0 (compatible; Mozilla/5.0; Apache-HttpClient +http://www.linkedin.com)",
}

// robots say that they are robots.
var robots = []string{
	"Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
	"Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)", "Mozilla/5.0 (compatible; SemrushBot/7~bl; +http://www.semrush.com/bot.html)",
	"Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; GPTBot/1.2; +https://openai.com/gptbot)", "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
	"Mozilla/5.0 (compatible; DotBot/1.2; +https://opensiteexplorer.org/dotbot; help@moz.com)", "Mozilla/5.0 (compatible; PetalBot;+https://webmaster.petalsearch.com/site/petalbot)",
}

// monitor asks for one link again and again, by the clock, on the owner's behalf.
const monitor = "Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)"
