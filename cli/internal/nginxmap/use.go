package nginxmap

import (
	"fmt"
	"slices"
	"strings"
)

// defaultStatus is the code of a redirect of which none is to be seen.
const defaultStatus = 302

// usage is what the configuration does with the variable of a map.
type usage struct {
	codes  []int  // of its redirects, each once, in order
	prefix string // the URL before the variable, empty for none or several
	none   []string
	notes  []Note
	first  statement // the redirect that codes[0] is from
}

// used looks for the returns, rewrites and ifs that use the variable name.
func used(statements []statement, name string) usage {
	var u usage
	prefixes := map[string]bool{}
	for _, s := range statements {
		switch s.words[0] {
		case "if":
			if value, ok := compared(s.words, name); ok {
				u.none = append(u.none, value)
			}
			continue
		case "rewrite":
			u.rewrite(s, name, prefixes)
		case "return":
			u.returned(s, name, prefixes)
		}
	}
	if len(prefixes) == 1 {
		for p := range prefixes {
			u.prefix = p
		}
	}
	return u
}

// returned takes "return 301 https://example.com$target".
func (u *usage) returned(s statement, name string, prefixes map[string]bool) {
	if len(s.words) != 3 {
		return
	}
	before, after, ok := cutVariable(s.words[2], name)
	if !ok {
		return
	}
	code := slices.Index([]string{"301", "302", "303", "307", "308"}, s.words[1])
	if code < 0 {
		return
	}
	u.redirect(s, []int{301, 302, 303, 307, 308}[code])
	u.around(s, before, after, prefixes)
}

// rewrite takes "rewrite ^ $target permanent".
func (u *usage) rewrite(s statement, name string, prefixes map[string]bool) {
	if len(s.words) != 3 && len(s.words) != 4 {
		return
	}
	before, after, ok := cutVariable(s.words[2], name)
	if !ok {
		return
	}
	flag := ""
	if len(s.words) == 4 {
		flag = s.words[3]
	}
	switch {
	case flag == "permanent":
		u.redirect(s, 301)
	case flag == "redirect", strings.HasPrefix(before, "http://"), strings.HasPrefix(before, "https://"), strings.HasPrefix(before, "$scheme"):
		u.redirect(s, 302)
	default:
		u.note(s, Warning, "", "this rewrite changes the path within nginx and is no redirect; the links are redirects")
		return
	}
	if rest, ok := strings.CutSuffix(after, "?"); ok {
		after = rest
	} else if after == "" {
		u.note(s, Warning, queryHint, "this rewrite appends the query of the request; links drop it")
	}
	u.around(s, before, after, prefixes)
}

const queryHint = "query policies are not supported by this release"

func (u *usage) redirect(s statement, code int) {
	if len(u.codes) == 0 {
		u.first = s
	}
	if !slices.Contains(u.codes, code) {
		u.codes = append(u.codes, code)
	}
}

// around looks at what stands before and behind the variable.
func (u *usage) around(s statement, before, after string, prefixes map[string]bool) {
	if strings.IndexByte(before, '$') < 0 && (strings.HasPrefix(before, "http://") || strings.HasPrefix(before, "https://")) {
		prefixes[before] = true
	} else if rest := strings.TrimPrefix(before, "$scheme://"); strings.HasPrefix(before, "$scheme://") && rest != "" && strings.IndexByte(rest, '$') < 0 {
		prefixes["https://"+rest] = true
		u.note(s, Warning, "", "$scheme becomes https in the destinations that start with a slash")
	}
	if after == "" || after == "?" {
		return
	}
	if rest, suffix := cutQuery(after); suffix != "" && rest == "" {
		u.note(s, Warning, queryHint, "this redirect appends the query of the request; links drop it")
		return
	}
	u.note(s, Error, "", "%s behind the target cannot be carried over", shorten(after))
}

func (u *usage) note(s statement, severity Severity, hint, format string, args ...any) {
	u.notes = append(u.notes, Note{s.file, s.line, severity, fmt.Sprintf(format, args...), hint})
}

// compared gives the value that an if compares the variable with, for
// "unequal": what stands for no redirect then.
func compared(words []string, name string) (string, bool) {
	inside := slices.Clone(words[1:])
	if len(inside) == 0 || !strings.HasPrefix(inside[0], "(") {
		return "", false
	}
	last := len(inside) - 1
	inside[0], inside[last] = strings.TrimPrefix(inside[0], "("), strings.TrimSuffix(inside[last], ")")
	if inside[0] == "" {
		inside = inside[1:]
	}
	if n := len(inside); n == 4 && inside[3] == "" {
		inside = inside[:3]
	}
	if len(inside) != 3 || inside[1] != "!=" {
		return "", false
	}
	before, after, ok := cutVariable(inside[0], name)
	return inside[2], ok && before == "" && after == "" && strings.IndexByte(inside[2], '$') < 0
}

// cutVariable cuts s around the first mention of the variable name, "$target".
// nginx does not care for the case of the names of variables.
func cutVariable(s, name string) (before, after string, ok bool) {
	bare := name[1:]
	for i := range len(s) {
		if s[i] != '$' {
			continue
		}
		rest := s[i+1:]
		if braced, ok := strings.CutPrefix(rest, "{"); ok {
			if len(braced) > len(bare) && braced[len(bare)] == '}' && strings.EqualFold(braced[:len(bare)], bare) {
				return s[:i], braced[len(bare)+1:], true
			}
			continue
		}
		if len(rest) >= len(bare) && strings.EqualFold(rest[:len(bare)], bare) &&
			(len(rest) == len(bare) || !isWordByte(rest[len(bare)])) {
			return s[:i], rest[len(bare):], true
		}
	}
	return "", "", false
}
