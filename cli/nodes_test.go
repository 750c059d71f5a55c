package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/rivo/uniseg"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
)

// onPaper gives an affctl whose output is no terminal: 80 columns and 24 rows.
func onPaper() *app {
	return newApp(strings.NewReader(""), new(bytes.Buffer), new(bytes.Buffer), func(string) string { return "" })
}

func TestNodesAreRefreshedInPlaceHoweverLongALineIs(t *testing.T) {
	a := onPaper()
	text, err := a.nodesText(&adminv1.ListNodesResponse{
		Nodes: []*adminv1.Node{{Name: "n1", Region: "eu", ConnectTime: timestamppb.New(time.Now())}},
		Alarms: []string{
			"revision 4711 is held back: it leaves 900 of 1500 links, and more than 20% of them may not go within 1m0s; look at what was written, and then: affctl fleet release --version 4711",
			strings.Repeat("漢字", 50), // two columns each
		},
	}, "table")
	if err != nil {
		t.Fatal(err)
	}
	columns, _ := a.size()
	rows := func(text string) (n int) {
		for line := range strings.Lines(text) {
			n += max(1, (uniseg.StringWidth(strings.TrimSuffix(line, "\n"))+columns-1)/columns)
		}
		return n
	}
	if rows(text) <= strings.Count(text, "\n") {
		t.Fatalf("no line is too long:\n%s", text)
	}
	shown, up := a.overwrite(text, 0)
	if rows(shown) != up {
		t.Errorf("%d rows are shown, and the next refresh begins %d higher:\n%s", rows(shown), up, shown)
	}
	if again, _ := a.overwrite(text, up); again != "\x1b[4A\x1b[J"+shown {
		t.Errorf("the refresh is %q", again)
	}
}

func TestNodesThatAreMoreThanTheScreenHasRowsAreCounted(t *testing.T) {
	shown, up := onPaper().overwrite(strings.Repeat("node\n", 100), 0)
	if want := strings.Repeat("node\n", 22) + "and 78 more lines\n"; shown != want || up != 23 {
		t.Errorf("%d rows:\n%s", up, shown)
	}
}

func TestLineIsCutAtTheTerminalsEdge(t *testing.T) {
	for in, want := range map[string]string{
		"":                                "",
		"12345678":                        "12345678",
		"123456789":                       "1234567…",
		"\x1b[31malarm:\x1b[0m 1":         "\x1b[31malarm:\x1b[0m 1",
		"\x1b[31malarm:\x1b[0m 123":       "\x1b[31malarm:\x1b[0m …",
		"\x1b[31mtoo long by far\x1b[0m":  "\x1b[31mtoo lon…\x1b[0m",
		"漢字漢字":                            "漢字漢字",
		"漢字漢字漢":                           "漢字漢…",
		"e\u0301e\u0301345678":            "e\u0301e\u0301345678",
		"a\x1b[1mb\x1b[0mcdefghijk\x1b[m": "a\x1b[1mb\x1b[0mcdefg…\x1b[m",
	} {
		if got := clip(in, 8); got != want {
			t.Errorf("%q is cut to %q, want %q", in, got, want)
		}
	}
	if got := clip("ab", 1); got != "…" {
		t.Errorf("in one column: %q", got)
	}
}
