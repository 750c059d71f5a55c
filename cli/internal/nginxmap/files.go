package nginxmap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
	"unsafe"

	"github.com/affleet/affleet/proto/link"
)

// maxIncludes bounds how many includes are followed, for configurations in
// which files include each other many times over.
const maxIncludes = 10_000

// file is a text that was read once.
type file struct {
	path string
	text string
}

// files reads and finds files, each once.
type files struct {
	read   func(string) ([]byte, error)
	glob   func(string) ([]string, error)
	dir    string // of the main file
	known  map[string]*file
	active []string // the chain of includes that is being read
	count  int
}

func (s *files) load(path string) (*file, error) {
	name := filepath.Clean(path)
	if f := s.known[name]; f != nil {
		return f, nil
	}
	data, err := s.read(path)
	if err != nil {
		return nil, err
	}
	// The bytes are ours by the contract of Options.Read, and a map of a
	// million lines is not worth a second copy.
	f := &file{path: path, text: unsafe.String(unsafe.SliceData(data), len(data))}
	s.known[name] = f
	return f, nil
}

// enter notes that f is being read from now on, until leave.
func (s *files) enter(f *file, from *lexer) error {
	if i := slices.Index(s.active, f.path); i >= 0 {
		return from.failAt(from.lines[0], "", "include of %s goes round in a circle: %s",
			f.path, strings.Join(append(s.active[i:], f.path), " -> "))
	}
	if s.count++; s.count > maxIncludes {
		return from.failAt(from.lines[0], "", "more than %d includes", maxIncludes)
	}
	s.active = append(s.active, f.path)
	return nil
}

func (s *files) leave() { s.active = s.active[:len(s.active)-1] }

// included gives the files that an include names, none for a pattern without
// matches. nginx looks in the folder of nginx.conf. That is the folder of the
// main file here, or, where the main file is itself an included one, the
// folder above; the folder of the including file comes between them.
func (s *files) included(pattern string, from *lexer) ([]*file, error) {
	dirs := []string{s.dir, filepath.Dir(from.file), filepath.Dir(s.dir)}
	if filepath.IsAbs(pattern) {
		dirs = []string{""}
	}
	if strings.ContainsAny(pattern, "*?[") {
		return s.matches(pattern, dirs)
	}
	var first error
	for _, dir := range dirs {
		f, err := s.load(filepath.Join(dir, pattern))
		if err == nil {
			return []*file{f}, nil
		}
		if first == nil {
			first = err
		}
		if !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return nil, first
}

func (s *files) matches(pattern string, dirs []string) ([]*file, error) {
	for _, dir := range dirs {
		paths, err := s.glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		var all []*file
		for _, path := range paths {
			f, err := s.load(path)
			if err != nil {
				return nil, err
			}
			all = append(all, f)
		}
		if len(all) > 0 {
			return all, nil
		}
	}
	return nil, nil
}

// globFiles is filepath.Glob by the rules of glob(3): "[!a]" negates, and a
// wildcard does not match the dot that a name starts with.
func globFiles(pattern string) ([]string, error) {
	paths, err := filepath.Glob(strings.ReplaceAll(pattern, "[!", "[^"))
	if err != nil {
		return nil, err
	}
	want := strings.Split(filepath.ToSlash(pattern), "/")
	return slices.DeleteFunc(paths, func(path string) bool {
		have := strings.Split(filepath.ToSlash(path), "/")
		for i, name := range have {
			if strings.HasPrefix(name, ".") && i < len(want) && !strings.HasPrefix(want[i], ".") {
				return true
			}
		}
		return false
	}), nil
}

// failure is the error for one line.
func failure(path string, line int, hint, format string, args ...any) error {
	return &link.Error{
		Kind:    link.Invalid,
		Message: fmt.Sprintf("%s:%d: ", path, line) + fmt.Sprintf(format, args...),
		Hint:    hint,
	}
}

// unreadable is the error for a file that is named on the command line.
func unreadable(path string, err error) error {
	return &link.Error{Kind: link.Invalid, Message: "read " + path + ": " + reason(err), Err: err}
}

// reason is what is wrong with a file, without its path.
func reason(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}

// shorten quotes s for a message, and cuts it where it would fill the screen.
func shorten(s string) string {
	const most = 120
	if len(s) <= most {
		return fmt.Sprintf("%q", s)
	}
	cut := most
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return fmt.Sprintf("%q", s[:cut]+"...")
}

// firstRune is the first character of s.
func firstRune(s string) string {
	_, n := utf8.DecodeRuneInString(s)
	return s[:n]
}
