package nginxmap

import (
	"strings"

	"github.com/affleet/affleet/proto/link"
)

// values turns the values of one map into destinations.
type values struct {
	none   []string
	base   string // Options.Base, empty for none
	prefix string // what the configuration puts before a target that starts with a slash
	domain string // for hints
}

// isNone says whether a value stands for "no redirect".
func (v *values) isNone(value string) bool {
	if value == "" {
		return true
	}
	for _, none := range v.none {
		if len(value) == len(none) && strings.EqualFold(value, none) {
			return true
		}
	}
	return false
}

// destination gives the URL that a value stands for. A problem that is a
// Warning comes with a URL.
func (v *values) destination(value string) (string, []*problem) {
	if strings.IndexByte(value, '$') >= 0 {
		return "", []*problem{variables(value)}
	}
	url, p := v.absolute(value)
	if url == "" {
		return "", []*problem{p}
	}
	var problems []*problem
	if p != nil {
		problems = append(problems, p)
	}
	if encoded := encodeURL(url); encoded != url {
		problems = append(problems, warn("", "the destination %s becomes %s", shorten(url), shorten(encoded)))
		url = encoded
	}
	if err := link.CheckDestination("destination", url); err != nil {
		p := link.Problems(err)[0]
		return "", []*problem{refuse(p.Hint, "the destination cannot be carried over: %s", p.Message)}
	}
	return url, problems
}

// absolute puts what it is relative to before a relative target.
func (v *values) absolute(value string) (string, *problem) {
	hint := "say what it is relative to, such as --base https://" + v.domain
	switch {
	case !strings.HasPrefix(value, "/"):
		return value, nil // CheckDestination says what is wrong with "a/b"
	case strings.HasPrefix(value, "//"):
		if v.base == "" {
			return "", refuse(hint, "the destination %s has no scheme", shorten(value))
		}
		scheme, _, _ := strings.Cut(v.base, "//")
		return scheme + value,
			warn("", "the destination %s is taken for one without a scheme, which nginx has only with absolute_redirect off", shorten(value))
	case v.base != "":
		return origin(v.base) + value, nil
	case v.prefix != "":
		return v.prefix + value, nil
	}
	return "", refuse(hint, "the destination %s is relative", shorten(value))
}

// origin is scheme and authority of an absolute URL.
func origin(url string) string {
	scheme, rest, _ := strings.Cut(url, "//")
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		return url[:len(scheme)+2+i]
	}
	return url
}

// querySuffixes are the ways to append the query of the request.
var querySuffixes = []string{"$is_args$args", "${is_args}${args}", "$is_args$query_string", "?$args", "?${args}", "?$query_string"}

// cutQuery cuts a suffix that appends the query of the request.
func cutQuery(value string) (rest, suffix string) {
	for _, s := range querySuffixes {
		if rest, ok := strings.CutSuffix(value, s); ok {
			return rest, s
		}
	}
	return value, ""
}

// variables refuses a value that has variables in it.
func variables(value string) *problem {
	if rest, suffix := cutQuery(value); suffix != "" && strings.IndexByte(rest, '$') < 0 {
		return refuse("leave out "+suffix+" to import it; the query of the request is dropped then, as query policies are not supported by this release",
			"the value %s appends the query of the request, which a link cannot do", shorten(value))
	}
	name := value[strings.IndexByte(value, '$'):]
	end := 1
	for end < len(name) && (isWordByte(name[end]) || end == 1 && name[end] == '{') {
		end++
	}
	if end < len(name) && name[end] == '}' {
		end++
	}
	return refuse("a destination is a fixed URL: write one key for each",
		"the value %s has the variable %s in it and cannot be carried over", shorten(value), shorten(name[:end]))
}

func isWordByte(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

// encodeURL percent-encodes what nginx sends as it is and browsers encode, and
// the braces that would make a template of a URL. It leaves the host alone.
func encodeURL(url string) string {
	plain := true
	for i := range len(url) {
		plain = plain && !needsEncoding(url[i])
	}
	if plain || !strings.Contains(url, "//") {
		return url
	}
	const upperHex = "0123456789ABCDEF"
	start := len(origin(url))
	out := append(make([]byte, 0, len(url)+16), url[:start]...)
	for i := start; i < len(url); i++ {
		if c := url[i]; needsEncoding(c) {
			out = append(out, '%', upperHex[c>>4], upperHex[c&15])
		} else {
			out = append(out, c)
		}
	}
	return string(out)
}

func needsEncoding(c byte) bool { return c == ' ' || c >= 0x80 || c == '{' || c == '}' }
