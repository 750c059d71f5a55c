package document_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/affleet/affleet/cli/internal/document"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

func problems(t *testing.T, file, text string) []string {
	t.Helper()
	_, found := document.Parse(file, []byte(text))
	var all []string
	for _, p := range found {
		line := p.Error()
		if p.Hint != "" {
			line += " | " + p.Hint
		}
		all = append(all, line)
	}
	return all
}

func TestParseReadsYAMLAndJSONAlike(t *testing.T) {
	yaml := `# two ways to name a field
kind: Link
domain: go.example.com
path: /summer
destination: https://store.com/p/123
statusCode: 301
labels: {team: eu, "1": "2"}
not_before: 2026-12-24
expires_at: "2026-12-31T00:00:00Z"
revision: 12   # read-only: ignored
---
kind: List
items:
- {kind: Affiliate, id: aff_01, state: suspended}
- {kind: Domain, host: "*", not_found: "https://store.com/"}
---
`
	json := "{\"kind\":\"Link\",\"domain\":\"go.example.com\",\"path\":\"/summer\",\n\t\"destination\":\"https:\\/\\/store.com/p/123\"," +
		`"status_code":301,"labels":{"team":"eu","1":"2"},"not_before":"2026-12-24T00:00:00Z","expires_at":"2026-12-31T00:00:00Z","revision":"12"}
	{"kind":"Affiliate","id":"aff_01","state":"AFFILIATE_STATE_SUSPENDED"}
	{"kind":"Domain","host":"*","not_found":"https://store.com/"}`
	fromYAML, bad := document.Parse("a.yaml", []byte(yaml))
	if len(bad) > 0 {
		t.Fatal(bad[0])
	}
	fromJSON, bad := document.Parse("a.json", []byte(json))
	if len(bad) > 0 {
		t.Fatal(bad[0])
	}
	if len(fromYAML) != 3 || len(fromJSON) != 3 {
		t.Fatalf("%d and %d documents, want 3 and 3", len(fromYAML), len(fromJSON))
	}
	for i := range fromYAML {
		if d := cmp.Diff(fromYAML[i].Resource, fromJSON[i].Resource, protocmp.Transform()); d != "" {
			t.Errorf("document %d differs (-YAML +JSON):\n%s", i, d)
		}
	}
	if got := fromYAML[0].Resource.GetLink(); got.GetStatusCode() != 301 || got.GetNotBefore().GetSeconds() != 1798070400 || got.GetRevision() != 0 {
		t.Errorf("got %v", got)
	}
	if got := fromYAML[1].Line; got != 14 {
		t.Errorf("the first item is in line %d, want 14", got)
	}
}

func TestParseReportsEveryProblemWithItsLine(t *testing.T) {
	text := `kind: Link
domain: go.example.com
path: /a
destintion: https://store.com/
status_code: "301"
disabled: maybe
campaign: 2026
labels: [a, b]
---
kind: Lnk
path: /b
---
kind: Link
domain: GO.example.com
path: /c d
destination: ftp://store.com/
path: /e
expires_at: tomorrow
---
- 1
---
domain: x
---
kind: Affiliate
id: a
state: susspended
`
	want := []string{
		`bad.yaml:4: destintion: unknown field of Link; did you mean "destination"?`,
		`bad.yaml:5: status_code must be a whole number, not the string "301"`,
		`bad.yaml:6: disabled must be true or false, not the string "maybe"`,
		`bad.yaml:7: campaign must be a string, not the number 2026 | put it in quotes`,
		`bad.yaml:8: labels must be a mapping, not a list`,
		`bad.yaml:10: kind: there is no "Lnk"; did you mean "Link"? | it is one of Link, Domain, Affiliate, Block, Policy, List`,
		`bad.yaml:17: path is set twice: first in line 15`,
		`bad.yaml:18: expires_at must be a time such as 2026-12-24T18:00:00Z or 2026-12-24, not "tomorrow"`,
		`bad.yaml:20: a document must be a mapping, not the number 1 | it starts with "kind: Link"`,
		`bad.yaml:22: kind is missing | it is one of Link, Domain, Affiliate, Block, Policy, List`,
		`bad.yaml:26: state must be one of ACTIVE, SUSPENDED, not "susspended"; did you mean "SUSPENDED"?`,
	}
	if d := cmp.Diff(want, problems(t, "bad.yaml", text)); d != "" {
		t.Errorf("problems (-want +got):\n%s", d)
	}
}

