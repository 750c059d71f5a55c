package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	env := func(name string) string {
		if name == envConfig {
			return t.TempDir() + "/config.yaml"
		}
		return ""
	}
	code = Main(t.Context(), args, strings.NewReader(""), &out, &errs, env)
	return code, out.String(), errs.String()
}

func TestHelpOfEveryCommandFitsAScreenAndHasAnExample(t *testing.T) {
	root := newRoot(newApp(strings.NewReader(""), io.Discard, io.Discard, func(string) string { return "" }))
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		if cmd.Name() == "help" || cmd.HasParent() && cmd.Parent().Name() == "completion" {
			return // cobra's own
		}
		text := helpText(cmd)
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if len(lines) > 50 {
			t.Errorf("%s --help has %d lines", cmd.CommandPath(), len(lines))
		}
		for _, line := range lines {
			if utf8.RuneCountInString(line) > 80 {
				t.Errorf("%s --help has a line of %d columns: %s", cmd.CommandPath(), utf8.RuneCountInString(line), line)
			}
		}
		if cmd.HasParent() && !cmd.IsAdditionalHelpTopicCommand() && cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		for _, child := range cmd.Commands() {
			visit(child)
		}
	}
	visit(root)
}

func TestHelpTopicsAndBareNounsPrintHelp(t *testing.T) {
	for _, args := range [][]string{{"help", "exit-codes"}, {"help", "connection"}, {"link"}, {}, {"link", "--help"}, {"completion", "bash"}} {
		if code, out, errs := run(t, args...); code != codeOK || out == "" || errs != "" {
			t.Errorf("affctl %v: exit code %d, stdout %q, stderr %q", args, code, out, errs)
		}
	}
}

func TestLinkKeyReadsWhatPeopleType(t *testing.T) {
	for arg, want := range map[string]string{
		"go.example.com/summer":             "go.example.com /summer",
		"GO.Example.com:8080/Summer":        "go.example.com /Summer",
		"/go/x":                             "* /go/x",
		"*/go/x":                            "* /go/x",
		"links/*/go/x":                      "* /go/x",
		"links/go.example.com/x":            "go.example.com /x",
		"https://go.example.com/%73ummer":   "go.example.com /summer",
		"go.example.com/":                   "go.example.com /",
		"go.example.com":                    "",
		"":                                  "",
		"links/":                            "",
		"go example.com/x":                  "",
		"go.example.com/x?y=1":              "",
		"go.example.com/%zz":                "",
		"go.example.com/a/../b":             "",
		"go.example.com/\x00":               "",
		"go.example.com/" + "\xff\xfe":      "",
		"/" + strings.Repeat("x", 9000):     "",
		strings.Repeat("a", 300) + ".com/x": "",
	} {
		domain, path, err := linkKey(arg)
		got := domain + " " + path
		if err != nil {
			got = ""
			if describe(err).code != codeUsage {
				t.Errorf("linkKey(%q): %v is not an error of usage", arg, err)
			}
		}
		if got != want {
			t.Errorf("linkKey(%q) = %q, %v, want %q", arg, got, err, want)
		}
	}
}

