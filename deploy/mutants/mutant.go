package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

// mutant is a defect.
type mutant struct {
	name, what string
	file       string // from the module's folder
	old, new   string
	tests      []string // packages
	pattern    string   // of tests; empty: all
}

// parse reads a mutant's file.
func parse(name string, text []byte) (*mutant, error) {
	archive := txtar.Parse(text)
	head, settings, _ := strings.Cut(strings.TrimSpace(string(archive.Comment)), "\n")
	m := &mutant{name: name, what: head}
	for line := range strings.Lines(settings) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "":
		case "file":
			m.file = value
		case "test":
			m.tests = strings.Fields(value)
		case "run":
			m.pattern = value
		default:
			return nil, fmt.Errorf("%q is not file, test or run", key)
		}
	}
	for _, f := range archive.Files {
		switch f.Name {
		case "old":
			m.old = string(f.Data)
		case "new":
			m.new = string(f.Data)
		default:
			return nil, fmt.Errorf("%q is not old or new", f.Name)
		}
	}
	switch {
	case m.what == "":
		return nil, errors.New("the first line does not say what it does")
	case m.file == "", len(m.tests) == 0:
		return nil, errors.New("file or test is missing")
	case m.old == "" || m.old == m.new:
		return nil, errors.New("old is missing, or the same as new")
	}
	return m, nil
}

// apply gives the file with the defect.
func (m *mutant) apply(text []byte) ([]byte, error) {
	if n := bytes.Count(text, []byte(m.old)); n != 1 {
		return nil, fmt.Errorf("%s has the text %d times, not once: the code has changed, change the mutant too", m.file, n)
	}
	return bytes.Replace(text, []byte(m.old), []byte(m.new), 1), nil
}

// What becomes of a mutant.
const (
	killed   = "noticed"
	survived = "SURVIVED"
	unfit    = "DOES NOT FIT"
)

// outcome is what became of one.
type outcome struct {
	mutant  *mutant
	verdict string
	by      string // the first test that failed
	detail  string // for people, when it is not noticed
	took    time.Duration
}

// runner runs tests in a module's folder.
type runner struct{ root, dir string }

// patience bounds the tests of one mutant: many a defect makes a test hang.
const patience = "45s"

// sound runs the tests without a defect: what fails anyway notices nothing.
func (r *runner) sound(ctx context.Context, mutants []*mutant) error {
	var done []string
	for _, m := range mutants {
		key := fmt.Sprint(m.tests, m.pattern)
		if slices.Contains(done, key) {
			continue
		}
		done = append(done, key)
		if out, err := r.test(ctx, m); err != nil {
			return fmt.Errorf("the tests of %s fail without it: %w\n%s", m.name, err, out)
		}
	}
	return nil
}

// test runs a mutant's tests with further arguments of go test.
func (r *runner) test(ctx context.Context, m *mutant, args ...string) (output string, err error) {
	args = append([]string{"test", "-count=1", "-failfast", "-timeout", patience}, args...)
	if m.pattern != "" {
		args = append(args, "-run", m.pattern)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, m.tests...)...)
	cmd.Dir = r.root
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// try builds a mutant in and runs its tests.
func (r *runner) try(ctx context.Context, m *mutant) outcome {
	begin := time.Now()
	o := outcome{mutant: m}
	overlay, err := r.overlay(m)
	if err != nil {
		o.verdict, o.detail = unfit, err.Error()
		return o
	}
	out, err := r.test(ctx, m, "-overlay", overlay)
	o.took = time.Since(begin)
	switch {
	case err == nil:
		o.verdict, o.detail = survived, m.what
	case notBuilt.MatchString(out):
		o.verdict, o.detail = unfit, out
	default:
		o.verdict, o.by = killed, noticedBy(out)
	}
	return o
}

var (
	notBuilt = regexp.MustCompile(`(?m)^FAIL\t.*\[(build|setup) failed\]$`)
	failed   = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)
	running  = regexp.MustCompile(`(?m)^\s*running tests:\n\s+(\S+)`)
	crashed  = regexp.MustCompile(`(?m)^(panic|fatal error): (.*)$`)
)

// noticedBy finds out which test failed first, and how.
func noticedBy(out string) string {
	if hung := running.FindStringSubmatch(out); hung != nil {
		return hung[1] + " (hangs)"
	}
	if test := failed.FindStringSubmatch(out); test != nil {
		return test[1]
	}
	if how := crashed.FindStringSubmatch(out); how != nil {
		return how[0]
	}
	return "?"
}

// overlay writes the file with the defect, and what tells the go command of it.
func (r *runner) overlay(m *mutant) (string, error) {
	path, err := filepath.Abs(filepath.Join(r.root, m.file))
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if text, err = m.apply(text); err != nil {
		return "", err
	}
	name := strings.ReplaceAll(m.name, string(filepath.Separator), "-")
	mutated, overlay := filepath.Join(r.dir, name+".go"), filepath.Join(r.dir, name+".json")
	spec, err := json.Marshal(map[string]map[string]string{"Replace": {path: mutated}})
	if err != nil {
		return "", err
	}
	return overlay, errors.Join(os.WriteFile(mutated, text, 0o600), os.WriteFile(overlay, spec, 0o600))
}
