package nginxmap

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/affleet/affleet/proto/link"
)

// source is what a map looks at.
type source struct {
	name string // as Result.Source has it
	host bool   // keys start with a host
	path pathForm
	port bool // the host may have a port: it is the Host header
}

// pathForm is the form that the path has in a key.
type pathForm uint8

const (
	noPath  pathForm = iota
	decoded          // $uri: decoded, dot segments and double slashes removed, without query
	raw              // $request_uri: as it was sent, with query
	guessed          // a bare fragment: whichever it looks like
)

// supported are the sources in the order in which they are listed.
var supported = []source{
	{"$uri", false, decoded, false},
	{"$request_uri", false, raw, false},
	{"$host$uri", true, decoded, false},
	{"$host$request_uri", true, raw, false},
	{"$http_host$uri", true, decoded, true},
	{"$http_host$request_uri", true, raw, true},
	{"$host", true, noPath, false},
	{"$http_host", true, noPath, true},
}

var fragmentSource = source{"", false, guessed, true}

// parseSource gives the source of a map, an error for one whose keys are not
// hosts and paths.
func parseSource(m *mapBlock) (source, error) {
	name := strings.NewReplacer("{", "", "}", "").Replace(strings.ToLower(m.source))
	name = strings.ReplaceAll(name, "$document_uri", "$uri")
	var names []string
	for _, s := range supported {
		if s.name == name {
			return s, nil
		}
		names = append(names, s.name)
	}
	return source{}, failure(m.file.path, m.line, "a map can be imported if it is on one of "+strings.Join(names, ", "),
		"map %s is on %s, which is not the host and path of a request", m.name, shorten(m.source))
}

// problem is why a key or a value cannot be carried over, or what became of it.
type problem struct {
	severity   Severity
	text, hint string
}

func refuse(hint, format string, args ...any) *problem {
	return &problem{Error, fmt.Sprintf(format, args...), hint}
}

func warn(hint, format string, args ...any) *problem {
	return &problem{Warning, fmt.Sprintf(format, args...), hint}
}

// keys turns the keys of one map into those of links.
type keys struct {
	source
	domain    string // for keys without a host, canonical
	hostnames bool   // masks have a meaning

	rawHost, host string // the last one, as most keys repeat it
	in, out       []byte // reused
}

// link gives host and path for a string key. A problem that is a Warning comes
// with a host.
func (k *keys) link(key string) (host, path string, problems []*problem) {
	rawHost, rawPath := k.split(key)
	if p := k.misplaced(key, rawHost, rawPath); p != nil {
		return "", "", []*problem{p}
	}
	host = k.domain
	if rawHost != "" {
		var p *problem
		if host, p = k.canonicalHost(rawHost); p != nil {
			if problems = append(problems, p); host == "" {
				return "", "", problems
			}
		}
	}
	if rawPath == "" {
		return host, "", problems
	}
	path, p := k.canonicalPath(rawPath)
	if p != nil {
		problems = append(problems, p)
	}
	if path == "" {
		return "", "", problems
	}
	if k.path == decoded && strings.Contains(path, "//") {
		problems = append(problems, warn("", "the key %s is carried over, and nginx finds it only with merge_slashes off", shorten(key)))
	}
	return host, path, problems
}

func (k *keys) split(key string) (host, path string) {
	if !k.source.host && k.path != guessed {
		return "", key
	}
	if i := strings.IndexByte(key, '/'); i >= 0 {
		return key[:i], key[i:]
	}
	return key, ""
}

// misplaced finds the keys that nginx accepts and that no request has.
func (k *keys) misplaced(key, host, path string) *problem {
	switch {
	case key == "":
		return refuse("", "the empty key matches no request")
	case !k.source.host && k.path != guessed && key[0] != '/':
		return refuse("start the key with a slash", "the key %s matches no request: %s starts with a slash", shorten(key), k.name)
	case k.source.host && host == "":
		return refuse("start the key with a host", "the key %s matches no request: %s starts with a host", shorten(key), k.name)
	case k.source.host && k.path != noPath && path == "":
		return refuse("write "+shorten(key+"/"), "the key %s matches no request: in %s a path follows the host", shorten(key), k.name)
	case k.path == guessed && host != "" && !strings.ContainsAny(host, ".:"):
		return refuse("start the key with a slash or a host", "the key %s is neither a path nor a host", shorten(key))
	case k.path == noPath && path != "":
		return refuse("", "the key %s matches no request: there is no path in %s", shorten(key), k.name)
	}
	return nil
}

