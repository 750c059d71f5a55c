package nginxmap

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/affleet/affleet/proto/link"
)

// reader reads the lines of the chosen map.
type reader struct {
	p      *parser
	result *Result
	keys   keys
	values values
	index  index

	defaultLine int // of the first default, 0 for none
	defaultFile string
	dropped     bool          // some entry has no destination
	silent      []silentEntry // keys that mean "no redirect"
}

// silentEntry is a key with a value for "no redirect".
type silentEntry struct {
	file string
	line int
	key  string
}

func readFile(path string) ([]byte, error) { return os.ReadFile(path) }

// readMap reads a map block.
func (p *parser) readMap(m *mapBlock) error {
	source, err := parseSource(m)
	if err != nil {
		return err
	}
	p.result.Map, p.result.Source = m.name, source.name
	u := used(p.uses, m.name)
	p.status(u)
	r := p.newReader(source, u)
	r.grow(m.text())
	p.files.active = append(p.files.active[:0], m.file.path)
	body := m.body
	if err := r.read(&body, true); err != nil {
		return err
	}
	return r.finish(m.file.path, m.line)
}

// readFragment reads a file that is meant to be included in a map block.
func (p *parser) readFragment(f *file) error {
	r := p.newReader(fragmentSource, usage{})
	r.grow(f.text)
	p.files.active = append(p.files.active[:0], f.path)
	if err := r.read(newLexer(f), false); err != nil {
		return err
	}
	return r.finish(f.path, 1)
}

func (p *parser) newReader(s source, u usage) *reader {
	p.result.Notes = slices.Concat(p.notes, u.notes)
	r := &p.reader
	*r = reader{
		p: p, result: p.result,
		keys:   keys{source: s, domain: p.domain},
		values: values{none: append(slices.Clone(p.none), u.none...), base: p.opts.Base, prefix: u.prefix, domain: cmp.Or(p.domain, "example.com")},
	}
	return r
}

// status chooses the code of the redirects.
func (p *parser) status(u usage) {
	if len(u.codes) == 0 {
		return
	}
	p.result.StatusCode = u.codes[0]
	if len(u.codes) > 1 {
		p.notes = append(p.notes, Note{
			u.first.file, u.first.line, Warning,
			fmt.Sprintf("%s is used with the codes %s; the links get the first", p.result.Map, strings.Trim(fmt.Sprint(u.codes), "[]")), "",
		})
	}
}

// grow makes room for the entries of a text: no more than it has semicolons,
// and than fit in if they are of a likely length.
func (r *reader) grow(text string) {
	n := min(strings.Count(text, ";"), len(text)/16)
	r.result.Entries = slices.Grow(r.result.Entries, n)
}

// read reads the lines of a block, or of a file.
func (r *reader) read(l *lexer, block bool) error {
	head := l.line
	for {
		k, err := l.next()
		if err != nil {
			return err
		}
		switch k {
		case simple:
			if err := r.line(l); err != nil {
				return err
			}
		case opened:
			return l.failAt(l.lines[0], "", `unexpected "{": a map has only "key value;" lines`)
		case closed:
			if !block {
				return l.fail("", `unexpected "}" in a file of "key value;" lines`)
			}
			return nil
		case ended:
			if block {
				return l.fail("", `unexpected end of file, expected "}" to end the map of line %d`, head)
			}
			return nil
		}
	}
}

func (r *reader) line(l *lexer) error {
	words := l.words
	switch {
	case len(words) == 1 && words[0] == "hostnames":
		r.keys.hostnames = true
	case len(words) == 1 && words[0] == "volatile": // about caching within a request
	case len(words) == 2 && words[0] == "include":
		return r.include(l)
	case len(words) == 2 && words[0] == "default":
		r.setDefault(l)
	case len(words) == 2:
		return r.add(l)
	default:
		return notTwoWords(l)
	}
	return nil
}

// notTwoWords is the error for a line that is no "key value;".
func notTwoWords(l *lexer) error {
	if len(l.words) == 1 {
		return l.failAt(l.lines[0], "", `expected "key value;", found only %s`, shorten(l.words[0]))
	}
	if l.lines[2] > l.lines[1] {
		return l.failAt(l.lines[1], "", `expected ";" after %s`, shorten(l.words[1]))
	}
	return l.failAt(l.lines[0], "put quotes around a key or value with spaces in it",
		`expected "key value;", found %d words: %s ...`, len(l.words), shorten(strings.Join(l.words[:3], " ")))
}

func (r *reader) include(l *lexer) error {
	included, err := r.p.files.included(l.words[1], l)
	if err != nil {
		return &link.Error{
			Kind: link.Invalid, Err: err,
			Message: fmt.Sprintf("%s:%d: include %s: %s", l.file, l.lines[0], shorten(l.words[1]), reason(err)),
		}
	}
	if len(included) == 0 {
		r.note(l, warn("", "include %s matches no file", shorten(l.words[1])))
	}
	for _, f := range included {
		if err := r.p.files.enter(f, l); err != nil {
			return err
		}
		r.grow(f.text)
		if err := r.read(newLexer(f), false); err != nil {
			return err
		}
		r.p.files.leave()
	}
	return nil
}