func TestRelativeTimesStartFromNow(t *testing.T) {
	a := newApp(nil, io.Discard, io.Discard, nil)
	a.now = func() time.Time { return time.Date(2026, 12, 24, 18, 0, 0, 0, time.UTC) }
	fd := (&linkv1.Link{}).ProtoReflect().Descriptor().Fields().ByName("expires_at")
	for text, want := range map[string]string{
		"+36h": "2026-12-26T06:00:00Z", "+30d": "2027-01-23T18:00:00Z", "+x": "+x", "2026-12-24": "2026-12-24", "+1dd": "+1dd",
	} {
		if got := a.relativeTime(fd, text); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

func TestMergeLabelsAddsChangesAndRemoves(t *testing.T) {
	before := map[string]string{"a": "1", "b": "2"}
	got, err := mergeLabels(before, []string{"a=3", "b-", "c="})
	if err != nil || fmt.Sprint(got) != "map[a:3 c:]" || fmt.Sprint(before) != "map[a:1 b:2]" {
		t.Errorf("got %v, %v; before is %v", got, err, before)
	}
	for _, bad := range []string{"", "a", "=x", "-"} {
		if _, err := mergeLabels(nil, []string{bad}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestKeyIndexTellsDuplicatesFromOtherCase(t *testing.T) {
	k := newKeyIndex()
	for i, test := range []struct {
		path string
		twin int
		same bool
	}{
		{"/a", 0, false}, {"/b", 0, false}, {"/a", 1, true}, {"/A", 1, false}, {"/A", 4, true}, {"/B", 2, false}, {"/b", 2, true},
	} {
		r := &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: "*", Path: test.path}}}
		twin, same := k.find(r, place{"f", i + 1})
		if twin.line != test.twin || same != test.same {
			t.Errorf("%d: %s: got line %d, %v, want line %d, %v", i+1, test.path, twin.line, same, test.twin, test.same)
		}
	}
}

func TestUnifiedDiff(t *testing.T) {
	number := func(from, to int) string {
		var b strings.Builder
		for i := from; i <= to; i++ {
			fmt.Fprintf(&b, "%d\n", i)
		}
		return b.String()
	}
	for _, test := range []struct{ name, before, after, want string }{
		{"same", "a\n", "a\n", ""},
		{"new", "", "a\nb\n", "--- x\n+++ y\n@@ -0,0 +1,2 @@\n+a\n+b\n"},
		{"gone", "a\n", "", "--- x\n+++ y\n@@ -1 +0,0 @@\n-a\n"},
		{"one line", "a\nb\nc\n", "a\nB\nc\n", "--- x\n+++ y\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"},
		{
			"two hunks", number(1, 30), strings.Replace(strings.Replace(number(1, 30), "\n5\n", "\n", 1), "25\n", "25\n25b\n", 1),
			"--- x\n+++ y\n@@ -2,7 +2,6 @@\n 2\n 3\n 4\n-5\n 6\n 7\n 8\n@@ -23,6 +22,7 @@\n 23\n 24\n 25\n+25b\n 26\n 27\n 28\n",
		},
	} {
		if got := unifiedDiff(test.before, test.after, "x", "y"); got != test.want {
			t.Errorf("%s: got\n%s\nwant\n%s", test.name, got, test.want)
		}
	}
}

func TestTableKeepsARowInALineOfATerminal(t *testing.T) {
	a := newApp(nil, io.Discard, io.Discard, func(string) string { return "" })
	table := a.table("LINK", "N")
	table.right["N"] = true
	table.row("a"+strings.Repeat("ü", 100)+"\x1b[31m", "1")
	table.row("b", "1000")
	var b strings.Builder
	table.write(&b, 40)
	want := "LINK                                   N\na" + strings.Repeat("ü", 32) + "…     1\nb                                   1000\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	table.write(&b, 0)
	if !strings.Contains(b.String(), strings.Repeat("ü", 100)+"?[31m") {
		t.Errorf("got %q", b.String())
	}
}

func TestAgeAndThousands(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-1: "0ms", 43 * time.Millisecond: "43ms", 90 * time.Second: "90s", 12 * time.Minute: "12m", 5 * time.Hour: "5h", 72 * time.Hour: "3d",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%v) = %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) = %s, want %s", n, got, want)
		}
	}
}

func FuzzLinkKey(f *testing.F) {
	f.Add("https://go.example.com:80/a%20b")
	f.Add("links/*/x")
	f.Fuzz(func(t *testing.T, arg string) {
		domain, path, err := linkKey(arg)
		if err != nil {
			return
		}
		again, path2, err := linkKey(domain + path)
		if err != nil || again != domain || path2 != path {
			t.Errorf("%q is %q %q, which is %q %q, %v", arg, domain, path, again, path2, err)
		}
	})
}

func TestMainEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	code := Main(ctx, []string{"--server", "127.0.0.1:1", "link", "list"}, strings.NewReader(""), &out, &errs, func(string) string { return "" })
	if code == codeOK || errs.Len() == 0 {
		t.Errorf("exit code %d, stderr %q", code, errs.String())
	}
}
