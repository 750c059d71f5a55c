package visitor

import (
	"slices"
	"strings"
)

// Languages are what a client prefers, the best first: tags in lower case.
type Languages []string

// First is the best, empty if none is known.
func (l Languages) First() string {
	if len(l) == 0 {
		return ""
	}
	return l[0]
}

// Limits of an Accept-Language header: what is longer is cut.
const (
	maxLanguageHeader = 256
	maxLanguages      = 16
	maxTag            = 35
)

// parseLanguages reads an Accept-Language header: "de-AT, de;q=0.8, *;q=0.1".
// What is malformed is passed over, and so are "*" and what has the weight 0.
func parseLanguages(header string) Languages {
	type weighted struct {
		tag    string
		weight int // thousandths
	}
	var all []weighted
	for part := range strings.SplitSeq(header, ",") {
		tag, parameters, _ := strings.Cut(part, ";")
		tag = strings.ToLower(strings.Trim(tag, " \t"))
		weight, ok := parseWeight(parameters)
		if !ok || weight == 0 || !isTag(tag) || slices.ContainsFunc(all, func(w weighted) bool { return w.tag == tag }) {
			continue
		}
		if all = append(all, weighted{tag, weight}); len(all) == maxLanguages {
			break
		}
	}
	slices.SortStableFunc(all, func(a, b weighted) int { return b.weight - a.weight })
	tags := make(Languages, len(all))
	for i, w := range all {
		tags[i] = w.tag
	}
	return tags
}

// parseWeight reads "q=0.8", in thousandths; nothing is 1.
func parseWeight(s string) (int, bool) {
	s = strings.ToLower(strings.Trim(s, " \t"))
	if s == "" {
		return 1000, true
	}
	s, ok := strings.CutPrefix(s, "q=")
	whole, fraction, _ := strings.Cut(s, ".")
	if !ok || whole != "0" && whole != "1" || len(fraction) > 3 || strings.Trim(fraction, "0123456789") != "" {
		return 0, false
	}
	weight := 0
	for _, c := range (whole + fraction + "000")[:4] {
		weight = weight*10 + int(c-'0')
	}
	return min(weight, 1000), true
}

func isTag(tag string) bool {
	if tag == "" || len(tag) > maxTag || tag[0] < 'a' || tag[0] > 'z' {
		return false
	}
	return strings.Trim(tag, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// languageSlots is how many Accept-Language headers are remembered.
const languageSlots = 1 << 11

// ReferrerDomain is the host of a Referer header in lower case, without port;
// empty if there is none. At most 253 bytes.
func ReferrerDomain(referrer string) string {
	rest, ok := cutScheme(referrer)
	if !ok {
		return ""
	}
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = rest[i+1:]
	}
	if strings.HasPrefix(rest, "[") { // an IPv6 address
		i := strings.IndexByte(rest, ']')
		if i < 0 {
			return ""
		}
		rest = rest[1:i]
	} else if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		rest = rest[:i]
	}
	if rest = strings.ToLower(strings.TrimSuffix(rest, ".")); len(rest) > 253 {
		return ""
	}
	return rest
}

func cutScheme(url string) (rest string, ok bool) {
	for _, scheme := range []string{"https://", "http://", "android-app://"} {
		if len(url) > len(scheme) && strings.EqualFold(url[:len(scheme)], scheme) {
			return url[len(scheme):], true
		}
	}
	return "", false
}

// Limits of the cache of referrers.
const (
	referrerSlots = 1 << 11
	maxReferrer   = 300 // bytes that are looked at: a scheme and a host
)
