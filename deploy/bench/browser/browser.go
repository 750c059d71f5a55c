// Package browser makes requests as people's browsers send them, for load
// generators: whole heads of HTTP/1.1, whose user agents, languages and
// referrers are as varied as life's. It is for benchmarks only; nothing about
// real traffic can be learned from it.
//
// Requests depend on their seed alone. Its functions may be called by any
// number of goroutines at once.
package browser

import (
	"fmt"
	"iter"
	"math/rand/v2"

	"github.com/affleet/affleet/deploy/bench/linkset"
)

// Requests gives n requests for random ones of the first links of a set.
func Requests(set linkset.Set, links, n int, seed uint64) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		r := rand.New(rand.NewPCG(seed, 1))
		for range n {
			if !yield(request(r, set.Link(r.IntN(links)).GetPath())) {
				return
			}
		}
	}
}

func request(r *rand.Rand, path string) []byte {
	b := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: keep-alive\r\n", path, linkset.Domain)
	switch n := r.IntN(100); {
	case n < 62:
		b = chromium(b, r)
	case n < 90:
		b = safari(b, r)
	default:
		b = firefox(b, r)
	}
	return append(b, "\r\n"...)
}

// chromium is Chrome and Edge on desktops and on Android.
func chromium(b []byte, r *rand.Rand) []byte {
	major := 120 + min(r.IntN(14), r.IntN(14))
	system, mobile := pick(r, desktops), 0
	platform := map[byte]string{'W': "Windows", 'M': "macOS", 'X': "Linux"}[system[0]]
	brand, suffix := "Google Chrome", ""
	switch n := r.IntN(10); {
	case n < 5:
		system, platform, mobile = "Linux; Android 10; K", "Android", 1
		suffix = " Mobile"
	case n == 9:
		brand, suffix = "Microsoft Edge", fmt.Sprintf(" Safari/537.36 Edg/%d.0.0.0", major)
	}
	tail := " Safari/537.36"
	if brand == "Microsoft Edge" {
		tail = ""
	}
	b = fmt.Appendf(b, "sec-ch-ua: \"Chromium\";v=\"%d\", \"%s\";v=\"%d\", \"Not-A.Brand\";v=\"99\"\r\nsec-ch-ua-mobile: ?%d\r\nsec-ch-ua-platform: %q\r\n", major, brand, major, mobile, platform)
	b = fmt.Appendf(b, "Upgrade-Insecure-Requests: 1\r\nUser-Agent: Mozilla/5.0 (%s) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.0.0%s%s\r\n", system, major, suffix, tail)
	b = append(b, "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\n"...)
	b = referrer(b, r)
	return fmt.Appendf(b, "Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: %s\r\n", pick(r, languages))
}

// safari is iPhones and Macs, and what apps show pages in.
func safari(b []byte, r *rand.Rand) []byte {
	b = append(b, "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\n"...)
	major, minor := 15+r.IntN(3), r.IntN(7)
	system := fmt.Sprintf("iPhone; CPU iPhone OS %d_%d like Mac OS X", major, minor)
	var agent string
	switch r.IntN(4) {
	case 0:
		agent = fmt.Sprintf("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/%d.%d Safari/605.1.15", major, minor)
	case 1:
		agent = fmt.Sprintf("Mozilla/5.0 (%s) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 Instagram %d.0.0.%d.%d (iPhone%d,%d; iOS %d_%d; en_US; en; scale=3.00; 1170x2532; %d)",
			system, 300+r.IntN(30), 10+r.IntN(30), 80+r.IntN(40), 11+r.IntN(5), 1+r.IntN(5), major, minor, 500_000_000+r.IntN(1000))
	default:
		agent = fmt.Sprintf("Mozilla/5.0 (%s) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/%d.%d Mobile/15E148 Safari/604.1", system, major, minor)
	}
	b = fmt.Appendf(b, "User-Agent: %s\r\n", agent)
	b = referrer(b, r)
	return fmt.Appendf(b, "Accept-Language: %s\r\nAccept-Encoding: gzip, deflate, br\r\n", pick(r, languages))
}

func firefox(b []byte, r *rand.Rand) []byte {
	major := 115 + r.IntN(18)
	b = fmt.Appendf(b, "User-Agent: Mozilla/5.0 (%s; rv:%d.0) Gecko/20100101 Firefox/%d.0\r\n", pick(r, desktops), major, major)
	b = fmt.Appendf(b, "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/png,image/svg+xml,*/*;q=0.8\r\nAccept-Language: %s\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n", pick(r, languages))
	b = referrer(b, r)
	return append(b, "Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-User: ?1\r\nPriority: u=0, i\r\n"...)
}

// referrer is missing from every fifth request, and else an origin, which is
// all that browsers tell another site.
func referrer(b []byte, r *rand.Rand) []byte {
	switch n := r.IntN(10); {
	case n < 2:
		return b
	case n < 7:
		return fmt.Appendf(b, "Referer: %s\r\n", pick(r, referrers))
	default: // one of many blogs
		return fmt.Appendf(b, "Referer: https://www.%s-%s.example/\r\n", pick(r, topics), pick(r, topics))
	}
}

// pick prefers the first ones.
func pick(r *rand.Rand, from []string) string {
	return from[min(r.IntN(len(from)), r.IntN(len(from)))]
}

var (
	desktops = []string{
		"Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10_15_7", "X11; Linux x86_64",
	}
	languages = []string{
		"en-US,en;q=0.9", "en-GB,en-US;q=0.9,en;q=0.8", "de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7", "fr-FR,fr;q=0.9,en-US;q=0.8,en;q=0.7",
		"es-ES,es;q=0.9,en;q=0.8", "pt-BR,pt;q=0.9,en-US;q=0.8,en;q=0.7", "en-US,en;q=0.5", "it-IT,it;q=0.9,en-US;q=0.8,en;q=0.7",
		"nl-NL,nl;q=0.9,en-US;q=0.8,en;q=0.7", "pl-PL,pl;q=0.9,en-US;q=0.8,en;q=0.7", "ja-JP,ja;q=0.9", "en-IN,en-GB;q=0.9,en-US;q=0.8,en;q=0.7",
		"sv-SE,sv;q=0.9,en-US;q=0.8,en;q=0.7", "tr-TR,tr;q=0.9,en-US;q=0.8,en;q=0.7", "zh-CN,zh;q=0.9", "ru-RU,ru;q=0.9,en-US;q=0.8,en;q=0.7",
	}
	referrers = []string{
		"https://www.google.com/", "https://l.instagram.com/", "https://www.youtube.com/", "https://t.co/", "https://www.facebook.com/",
		"https://www.pinterest.com/", "https://www.reddit.com/", "https://www.bing.com/", "https://duckduckgo.com/", "https://news.ycombinator.com/",
	}
	topics = []string{
		"travel", "garden", "coffee", "camera", "running", "cooking", "gaming", "fashion", "fitness", "audio", "bikes", "books",
		"budget", "cats", "cycling", "deals", "dogs", "family", "golf", "hiking", "home", "kitchen", "knitting", "music",
	}
)
