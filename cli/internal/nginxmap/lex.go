package nginxmap

import "strings"

// kind is what ended a statement.
type kind uint8

const (
	simple kind = iota // ";"
	opened             // "{"
	closed             // "}", without words
	ended              // the end of the text, without words
)

// maxWord is how long a word may be, in bytes, before nginx takes it for a
// forgotten quote: its buffer less what delimits the word.
const maxWord = 4096 - 2

// ordinary marks the bytes that never end or change a bare word.
var ordinary = func() (t [256]bool) {
	for c := range t {
		t[c] = strings.IndexByte(" \t\r\n;{\\$", byte(c)) < 0
	}
	return t
}()

// lexer takes the text of one file apart into statements, by nginx's rules.
// Words without escapes point into the text.
type lexer struct {
	file  string
	text  string
	pos   int
	line  int      // of pos, from 1
	words []string // of the last statement
	lines []int    // where each word starts
}

func newLexer(f *file) *lexer {
	return &lexer{file: f.path, text: strings.TrimPrefix(f.text, "\ufeff"), line: 1}
}

// next reads a statement into words and lines, which are valid until the next
// call.
func (l *lexer) next() (kind, error) {
	l.words, l.lines = l.words[:0], l.lines[:0]
	for {
		l.skipSpace()
		if l.pos >= len(l.text) {
			if len(l.words) > 0 {
				return ended, l.unfinished()
			}
			return ended, nil
		}
		switch c := l.text[l.pos]; c {
		case ';', '{':
			if len(l.words) == 0 {
				return ended, l.fail("", "unexpected %q, expected a directive", string(c))
			}
			l.pos++
			if c == '{' {
				return opened, nil
			}
			return simple, nil
		case '}':
			if len(l.words) > 0 {
				return ended, l.fail("", `unexpected "}", expected ";" after %s`, l.quoteLast())
			}
			l.pos++
			return closed, nil
		case '"', '\'':
			if err := l.quoted(c); err != nil {
				return ended, err
			}
		default:
			if err := l.bare(); err != nil {
				return ended, err
			}
		}
	}
}

// skipSpace goes to the next byte that is neither white space nor comment.
func (l *lexer) skipSpace() {
	for ; l.pos < len(l.text); l.pos++ {
		switch l.text[l.pos] {
		case '\n':
			l.line++
		case ' ', '\t', '\r':
		case '#':
			end := strings.IndexByte(l.text[l.pos:], '\n')
			if end < 0 {
				l.pos = len(l.text)
				return
			}
			l.pos += end
			l.line++
		default:
			return
		}
	}
}

// bare reads a word without quotes. It ends at white space, ";" or "{", but a
// "{" behind "$" belongs to it, and so does whatever follows a backslash.
func (l *lexer) bare() error {
	start, line := l.pos, l.line
	escaped, dollar := false, false
	i := start
loop:
	for ; i < len(l.text); i++ {
		c := l.text[i]
		if ordinary[c] {
			dollar = false
			continue
		}
		switch c {
		case '\\':
			escaped, dollar = true, false
			i++
			if i < len(l.text) && l.text[i] == '\n' {
				l.line++
			}
		case '$':
			dollar = true
		case '{':
			if !dollar {
				break loop
			}
		default:
			break loop
		}
	}
	l.pos = min(i, len(l.text))
	l.push(l.text[start:l.pos], line, escaped)
	if l.pos-start > maxWord {
		return l.failAt(line, "", "the word that starts with %q is longer than %d bytes", l.text[start:start+20], maxWord)
	}
	return nil
}

// quoted reads a word in quotes, which must be followed by a delimiter.
func (l *lexer) quoted(quote byte) error {
	line := l.line
	start := l.pos + 1
	escaped := false
	i := start
	for ; i < len(l.text) && l.text[i] != quote; i++ {
		switch l.text[i] {
		case '\n':
			l.line++
		case '\\':
			escaped = true
			i++
			if i < len(l.text) && l.text[i] == '\n' {
				l.line++
			}
		}
	}
	if i >= len(l.text) {
		return l.failAt(line, "", "unexpected end of file, expected %q to close the one here", string(quote))
	}
	if i-start > maxWord {
		return l.failAt(line, "a closing quote is probably missing",
			"the quoted word that starts with %q is longer than %d bytes", l.text[start:start+20], maxWord)
	}
	l.push(l.text[start:i], line, escaped)
	l.pos = i + 1
	if l.pos < len(l.text) && strings.IndexByte(" \t\r\n;{)", l.text[l.pos]) < 0 {
		return l.fail("a quote is probably missing", "unexpected %q behind %s, expected white space or \";\"",
			firstRune(l.text[l.pos:]), l.quoteLast())
	}
	return nil
}

