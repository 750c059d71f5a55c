package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// module makes a module with a function, a test of it, and mutants.
func module(t *testing.T, mutants map[string]string) string {
	t.Helper()
	root := t.TempDir()
	files := map[string]string{
		"go.mod":      "module example.com/sum\n\ngo 1.24\n",
		"sum.go":      "package sum\n\nfunc Sum(a, b int) int {\n\treturn a + b\n}\n\nfunc Untested() int { return 1 }\n",
		"sum_test.go": "package sum\n\nimport \"testing\"\n\nfunc TestSum(t *testing.T) {\n\tif Sum(2, 3) != 5 {\n\t\tt.Fatal(\"wrong\")\n\t}\n}\n",
	}
	for name, text := range mutants {
		files["deploy/mutants/"+name+".txtar"] = text
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func defect(from, to string) string {
	return "It is wrong.\n\nfile: sum.go\ntest: .\n-- old --\n" + from + "\n-- new --\n" + to + "\n"
}

func TestMutantIsNoticedSurvivesOrDoesNotFit(t *testing.T) {
	root := module(t, map[string]string{
		"minus":    defect("\treturn a + b", "\treturn a - b"),
		"panics":   defect("\treturn a + b", "\tpanic(a + b)"),
		"untested": defect("func Untested() int { return 1 }", "func Untested() int { return 2 }"),
		"gone":     defect("\treturn a * b", "\treturn 0"),
		"broken":   defect("\treturn a + b", "\treturn a + c"),
	})
	mutants, err := find(root, nil)
	if err != nil || len(mutants) != 5 {
		t.Fatalf("%d mutants, %v", len(mutants), err)
	}
	r := runner{root: root, dir: t.TempDir()}
	if err := r.sound(t.Context(), mutants); err != nil {
		t.Fatal(err)
	}
	var outcomes []outcome
	for _, m := range mutants {
		o := r.try(t.Context(), m)
		outcomes = append(outcomes, o)
		want := map[string]string{"minus": killed, "panics": killed, "untested": survived, "gone": unfit, "broken": unfit}[m.name]
		if o.verdict != want {
			t.Errorf("%s: %s, want %s\n%s", m.name, o.verdict, want, o.detail)
		}
		if want == killed && o.by != "TestSum" {
			t.Errorf("%s is noticed by %q", m.name, o.by)
		}
	}
	if err := report(outcomes); err == nil || !strings.Contains(err.Error(), "3 of 5") {
		t.Errorf("the report ends with %v", err)
	}
	if text, _ := os.ReadFile(filepath.Join(root, "sum.go")); !strings.Contains(string(text), "a + b") {
		t.Error("the tree was changed")
	}
}

func TestTestsThatFailAnywayProveNothing(t *testing.T) {
	root := module(t, map[string]string{"minus": defect("\treturn a + b", "\treturn a - b")})
	if err := os.WriteFile(filepath.Join(root, "sum.go"), []byte("package sum\n\nfunc Sum(a, b int) int {\n\treturn a + b + 1\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	mutants, err := find(root, []string{"min"})
	if err != nil {
		t.Fatal(err)
	}
	if err := (&runner{root: root, dir: t.TempDir()}).sound(t.Context(), mutants); err == nil {
		t.Error("they count as sound")
	}
}

func TestMutantThatSaysTooLittleIsRefused(t *testing.T) {
	for _, text := range []string{
		"",
		"What.\n-- old --\na\n-- new --\nb\n",
		"What.\nfile: a.go\ntest: .\n-- old --\na\n-- new --\na\n",
		"What.\nfile: a.go\ntest: .\nrum: x\n-- old --\na\n-- new --\nb\n",
		"What.\nfile: a.go\ntest: .\n-- old --\na\n-- now --\nb\n",
	} {
		if m, err := parse("x", []byte(text)); err == nil {
			t.Errorf("%q was taken: %+v", text, m)
		}
	}
	if _, err := find(module(t, nil), nil); err == nil {
		t.Error("no mutants are no error")
	}
}

func TestEveryMutantFitsTheCode(t *testing.T) {
	const root = "../.."
	mutants, err := find(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants {
		text, err := os.ReadFile(filepath.Join(root, m.file))
		if err == nil {
			_, err = m.apply(text)
		}
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}
