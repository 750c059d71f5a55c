package nginxmap

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/affleet/affleet/proto/link"
)

// parseText parses one text that needs no other file.
func parseText(text string, opts Options) (*Result, error) {
	opts.Read = func(name string) ([]byte, error) {
		if name == "r.conf" {
			return []byte(text), nil
		}
		return nil, fs.ErrNotExist
	}
	return Parse("r.conf", opts)
}

// The third column is what nginx 1.22, as Debian builds it, says of the same;
// empty where it loads that, or has no such module.
func TestParseNamesTheLineThatNginxRefuses(t *testing.T) {
	long := strings.Repeat("x", maxWord)
	for _, test := range []struct{ name, text, nginx, want, hint string }{
		{
			"no semicolon", "map $uri $t {\n/a b\n/c d;\n}", "invalid number of the map parameters",
			`r.conf:2: expected ";" after "b"`, "",
		},
		{
			"no semicolon at the end", "/a b", "unexpected end of file, expecting \";\" or \"}\"",
			`r.conf:1: unexpected end of file, expected ";" after "b"`, "",
		},
		{
			"no semicolon before the brace", "map $uri $t {\n/a b\n}", `unexpected "}"`,
			`r.conf:3: unexpected "}", expected ";" after "b"`, "",
		},
		{
			"spaces in the value", "\n/a b c d;", "invalid number of the map parameters",
			`r.conf:2: expected "key value;", found 4 words: "/a b c" ...`, "put quotes around a key or value with spaces in it",
		},
		{
			"one word", "/a;", "invalid number of the map parameters",
			`r.conf:1: expected "key value;", found only "/a"`, "",
		},
		{
			"no closing brace", "map $uri $t {\n/a b;\n", `unexpected end of file, expecting "}"`,
			`r.conf:3: unexpected end of file, expected "}" to end the map of line 1`, "",
		},
		{
			"no closing brace of http", "http {\nmap $uri $t {\n/a b;\n}\n", `unexpected end of file, expecting "}"`,
			`r.conf:5: unexpected end of file, expected "}" to end the http block of line 1`, "",
		},
		{
			"one brace too many", "map $uri $t {\n/a b;\n}\n}", `unexpected "}"`,
			`r.conf:4: unexpected "}", which ends no block`, "",
		},
		{
			"brace in a fragment", "/a b;\n}", `unexpected "}"`,
			`r.conf:2: unexpected "}", which ends no block`, "",
		},
		{
			"block in a map", "map $uri $t {\n/a {\nb c;\n}\n}", `unexpected "{"`,
			`r.conf:2: unexpected "{": a map has only "key value;" lines`, "",
		},
		{
			"open quote", "/a b;\n\"/c d;\n/e f;\n", "unexpected end of file",
			`r.conf:2: unexpected end of file, expected "\"" to close the one here`, "",
		},
		{
			"quote within a word", "\"/a\"b c;", `unexpected "b"`,
			`r.conf:1: unexpected "b" behind "/a", expected white space or ";"`, "a quote is probably missing",
		},
		{
			"comment behind a quote", "\"/a\"#b\n c;", `unexpected "#"`,
			`r.conf:1: unexpected "#" behind "/a", expected white space or ";"`, "a quote is probably missing",
		},
		{
			"nothing before the semicolon", "/a b;;", `unexpected ";"`,
			`r.conf:1: unexpected ";", expected a directive`, "",
		},
		{
			"word too long", "/" + long + " b;", "too long parameter",
			`r.conf:1: the word that starts with "/xxxxxxxxxxxxxxxxxxx" is longer than 4094 bytes`, "",
		},
		{
			"quoted word too long", "\"/" + long + "\" b;", "too long parameter",
			`r.conf:1: the quoted word that starts with "/xxxxxxxxxxxxxxxxxxx" is longer than 4094 bytes`, "a closing quote is probably missing",
		},
		{
			"map without variable", "map $uri {\n}", "invalid number of arguments",
			`r.conf:1: expected "map $source $target {"`, "",
		},
		{
			"map on a word", "map $uri target {\n}", "invalid variable name",
			`r.conf:1: expected "map $source $target {"`, "",
		},
		{
			"lua block", "http {\ninit_by_lua_block { [[ } \n}", "",
			`r.conf:3: unexpected end of file, expected "}" to end the Lua block of line 2`, "",
		},
		{
			"no map", "http { server { listen 80; } }", "",
			`r.conf has no map block`, `a map looks like "map $uri $target { /go/a https://store.com/a; }"`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseText(test.text, Options{Domain: "go.example.com"})
			if err == nil {
				t.Fatal("no error")
			}
			p := link.Problems(err)
			if len(p) != 1 || p[0].Kind != link.Invalid || p[0].Error() != test.want || p[0].Hint != test.hint {
				t.Errorf("got  %q, hint %q\nwant %q, hint %q", err, p[0].Hint, test.want, test.hint)
			}
		})
	}
}

func TestParseRefusesOptionsThatCannotBe(t *testing.T) {
	const text = "map $uri $a { /a https://store.com/; }"
	for _, test := range []struct {
		opts Options
		want string
	}{
		{Options{Domain: "two words"}, `domain: "two words" is not a host`},
		{Options{Domain: "a.com", Base: "/relative"}, `base: "/relative" is relative`},
		{Options{Domain: "a.com", MapName: "$b"}, "r.conf has no map $b; it has $a (on $uri, r.conf:1)"},
	} {
		if _, err := parseText(text, test.opts); err == nil || err.Error() != test.want {
			t.Errorf("%+v: got %v, want %s", test.opts, err, test.want)
		}
	}
	if _, err := Parse(filepath.Join(t.TempDir(), "gone.conf"), Options{}); err == nil || !strings.HasSuffix(err.Error(), "gone.conf: no such file or directory") {
		t.Errorf("missing file: %v", err)
	}
}

