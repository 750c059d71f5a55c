package nginxmap

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/affleet/affleet/proto/link"
)

var update = flag.Bool("update", false, "write the golden parts of testdata")

// TestParseGivesWhatTheTestdataSay reads the first file of each archive, with
// the options of its comment, and compares the outcome with the part "want".
func TestParseGivesWhatTheTestdataSay(t *testing.T) {
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	for _, name := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			opts := memory(archive)
			for line := range strings.Lines(string(archive.Comment)) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
				switch key {
				case "domain":
					opts.Domain = value
				case "map":
					opts.MapName = value
				case "base":
					opts.Base = value
				}
			}
			result, err := Parse(archive.Files[0].Name, opts)
			got := outcome(result, err)
			want := &archive.Files[len(archive.Files)-1]
			if want.Name != "want" {
				t.Fatal("the last part is not \"want\"")
			}
			if *update {
				want.Data = []byte(got)
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got != string(want.Data) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want.Data)
			}
			if err == nil {
				checkInvariants(t, result)
			}
		})
	}
}

// memory gives options that read the files of an archive.
func memory(archive *txtar.Archive) Options {
	files := map[string][]byte{}
	var names []string
	for _, f := range archive.Files {
		files[f.Name] = f.Data
		names = append(names, f.Name)
	}
	slices.Sort(names)
	return Options{
		Read: func(name string) ([]byte, error) {
			if data, ok := files[name]; ok {
				return slices.Clone(data), nil
			}
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		},
		Glob: func(pattern string) (matches []string, err error) {
			for _, name := range names {
				if ok, err := path.Match(pattern, name); ok || err != nil {
					matches = append(matches, name)
				}
			}
			return matches, nil
		},
	}
}

// outcome writes a result as people can compare it.
func outcome(r *Result, err error) string {
	var b strings.Builder
	hint := func(s string) {
		if s != "" {
			fmt.Fprintf(&b, "    hint: %s\n", s)
		}
	}
	if err != nil {
		for _, p := range link.Problems(err) {
			fmt.Fprintf(&b, "error: %s\n", p)
			hint(p.Hint)
		}
		return b.String()
	}
	fmt.Fprintf(&b, "map %q on %q, code %d\n", r.Map, r.Source, r.StatusCode)
	if r.HasDefault {
		fmt.Fprintf(&b, "%s:%d: default of %s -> %s\n", r.DefaultFile, r.DefaultLine, r.DefaultHost, r.Default)
	}
	for _, e := range r.Entries {
		fmt.Fprintf(&b, "%s:%d: %s%s -> %s\n", e.File, e.Line, e.Host, e.Path, e.Destination)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "%s:%d: %s: %s\n", n.File, n.Line, n.Severity, n.Text)
		hint(n.Hint)
	}
	return b.String()
}

// checkInvariants checks what Result promises.
func checkInvariants(t *testing.T, r *Result) {
	t.Helper()
	seen := map[string]bool{}
	for _, e := range r.Entries {
		if host, err := link.CanonicalHost(e.Host); err != nil || host != e.Host {
			t.Errorf("%+v: host is not canonical: %v", e, err)
		}
		if e.Path != "" {
			if p, err := link.CanonicalPath(e.Path); err != nil || p != e.Path {
				t.Errorf("%+v: path is not canonical: %v", e, err)
			}
		}
		if err := link.CheckDestination("destination", e.Destination); err != nil {
			t.Errorf("%+v: %v", e, err)
		}
		if e.File == "" || e.Line < 1 {
			t.Errorf("%+v: has no place", e)
		}
		key := string(appendLower(nil, e.Host+" "+e.Path))
		if seen[key] {
			t.Errorf("%+v: is there twice", e)
		}
		seen[key] = true
	}
	if r.HasDefault {
		if err := link.CheckDestination("default", r.Default); err != nil || r.DefaultHost == "" {
			t.Errorf("default %q of %q: %v", r.Default, r.DefaultHost, err)
		}
	}
	for _, n := range r.Notes {
		if n.File == "" || n.Line < 1 || n.Text == "" || strings.ContainsRune(n.Text+n.Hint, '\n') || n.Severity != Warning && n.Severity != Error {
			t.Errorf("note %+v", n)
		}
	}
}