func (l *lexer) push(raw string, line int, escaped bool) {
	if escaped {
		raw = unescape(raw)
	}
	l.words = append(l.words, raw)
	l.lines = append(l.lines, line)
}

// unescape does what nginx does within a word: it knows \" \' \\ \t \r and \n,
// and leaves every other backslash where it is.
func unescape(raw string) string {
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '\\' && i+1 < len(raw) {
			switch raw[i+1] {
			case '"', '\'', '\\':
				i++
				c = raw[i]
			case 't':
				i++
				c = '\t'
			case 'r':
				i++
				c = '\r'
			case 'n':
				i++
				c = '\n'
			}
		}
		out = append(out, c)
	}
	return string(out)
}

// unfinished is the error for a text that ends within a statement.
func (l *lexer) unfinished() error {
	last := len(l.words) - 1
	return l.failAt(l.lines[last], "", `unexpected end of file, expected ";" after %s`, l.quoteLast())
}

func (l *lexer) quoteLast() string { return shorten(l.words[len(l.words)-1]) }

func (l *lexer) fail(hint, format string, args ...any) error {
	return l.failAt(l.line, hint, format, args...)
}

func (l *lexer) failAt(line int, hint, format string, args ...any) error {
	return failure(l.file, line, hint, format, args...)
}

// skipBlock goes behind the "}" that ends the map block of which "{" was read
// last.
func (l *lexer) skipBlock() error {
	head := l.lines[0]
	for {
		k, err := l.next()
		switch {
		case err != nil:
			return err
		case k == closed:
			return nil
		case k == opened:
			return l.failAt(l.lines[0], "", `unexpected "{": a map has only "key value;" lines`)
		case k == ended:
			return l.fail("", `unexpected end of file, expected "}" to end the map of line %d`, head)
		}
	}
}

// skipLua goes behind the "}" that ends a block of Lua code, in which braces
// within strings and comments do not count.
func (l *lexer) skipLua() error {
	head := l.lines[0]
	for depth := 1; l.pos < len(l.text); l.pos++ {
		rest := l.text[l.pos:]
		switch c := rest[0]; {
		case c == '{':
			depth++
		case c == '}':
			if depth--; depth == 0 {
				l.pos++
				return nil
			}
		case c == '"' || c == '\'':
			l.advance(luaString(rest))
		case strings.HasPrefix(rest, "--"):
			l.advance(2 + luaComment(rest[2:]))
		case c == '[':
			l.advance(max(1, luaLong(rest)))
		case c == '\n':
			l.line++
		}
	}
	return l.fail("", `unexpected end of file, expected "}" to end the Lua block of line %d`, head)
}

// advance goes to the last of the next n bytes.
func (l *lexer) advance(n int) {
	n = min(n, len(l.text)-l.pos)
	l.line += strings.Count(l.text[l.pos:l.pos+n], "\n")
	l.pos += n - 1
}

// luaString gives the length of the quoted string that s starts with.
func luaString(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case s[0], '\n':
			return i + 1
		}
	}
	return len(s)
}

// luaComment gives the length of the comment of which s is what follows "--".
func luaComment(s string) int {
	if n := luaLong(s); n > 0 {
		return n
	}
	if i := strings.IndexByte(s, '\n'); i >= 0 {
		return i
	}
	return len(s)
}

// luaLong gives the length of the long bracket, [[...]] or [=[...]=], that s
// starts with, 0 if it starts with none.
func luaLong(s string) int {
	if !strings.HasPrefix(s, "[") {
		return 0
	}
	level := len(s[1:]) - len(strings.TrimLeft(s[1:], "="))
	if len(s) < level+2 || s[level+1] != '[' {
		return 0
	}
	end := "]" + s[1:level+1] + "]"
	if i := strings.Index(s[level+2:], end); i >= 0 {
		return level + 2 + i + len(end)
	}
	return len(s)
}
