package nginxmap

import (
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

// FuzzLexer looks for texts on which the lexer panics, stands still, or counts
// lines that are not there.
func FuzzLexer(f *testing.F) {
	for _, seed := range []string{
		"/a https://store.com/a;\n", `"a\"b" 'c\'d' e\;f;`, "a ${b}{", "# only a comment", "\ufeffa b;", `"open`,
		"x_by_lua_block { [[ } ]] -- }\n '}' }", "\\", "a\\", "${{ b;", "{}", "a\r\nb;\r\n}", `"a")b;`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l := newLexer(&file{path: "fuzz", text: text})
		lines := 1 + strings.Count(text, "\n")
		for last := -1; ; last = l.pos {
			k, err := l.next()
			if err != nil {
				return
			}
			if l.line > lines || l.pos > len(l.text) || len(l.words) != len(l.lines) {
				t.Fatalf("line %d of %d, at %d of %d, %d words, %d lines", l.line, lines, l.pos, len(l.text), len(l.words), len(l.lines))
			}
			if k == ended {
				return
			}
			if l.pos <= last {
				t.Fatalf("no progress at %d", l.pos)
			}
			if (k == closed) != (len(l.words) == 0) {
				t.Fatalf("kind %d with the words %q", k, l.words)
			}
			if k == opened && strings.HasSuffix(l.words[0], "_by_lua_block") && l.skipLua() != nil {
				return
			}
		}
	})
}

// FuzzParse looks for files on which Parse panics, hangs, or breaks what
// Result promises. The second file can be included by the first.
func FuzzParse(f *testing.F) {
	archives, _ := filepath.Glob("testdata/*.txtar")
	for _, name := range archives {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		second := ""
		if len(archive.Files) > 2 {
			second = string(archive.Files[1].Data)
		}
		f.Add(string(archive.Files[0].Data), second, "", "")
		f.Add(string(archive.Files[0].Data), second, "$target", "https://base.example.com/x")
	}
	f.Add("include more.map;include more.map;", "/a https://a/;", "", "")
	f.Fuzz(func(t *testing.T, first, second, mapName, base string) {
		files := map[string]string{"main.conf": first, "more.map": second}
		result, err := Parse("main.conf", Options{
			MapName: mapName, Base: base, Domain: "go.example.com",
			Read: func(name string) ([]byte, error) {
				if text, ok := files[name]; ok {
					return []byte(text), nil
				}
				return nil, fs.ErrNotExist
			},
			Glob: func(pattern string) (matches []string, err error) {
				if ok, err := path.Match(pattern, "more.map"); err != nil || !ok {
					return nil, err
				}
				return []string{"more.map"}, nil
			},
		})
		if (result == nil) == (err == nil) {
			t.Fatalf("result %v, error %v", result, err)
		}
		if err == nil {
			checkInvariants(t, result)
		}
	})
}