func TestParseFindsTheMapByNameInAnyForm(t *testing.T) {
	const text = "map $uri $Target { /a https://store.com/a; } map $uri $b { /b https://store.com/b; }"
	for _, name := range []string{"$Target", "$target", "target", "${target}"} {
		result, err := parseText(text, Options{Domain: "a.com", MapName: name})
		if err != nil || result.Map != "$Target" || len(result.Entries) != 1 {
			t.Errorf("%s: %+v, %v", name, result, err)
		}
	}
}

func TestParseTakesTheCallersWordsForNone(t *testing.T) {
	const text = "/a gone; /b none; /c \"\"; default GONE;"
	result, err := parseText(text, Options{Domain: "a.com", None: []string{"gone"}})
	if err != nil || result.HasDefault || len(result.Entries) != 0 {
		t.Fatalf("%+v, %v", result, err)
	}
	if len(result.Notes) != 1 || result.Notes[0].Severity != Error {
		t.Errorf("/b should be the only error: %+v", result.Notes)
	}
	result, err = parseText("/a -; /b NONE; /c off; /d 0; default false;", Options{Domain: "a.com"})
	if err != nil || result.HasDefault || len(result.Entries)+len(result.Notes) != 0 {
		t.Errorf("%+v, %v", result, err)
	}
}

func TestParseReadsWhatOnDiskIncludesName(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"nginx.conf":        "http { map $uri $t { include maps/[!x]*.map; include maps/none-*.map; } include conf.d/*; }",
		"maps/a.map":        "/a https://store.com/a;",
		"maps/b.map":        "/b https://store.com/b;",
		"maps/x.map":        "/x https://store.com/x;",
		"maps/.hidden.map":  "/hidden https://store.com/hidden;",
		"conf.d/.swp":       "}}}",
		"conf.d/site.conf":  "server { return 307 $t; }",
		"conf.d/other.conf": "server { listen 80; }",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	result, err := Parse(filepath.Join(dir, "nginx.conf"), Options{Domain: "a.com"})
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, e := range result.Entries {
		paths = append(paths, e.Path)
	}
	if !slices.Equal(paths, []string{"/a", "/b"}) || result.StatusCode != http.StatusTemporaryRedirect {
		t.Errorf("paths %q, code %d", paths, result.StatusCode)
	}
	if len(result.Notes) != 1 || !strings.Contains(result.Notes[0].Text, "matches no file") {
		t.Errorf("notes: %+v", result.Notes)
	}
}

func TestParseBoundsIncludesThatFanOut(t *testing.T) {
	// Each file includes the next one ten times: 10^8 in all.
	files := map[string]string{}
	for i := range 8 {
		files[fmt.Sprintf("%d.conf", i)] = strings.Repeat(fmt.Sprintf("include %d.conf;", i+1), 10)
	}
	files["8.conf"] = "# the end"
	_, err := Parse("0.conf", Options{Read: func(name string) ([]byte, error) { return []byte(files[name]), nil }})
	if err == nil || !strings.Contains(err.Error(), "more than 10000 includes") {
		t.Errorf("got %v", err)
	}
}

// TestEveryLineIsCarriedOverOrNoted writes maps of odd keys and values, one on
// each line, and looks for a line that is neither an entry nor in an Error note.
func TestEveryLineIsCarriedOverOrNoted(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	for range 300 {
		source := pick("$uri", "$request_uri", "$host$uri", "$http_host$request_uri", "$host", "")
		var b strings.Builder
		if source != "" {
			fmt.Fprintf(&b, "map %s $t {\n", source)
		}
		first := 1 + strings.Count(b.String(), "\n")
		const lines = 40
		for range lines {
			key := pick("", "go.example.com", "GO.example.com:80", ".a.example", "*.b.example", "-", "~", `\\`, "é.example")
			for range random.IntN(4) {
				key += pick("/a", "/B", "/", "//", "/..", "?x=1", "%20", "%", "%zz", "é", "\xff", " ", "#", "*", `\"`, `\\`, "/*", "$x")
			}
			value := pick("https://store.com/", "http://x.example", "/rel", "//x.example/", "a/b", "https://a@b/", "") +
				pick("", "", "", "ü", " ", "{x}", "$1", "$is_args$args", "%zz", `\\`, `\t`)
			if value == "" {
				value = "x"
			}
			fmt.Fprintf(&b, "\"%s\" \"%s\";\n", key, value)
		}
		if source != "" {
			b.WriteString("}\n")
		}
		result, err := parseText(b.String(), Options{Domain: "d.example", Base: pick("", "https://base.example")})
		if err != nil {
			t.Fatalf("%v\n%s", err, &b)
		}
		checkInvariants(t, result)
		told := map[int]bool{}
		for _, e := range result.Entries {
			told[e.Line] = true
		}
		for _, n := range result.Notes {
			if n.Severity == Error {
				if told[n.Line] && slices.ContainsFunc(result.Entries, func(e Entry) bool { return e.Line == n.Line }) {
					t.Errorf("line %d is carried over, and an error: %s", n.Line, n.Text)
				}
				told[n.Line] = true
			}
		}
		for line := first; line < first+lines; line++ {
			if !told[line] {
				t.Errorf("line %d is left out silently: %s", line, strings.Split(b.String(), "\n")[line-1])
			}
		}
	}
}