func (r *reader) setDefault(l *lexer) {
	if r.defaultLine > 0 {
		r.note(l, refuse("", "the map has a default already, at %s:%d; nginx refuses a second, the first stands", r.defaultFile, r.defaultLine))
		return
	}
	r.defaultFile, r.defaultLine = l.file, l.lines[0]
	if r.values.isNone(l.words[1]) {
		return
	}
	url, problems := r.values.destination(l.words[1])
	r.note(l, problems...)
	if url != "" {
		r.result.Default, r.result.HasDefault = url, true
		r.result.DefaultFile, r.result.DefaultLine = l.file, l.lines[0]
	}
}

// add takes a line with a key and a value.
func (r *reader) add(l *lexer) error {
	key, value := l.words[0], l.words[1]
	if key != "" && key[0] == '~' {
		r.note(l, regularExpression(key))
		return nil
	}
	key = strings.TrimPrefix(key, `\`)
	host, path, problems := r.keys.link(key)
	if host == "" && len(problems) == 0 {
		return noDomain(l, key)
	}
	r.note(l, problems...)
	if host == "" {
		return nil
	}
	if first, ok := r.index.add(&r.result.Entries, Entry{Host: host, Path: path, File: l.file, Line: l.lines[0]}); !ok {
		r.note(l, duplicate(key, host, path, first))
		return nil
	}
	added := &r.result.Entries[len(r.result.Entries)-1]
	if r.values.isNone(value) {
		r.silent = append(r.silent, silentEntry{l.file, l.lines[0], key})
	} else {
		added.Destination, problems = r.values.destination(value)
		r.note(l, problems...)
	}
	r.dropped = r.dropped || added.Destination == ""
	return nil
}

func noDomain(l *lexer, key string) error {
	return &link.Error{
		Kind: link.Invalid, Hint: "say which host the links are on, such as --domain go.example.com",
		Message: fmt.Sprintf("%s:%d: the key %s has no host", l.file, l.lines[0], shorten(key)),
	}
}

// These take the escapes that people put into expressions for plain paths away,
// and undo them.
var (
	withoutEscapes = strings.NewReplacer(`\.`, "", `\-`, "", `\/`, "", `\_`, "")
	unescaped      = strings.NewReplacer(`\.`, ".", `\-`, "-", `\/`, "/", `\_`, "_")
)

// regularExpression refuses a regular expression, with a cure if it is only a
// complicated way to write one path.
func regularExpression(key string) *problem {
	hint := "write one key for each path that it stands for"
	pattern, anchored := strings.CutPrefix(strings.TrimPrefix(key[1:], "*"), "^")
	pattern, ended := strings.CutSuffix(pattern, "$")
	if anchored && ended && !strings.ContainsAny(withoutEscapes.Replace(pattern), `\.^$|?*+()[]{}`) {
		hint = "it matches one path only: write the key " + unescaped.Replace(pattern)
	}
	return refuse(hint, "the regular expression %s cannot be carried over", shorten(key))
}

// duplicate says what a key collides with.
func duplicate(key, host, path string, first Entry) *problem {
	same := "is there already"
	if first.Host != host || first.Path != path {
		same = "differs only in case from " + shorten(cmp.Or(first.Path, first.Host))
	}
	return refuse("", "the key %s %s, at %s:%d; the first stands", shorten(key), same, first.File, first.Line)
}

func (r *reader) note(l *lexer, problems ...*problem) {
	for _, p := range problems {
		r.result.Notes = append(r.result.Notes, Note{l.file, l.lines[0], p.severity, p.text, p.hint})
	}
}

// finish says what can be said only when everything is read.
func (r *reader) finish(path string, line int) error {
	if r.result.HasDefault {
		r.result.DefaultHost = cmp.Or(r.p.domain, link.AnyHost)
		if r.p.domain == "" && !r.keys.source.host && r.keys.path != guessed {
			return &link.Error{
				Kind: link.Invalid, Hint: "say which host it is for, such as --domain go.example.com",
				Message: fmt.Sprintf("%s:%d: the default has no host", r.result.DefaultFile, r.result.DefaultLine),
			}
		}
		for _, s := range r.silent {
			r.result.Notes = append(r.result.Notes, Note{
				s.file, s.line, Error,
				fmt.Sprintf("the key %s means no redirect, and goes to the default, as every path without a link", shorten(s.key)), "",
			})
		}
	}
	if r.keys.path == raw && len(r.result.Entries) > 0 {
		r.result.Notes = append(r.result.Notes, Note{
			path, line, Warning,
			"nginx finds keys of " + r.keys.name + " only without a query; a link is found with any", "",
		})
	}
	if r.dropped {
		r.result.Entries = slices.DeleteFunc(r.result.Entries, func(e Entry) bool { return e.Destination == "" })
	}
	return nil
}

func (p *parser) finish(err error) (*Result, error) {
	if err != nil {
		return nil, err
	}
	return p.result, nil
}
