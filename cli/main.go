// Package cli is affctl: the fleet from a terminal and from scripts. Each noun
// of its commands has a file of that name; noun.go holds the verbs that all
// resources share, and app.go what all commands share.
//
// It talks to the control plane over the admin API and to NATS for clicks, and
// decides nothing itself: what a link means is said by proto/link.
//
// Main may be called many times in one process, also at the same time.
package cli

import (
	"context"
	"io"
)

// Main runs affctl with the arguments that follow its name, until it is done
// or ctx ends, and gives its exit code (see "affctl help exit-codes").
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, getenv func(string) string) int {
	a := newApp(stdin, stdout, stderr, getenv)
	defer a.close()
	root := newRoot(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if flushErr := a.out.Flush(); err == nil && flushErr != nil {
		err = flushErr
	}
	if err != nil && !a.started {
		err = asUsage(err)
	}
	return a.report(err)
}
