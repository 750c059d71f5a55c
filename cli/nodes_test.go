package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/rivo/uniseg"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
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
	}, "", "table")
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
	shown, up := a.overwrite(text, 0, 0)
	if rows(shown) != up {
		t.Errorf("%d rows are shown, and the next refresh begins %d higher:\n%s", rows(shown), up, shown)
	}
	if again, _ := a.overwrite(text, 0, up); again != "\x1b[4A\x1b[K"+strings.ReplaceAll(strings.TrimSuffix(shown, "\n"), "\n", "\n\x1b[K")+"\n\x1b[J" {
		t.Errorf("the refresh is %q", again)
	}
}

func TestNodesThatAreMoreThanTheScreenHasRowsAreCounted(t *testing.T) {
	shown, up := onPaper().overwrite(strings.Repeat("node\n", 100), 0, 0)
	if want := strings.Repeat("node\n", 22) + "and 78 more lines\n"; shown != want || up != 23 {
		t.Errorf("%d rows:\n%s", up, shown)
	}
}

func TestAlarmsStayOnTheScreenHoweverManyNodesThereAre(t *testing.T) {
	a := onPaper()
	resp := &adminv1.ListNodesResponse{Alarms: []string{"held back"}}
	for range 100 {
		resp.Nodes = append(resp.Nodes, &adminv1.Node{Name: "n", ConnectTime: timestamppb.New(time.Now())})
	}
	text, err := a.nodesText(resp, "", "table")
	if err != nil {
		t.Fatal(err)
	}
	shown, up := a.overwrite(text, beneath(text, resp.GetNodes()), 0)
	if want := "and 80 more lines\nalarm: held back\n"; !strings.HasSuffix(shown, want) || up != 23 {
		t.Errorf("%d rows:\n%s", up, shown)
	}
	// What is wrong does not push out the nodes.
	if shown, up = a.overwrite(text, 90, 0); !strings.HasPrefix(shown, "NODE ") || up != 23 {
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

func TestNodeThatLagsAndHoldsSomethingElseIsToldFromOneOfWhichThatIsNotKnown(t *testing.T) {
	head := &linkv1.Version{Epoch: 1, Revision: 9}
	node := func(name, replica string, revision int64, match bool) *adminv1.Node {
		return &adminv1.Node{
			Name: name, Region: "eu", Replica: replica, Version: &linkv1.Version{Epoch: 1, Revision: revision},
			SetHashMatch: match, LagRevisions: head.Revision - revision, ConnectTime: timestamppb.New(time.Now()),
		}
	}
	resp := &adminv1.ListNodesResponse{Head: head, Nodes: []*adminv1.Node{
		node("wrong", "a", 7, false), node("right", "a", 7, true), node("other-replica", "b", 7, false),
		node("long-ago", "a", 3, false), node("wrong-at-the-head", "a", 9, false), node("new", "a", 0, false),
	}}
	text, err := onPaper().nodesText(resp, "", "table")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(text, "\n")
	for i, want := range []string{"differs", "ok", "-", "-", "differs", "-"} {
		if got := strings.Fields(lines[i+1])[4]; got != want {
			t.Errorf("HASH is %s, want %s: %s", got, want, lines[i+1])
		}
	}
	for _, name := range []string{"wrong", "wrong-at-the-head"} {
		if line := name + ": holds something else than the control plane at the same version\n"; !strings.Contains(text, line) {
			t.Errorf("nothing says %q:\n%s", line, text)
		}
	}
	if n := strings.Count(text, "something else"); n != 2 {
		t.Errorf("%d nodes are said to hold something else:\n%s", n, text)
	}
}
