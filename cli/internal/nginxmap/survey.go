package nginxmap

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/affleet/affleet/proto/link"
)

// parser is the state of one Parse. It reads twice: the survey finds the maps
// and what uses them, skipping what is in the maps; then the chosen map is
// read.
type parser struct {
	opts   Options
	domain string // canonical, empty for none
	none   []string
	files  files

	maps   []mapBlock
	blocks int // of any kind
	uses   []statement
	notes  []Note // of the survey, for files that could not be read

	result *Result
	reader reader
}

// mapBlock is where a map is.
type mapBlock struct {
	name, source string
	file         *file
	line         int // of its head
	body         lexer
	end          int // where the body ends, in body.text
}

// text is what stands between the braces.
func (m *mapBlock) text() string { return m.body.text[m.body.pos:m.end] }

// statement is a return, rewrite or if.
type statement struct {
	file  string
	line  int
	words []string
}

func newParser(path string, opts Options) (*parser, error) {
	p := &parser{opts: opts, none: opts.None, result: &Result{StatusCode: defaultStatus}}
	if opts.Domain != "" {
		domain, err := link.CanonicalHost(opts.Domain)
		if err != nil {
			return nil, err
		}
		p.domain = domain
	}
	if opts.Base != "" {
		if err := link.CheckDestination("base", opts.Base); err != nil {
			return nil, err
		}
	}
	if p.none == nil {
		p.none = DefaultNone
	}
	p.files = files{read: opts.Read, glob: opts.Glob, dir: filepath.Dir(path), known: map[string]*file{}}
	if p.files.read == nil {
		p.files.read = readFile
	}
	if p.files.glob == nil {
		p.files.glob = globFiles
	}
	return p, nil
}

// survey notes the maps, returns, rewrites and ifs of f and the files that it
// includes.
func (p *parser) survey(f *file) error {
	return p.surveyFile(f, &lexer{file: f.path, lines: []int{1}}, false)
}

// block is one that is open while a file is surveyed.
type block struct {
	name   string
	line   int
	stream bool // is within stream{}, whose maps are not about HTTP
}

func (p *parser) surveyFile(f *file, from *lexer, stream bool) error {
	if err := p.files.enter(f, from); err != nil {
		return err
	}
	defer p.files.leave()
	l := newLexer(f)
	var open []block
	for {
		k, err := l.next()
		if err != nil {
			return err
		}
		within := stream || len(open) > 0 && open[len(open)-1].stream
		switch k {
		case simple:
			err = p.surveySimple(l, within)
		case opened:
			p.blocks++
			var b *block
			if b, err = p.surveyBlock(f, l, within); b != nil {
				open = append(open, *b)
			}
		case closed:
			if len(open) == 0 {
				return l.fail("", `unexpected "}", which ends no block`)
			}
			open = open[:len(open)-1]
		case ended:
			if len(open) > 0 {
				b := open[len(open)-1]
				return l.fail("", `unexpected end of file, expected "}" to end the %s block of line %d`, b.name, b.line)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (p *parser) surveySimple(l *lexer, stream bool) error {
	switch l.words[0] {
	case "include":
		if len(l.words) == 2 {
			return p.surveyInclude(l, stream)
		}
	case "return", "rewrite":
		p.use(l)
	}
	return nil
}

func (p *parser) use(l *lexer) {
	p.uses = append(p.uses, statement{l.file, l.lines[0], slices.Clone(l.words)})
}

// surveyBlock notes the block that was opened. It gives nil for one that it has
// read to its end.
func (p *parser) surveyBlock(f *file, l *lexer, stream bool) (*block, error) {
	name, line := l.words[0], l.lines[0]
	switch {
	case strings.HasSuffix(name, "_by_lua_block"):
		return nil, l.skipLua()
	case name == "map" && !stream:
		if len(l.words) != 3 || !strings.HasPrefix(l.words[2], "$") {
			return nil, l.failAt(line, "", `expected "map $source $target {"`)
		}
		m := mapBlock{name: variable(l.words[2]), source: l.words[1], file: f, line: line}
		m.body = lexer{file: l.file, text: l.text, pos: l.pos, line: l.line}
		m.body.lines = append(m.body.lines, line)
		err := l.skipBlock()
		m.end = l.pos
		p.maps = append(p.maps, m)
		return nil, err
	case name == "if":
		p.use(l)
	}
	return &block{name, line, stream || name == "stream"}, nil
}

// surveyInclude follows an include outside the maps. A file that is missing
// there is no reason to stop: it may have nothing to do with the map.
func (p *parser) surveyInclude(l *lexer, stream bool) error {
	included, err := p.files.included(l.words[1], l)
	if err != nil {
		p.notes = append(p.notes, Note{
			l.file, l.lines[0], Warning,
			fmt.Sprintf("include %s: %s; a return that uses the map is not seen if it is there", shorten(l.words[1]), reason(err)), "",
		})
		return nil
	}
	for _, f := range included {
		if err := p.surveyFile(f, l, stream); err != nil {
			return err
		}
	}
	return nil
}

// choose gives the map that is asked for. Of several that set the same
// variable, nginx uses the last.
func (p *parser) choose(path, want string) (*mapBlock, error) {
	var names []string
	chosen := map[string]*mapBlock{}
	for i := range p.maps {
		m := &p.maps[i]
		key := strings.ToLower(m.name)
		if old := chosen[key]; old != nil {
			p.notes = append(p.notes, Note{
				old.file.path, old.line, Warning,
				fmt.Sprintf("nginx does not use this map: %s:%d sets %s again", m.file.path, m.line, m.name), "",
			})
		} else {
			names = append(names, key)
		}
		chosen[key] = m
	}
	if want != "" {
		if m := chosen[strings.ToLower(variable(want))]; m != nil {
			return m, nil
		}
	} else if len(names) == 1 {
		return chosen[names[0]], nil
	}
	return nil, noChoice(path, want, names, chosen)
}

func noChoice(path, want string, names []string, maps map[string]*mapBlock) error {
	e := &link.Error{Kind: link.Invalid}
	list := make([]string, len(names))
	for i, name := range names {
		m := maps[name]
		list[i] = fmt.Sprintf("%s (on %s, %s:%d)", m.name, m.source, m.file.path, m.line)
		if _, err := parseSource(m); err == nil && e.Hint == "" {
			e.Hint = fmt.Sprintf("choose one, such as --map '%s'", m.name)
		}
	}
	all := strings.Join(list, ", ")
	switch {
	case len(names) == 0:
		e.Message = path + " has no map block"
		e.Hint = `a map looks like "map $uri $target { /go/a https://store.com/a; }"`
	case want != "":
		e.Message = fmt.Sprintf("%s has no map %s; it has %s", path, variable(want), all)
	default:
		e.Message = fmt.Sprintf("%s has %d maps: %s", path, len(names), all)
	}
	return e
}

// variable writes the name of a variable with its dollar sign.
func variable(name string) string {
	if name == "" {
		return ""
	}
	return "$" + strings.Trim(strings.TrimPrefix(name, "$"), "{}")
}