func TestParseGivesTheLineOfWhatDoesNotValidate(t *testing.T) {
	text := `kind: Link
domain: GO.example.com
path: /a
destination: ftp://store.com/
---
kind: Link
path: /b
destination: https://store.com/
`
	got := strings.Join(problems(t, "bad.yaml", text), "\n")
	for _, want := range []string{"bad.yaml:2: domain:", "bad.yaml:4: destination:", "bad.yaml:6: domain: is missing"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestParseNamesBothLinesOfADuplicate(t *testing.T) {
	text := "kind: Affiliate\nid: a\n---\nkind: Affiliate\nid: b\n---\nkind: Affiliate\nid: a\n"
	want := []string{"x.yaml:7: affiliates/a is in this file twice: first in line 1"}
	if d := cmp.Diff(want, problems(t, "x.yaml", text)); d != "" {
		t.Error(d)
	}
}

func TestParseGivesTheLineOfASyntaxError(t *testing.T) {
	for _, test := range []struct{ file, text, want string }{
		{"x.yaml", "kind: Link\n\tpath: /a\n", "x.yaml:2: found "},
		{"x.yaml", "a: b: c\n", "x.yaml:1: mapping values"},
		{"x.json", "{\"kind\": \"Link\",\n \"path\": }\n", "x.json:2: invalid character"},
		{"x.json", "{\"kind\": \"Link\",\n \"path\": \"/a\"\n", "x.json:3: the JSON ends too early"},
	} {
		got := strings.Join(problems(t, test.file, test.text), "\n")
		if !strings.Contains(got, test.want) {
			t.Errorf("%q: got %q, want %q", test.text, got, test.want)
		}
	}
}

func TestParseBoundsAliases(t *testing.T) {
	bomb := "a: &a {kind: Link}\n"
	for _, text := range []string{
		"kind: List\nitems: &x [*x, *x]\n",
		bomb + "kind: List\nitems: [" + strings.Repeat("*a,", 20_000) + "]\n",
	} {
		if got := problems(t, "x.yaml", text); len(got) == 0 {
			t.Error("an endless document was accepted")
		}
	}
}

func TestParseNamesTheOtherFieldOfAOneof(t *testing.T) {
	text := "kind: Block\nid: b\nreason: r\nprefix: 192.0.2.0/24\naffiliate: a\n"
	want := "x.yaml:5: affiliate cannot be set beside prefix"
	if got := problems(t, "x.yaml", text); len(got) == 0 || got[0] != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWhatIsWrittenReadsBackTheSame(t *testing.T) {
	text := `{"kind":"Link","domain":"*","path":"/a%20b/ü","destination":"https://store.com/?a=1&b=%22","affiliate":"a","labels":{"no":"yes","x":": #"},"status_code":307,"not_before":"2026-12-24T00:00:00.5Z","disabled":true}`
	docs, bad := document.Parse("x.json", []byte(text))
	if len(bad) > 0 {
		t.Fatal(bad[0])
	}
	asJSON, err := document.JSON(docs[0].Resource)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(text, strings.ReplaceAll(string(asJSON), "00.500Z", "00.5Z")); d != "" {
		t.Errorf("JSON (-want +got):\n%s", d)
	}
	asYAML, err := document.YAML(docs[0].Resource)
	if err != nil {
		t.Fatal(err)
	}
	for name, form := range map[string][]byte{"x.json": asJSON, "x.yaml": asYAML} {
		again, bad := document.Parse(name, form)
		if len(bad) > 0 {
			t.Fatalf("%v in\n%s", bad[0], form)
		}
		if !proto.Equal(again[0].Resource, docs[0].Resource) {
			t.Errorf("%s reads back as %v", form, again[0].Resource)
		}
	}
}

func TestEveryFieldReadsBackFromItsText(t *testing.T) {
	for _, kind := range []string{"Link", "Domain", "Affiliate", "Block"} {
		from := document.Message(document.Blank(kind))
		fill(from)
		fields := from.Descriptor().Fields()
		for i := range fields.Len() {
			fd := fields.Get(i)
			text := document.Text(from, fd)
			if !from.Has(fd) {
				continue // a member of a oneof that another one has taken
			}
			to := document.Message(document.Blank(kind))
			if err := document.SetText(to, fd, text); err != nil {
				t.Errorf("%s %q: %v", fd.FullName(), text, err)
				continue
			}
			if !from.Get(fd).Equal(to.Get(fd)) {
				t.Errorf("%s: %q reads back as %q", fd.FullName(), text, document.Text(to, fd))
			}
		}
	}
}

func TestSetTextRefusesWhatDoesNotFit(t *testing.T) {
	for _, test := range []struct{ field, text, want string }{
		{"status_code", "x", `must be a whole number, not "x"`},
		{"status_code", "99999999999", "is out of range: 99999999999"},
		{"disabled", "perhaps", `must be true or false, not "perhaps"`},
		{"not_before", "soon", `must be a time such as 2026-12-24T18:00:00Z or 2026-12-24, not "soon"`},
		{"labels", "a", `must be key=value, not "a"`},
		{"sticky", "clint", `must be one of CLIENT, QUERY, NONE, not "clint"; did you mean "CLIENT"?`},
		{"query", "{", `is not the JSON of this field`},
	} {
		m := (&linkv1.Link{}).ProtoReflect()
		fd := m.Descriptor().Fields().ByTextName(test.field)
		if err := document.SetText(m, fd, test.text); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%s = %q: got %v, want %s", test.field, test.text, err, test.want)
		}
	}
}

func TestNearestFindsWhatWasMeantAndNothingElse(t *testing.T) {
	names := []string{"destination", "domain", "disabled", "path", "status_code"}
	for name, want := range map[string]string{
		"destintion": "destination", "dest": "destination", "Domain": "domain", "statuscode": "status_code",
		"pth": "path", "patj": "path", "htap": "", "colour": "", "": "", "x": "",
	} {
		if got := document.Nearest(name, names); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestParseRowTakesALinkWithoutKind(t *testing.T) {
	r, bad := document.ParseRow([]byte(`{"domain":"*","path":"/a","destination":"https://x.com/"}`))
	if len(bad) > 0 || r.GetLink().GetPath() != "/a" {
		t.Errorf("got %v, %v", r, bad)
	}
	if _, bad = document.ParseRow([]byte(`{"pathh":"/a"}`)); len(bad) != 1 || !strings.Contains(bad[0].Message, `did you mean "path"`) {
		t.Errorf("got %v", bad)
	}
	if _, bad = document.ParseRow([]byte(`[]`)); len(bad) != 1 {
		t.Errorf("got %v", bad)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("x.yaml", []byte("kind: Link\npath: /a\nrules:\n- when: x\n  splits: {splits: [{name: a}]}\n"))
	f.Add("x.yaml", []byte("kind: List\nitems: &x [*x]\n---\n<<: {a: b}\n"))
	f.Add("x.json", []byte(`[{"kind":"Domain","host":"*"},{"kind":"Link","labels":{"a":"b"},"not_before":"2026-01-01"}]`))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		docs, bad := document.Parse(name, data)
		for _, p := range bad {
			if p.Line < 0 || p.Message == "" {
				t.Errorf("problem %+v", p)
			}
		}
		for _, d := range docs {
			text, err := document.YAML(d.Resource)
			if err != nil {
				t.Fatal(err)
			}
			again, bad := document.Parse("again.yaml", text)
			if len(bad) > 0 || len(again) != 1 || !proto.Equal(again[0].Resource, d.Resource) {
				t.Fatalf("%v reads back as %v, %v from\n%s", d.Resource, again, bad, text)
			}
		}
		_, _ = document.ParseRow(data)
	})
}
