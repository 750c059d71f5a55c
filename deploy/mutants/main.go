// Command mutants proves that the tests notice defects: it builds one defect
// after the other into the code, runs the tests that are to notice it, and fails
// if one survives.
//
//	go run ./deploy/mutants                 all
//	go run ./deploy/mutants accept-lower    those whose name contains this
//	go run ./deploy/mutants -list           what there is
//
// The tree is not touched: a defect is an overlay of the go command. Each is one
// file below this folder, in txtar form: what it does, in one line; which tests
// are to notice; and the text in a file that is replaced, which must be there
// exactly once:
//
//	The node does not compare the set hash of a delta.
//
//	file: dataplane/internal/feed/apply.go
//	test: ./dataplane/internal/feed
//	run: TestNodeRejects
//	-- old --
//		if builder.Hash() != d.hash {
//	-- new --
//		if false {
//
// test names packages, separated by spaces; run, which may be left out, is a
// pattern as of go test. A defect that no longer fits the code is a failure, and
// so is one that does not compile.
package main

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run() error {
	list := flag.Bool("list", false, "name the mutants, and run nothing")
	root := flag.String("C", ".", "`folder` of the module")
	flag.Parse()
	mutants, err := find(*root, flag.Args())
	if err != nil {
		return err
	}
	if *list {
		out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		for _, m := range mutants {
			fmt.Fprintf(out, "%s\t%s\n", m.name, m.what)
		}
		return out.Flush()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	dir, err := os.MkdirTemp("", "affleet-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r := runner{root: *root, dir: dir}
	if err := r.sound(ctx, mutants); err != nil {
		return err
	}
	var outcomes []outcome
	for _, m := range mutants {
		fmt.Fprintf(os.Stderr, "%s: %s\n", m.name, m.what)
		o := r.try(ctx, m)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		outcomes = append(outcomes, o)
	}
	return report(outcomes)
}

// find reads the mutants whose names contain one of some words; no words: all.
func find(root string, words []string) (mutants []*mutant, err error) {
	folder := filepath.Join(root, "deploy", "mutants")
	err = filepath.WalkDir(folder, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".txtar" {
			return err
		}
		name, err := filepath.Rel(folder, strings.TrimSuffix(path, ".txtar"))
		if err != nil {
			return err
		}
		chosen := len(words) == 0
		for _, word := range words {
			chosen = chosen || strings.Contains(name, word)
		}
		if !chosen {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		m, err := parse(name, text)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		mutants = append(mutants, m)
		return nil
	})
	if err == nil && len(mutants) == 0 {
		err = fmt.Errorf("no mutant is named so: %s", strings.Join(words, ", "))
	}
	return mutants, err
}

// report prints a table, and gives an error if not all tests have noticed.
func report(outcomes []outcome) error {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(out, "mutant\tverdict\tnoticed by\ttime\n")
	bad := 0
	for _, o := range outcomes {
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\n", o.mutant.name, o.verdict, o.by, o.took.Round(100*time.Millisecond))
		if o.verdict != killed {
			bad++
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	for _, o := range outcomes {
		if o.detail != "" {
			fmt.Printf("\n%s: %s\n%s\n", o.mutant.name, o.verdict, o.detail)
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d mutants are not noticed", bad, len(outcomes))
	}
	fmt.Printf("all %d mutants are noticed\n", len(outcomes))
	return nil
}