// canonicalHost gives the key form of a host, with a Warning if it stands for
// less than in nginx.
func (k *keys) canonicalHost(raw string) (string, *problem) {
	if raw == k.rawHost {
		return k.host, nil
	}
	if mask := strings.HasPrefix(raw, "*.") || strings.HasSuffix(raw, ".*"); mask || raw[0] == '.' {
		return k.masked(raw, mask)
	}
	host, err := link.CanonicalHost(raw)
	if err != nil || host == link.AnyHost {
		return "", refuse("a host looks like go.example.com", "%s is not a host", shorten(raw))
	}
	if i := strings.LastIndexByte(raw, ':'); i > strings.LastIndexByte(raw, ']') {
		if !k.port {
			return "", refuse("leave out the port", "the host %s matches no request: there is no port in $host", shorten(raw))
		}
		return host, warn("", "the host %s becomes %s: a link is found on every port", shorten(raw), shorten(host))
	}
	k.rawHost, k.host = raw, host
	return host, nil
}

func (k *keys) masked(raw string, mask bool) (string, *problem) {
	if !k.hostnames && k.path != guessed {
		return "", refuse(`put "hostnames;" into the map if it is meant as a mask`,
			`the host %s matches no request: without "hostnames;" nginx takes it literally`, shorten(raw))
	}
	const hint = "name each host, or use the domain *, which stands for every host"
	if mask {
		return "", refuse(hint, "the host mask %s cannot be carried over", shorten(raw))
	}
	host, err := link.CanonicalHost(raw[1:])
	if err != nil {
		return "", refuse("", "%s is not a host", shorten(raw))
	}
	return host, warn(hint, "of %s only %s is carried over, and not its subdomains", shorten(raw), host)
}

// canonicalPath gives the key form of a path, with a Warning if it differs from
// what is written.
func (k *keys) canonicalPath(written string) (string, *problem) {
	if strings.HasSuffix(written, "/*") {
		return "", refuse("", "the key %s: nginx takes the star literally, and a link would take it for every path below", shorten(written))
	}
	var ok bool
	k.in = append(k.in[:0], written...)
	k.out, ok = link.AppendCanonicalPath(k.out[:0], k.in)
	switch {
	case !ok, string(k.out) != written, strings.Contains(written, "/."),
		k.path == decoded && strings.IndexByte(written, '%') >= 0:
		return k.escaped(written)
	}
	return written, nil
}

// escaped is canonicalPath for keys that are not in their key form.
func (k *keys) escaped(written string) (string, *problem) {
	query := strings.IndexByte(written, '?')
	switch {
	case query >= 0 && k.path == decoded:
		return "", refuse("map $request_uri sees the query, and links are found by path alone",
			"the key %s matches no request: there is no query in $uri", shorten(written))
	case query >= 0:
		return "", refuse("links are found by path alone; without the query this is "+shorten(written[:query]),
			"the key %s has a query and cannot be carried over", shorten(written))
	case k.path == decoded && hasEscape(written):
		return "", refuse("write the character itself instead of its percent escape",
			"the key %s matches no request: $uri is decoded", shorten(written))
	}
	path, err := link.CanonicalPath(escapePath(written, k.path))
	if err != nil {
		p := link.Problems(err)[0]
		return "", refuse(p.Hint, "the key %s cannot be carried over: %s", shorten(written), p.Message)
	}
	if path != written {
		return path, warn("", "the key %s becomes %s", shorten(written), shorten(path))
	}
	return path, nil
}

// escapePath writes a path in the form that a request line has, in which
// link.CanonicalPath takes it.
func escapePath(path string, form pathForm) string {
	const upperHex = "0123456789ABCDEF"
	out := make([]byte, 0, len(path)+8)
	for i := 0; i < len(path); {
		r, n := utf8.DecodeRuneInString(path[i:])
		c := path[i]
		switch {
		case r == utf8.RuneError && n == 1,
			c == '%' && form != raw && (form == decoded || !isEscape(path[i:])),
			form != raw && (c <= ' ' || c == 0x7f || c == '?' || c == '#'):
			out = append(out, '%', upperHex[c>>4], upperHex[c&15])
			i++
		default:
			out = append(out, path[i:i+n]...)
			i += n
		}
	}
	return string(out)
}

func hasEscape(s string) bool {
	for i := strings.IndexByte(s, '%'); i >= 0 && i+2 < len(s); i++ {
		if isEscape(s[i:]) {
			return true
		}
	}
	return false
}

// isEscape says whether s starts with a percent escape.
func isEscape(s string) bool {
	return len(s) >= 3 && s[0] == '%' && isHex(s[1]) && isHex(s[2])
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
}
