package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
	"google.golang.org/grpc"

	"github.com/affleet/affleet/cli/internal/document"
)

// app is what the commands of one run share. It belongs to one goroutine; only
// the connection may be used by several.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	out            *bufio.Writer // over stdout; flushed at the end and before waiting
	getenv         func(string) string
	now            func() time.Time

	// The global flags.
	server, nats, contextName string
	timeout                   positive

	conn    *grpc.ClientConn
	target  string // where conn leads
	started bool   // the arguments were right, and a command runs
}

func newApp(stdin io.Reader, stdout, stderr io.Writer, getenv func(string) string) *app {
	return &app{stdin: stdin, stdout: stdout, stderr: stderr, out: bufio.NewWriter(stdout), getenv: getenv, now: time.Now}
}

func (a *app) close() {
	if a.conn != nil {
		_ = a.conn.Close() // nothing is under way any more
	}
}

// terminal says whether w (or a reader) is one.
func terminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// size gives the columns and rows of the terminal on stdout, or 80 x 24.
func (a *app) size() (columns, rows int) {
	if f, ok := a.stdout.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
			return w, h
		}
	}
	return 80, 24
}

// Colours, for text on a terminal.
const (
	bold  = "1"
	red   = "31"
	green = "32"
	amber = "33"
	cyan  = "36"
)

// paint colours text that goes to w, if w is a terminal and NO_COLOR is not
// set.
func (a *app) paint(w io.Writer, color, text string) string {
	if text == "" || a.getenv("NO_COLOR") != "" || a.getenv("TERM") == "dumb" || !terminal(w) {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// printf writes to stdout; its errors come up when it is flushed.
func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.out, format, args...) }

// notef writes a line for people to stderr, behind what stdout has so far.
func (a *app) notef(format string, args ...any) {
	_ = a.out.Flush() // the error stays in the writer and comes up at the end
	fmt.Fprintf(a.stderr, format+"\n", args...)
}

// warnf is notef for what may be a mistake.
func (a *app) warnf(format string, args ...any) {
	a.notef("%s "+format, append([]any{a.paint(a.stderr, amber, "warning:")}, args...)...)
}

const rootLong = `affctl writes links and watches the fleet that serves them.

Try it:
  affctl link create go.example.com/summer https://store.com/p/123 --wait
  affctl link list
  affctl explain http://go.example.com/summer`

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "affctl",
		Short:         "Write links, and watch the fleet that serves them",
		Long:          rootLong,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          group,
		Args:          cobra.ArbitraryArgs,
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	flags := root.PersistentFlags()
	flags.StringVar(&a.server, "server", "", "control plane, host:port (AFFCTL_SERVER; default "+defaultServer+")")
	flags.StringVar(&a.nats, "nats", "", "NATS server (AFFCTL_NATS; default "+defaultNATS+")")
	flags.StringVar(&a.contextName, "context", "", "context of the config file (AFFCTL_CONTEXT)")
	a.timeout = positive(15 * time.Second)
	flags.Var(&a.timeout, "timeout", "time for one call to a server")

	root.SetFlagErrorFunc(flagError)
	for _, n := range nouns {
		root.AddCommand(n.command(a))
	}
	root.AddCommand(newApply(a), newImport(a), newExport(a), newExplain(a), newNodes(a), newFleet(a), newClicks(a), newStats(a), newFraud(a), newDoctor(a),
		newContext(a), newVersion(a), exitCodesTopic(), connectionTopic())
	setHelp(root)
	a.markStart(root)
	return root
}

// markStart notes when a command begins to run: errors before are mistakes in
// the arguments.
func (a *app) markStart(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil && cmd.HasParent() && !cmd.HasSubCommands() {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			return run(cmd, args)
		}
	}
	for _, child := range cmd.Commands() {
		a.markStart(child)
	}
}

// group runs a command that only holds others.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	var names []string
	for _, child := range cmd.Commands() {
		names = append(names, child.Name())
	}
	hint := fmt.Sprintf("%q lists the commands", cmd.CommandPath()+" --help")
	if near := document.Nearest(args[0], names); near != "" {
		hint = fmt.Sprintf("did you mean %q?", cmd.CommandPath()+" "+near)
	}
	return &failure{code: codeUsage, message: fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath()), hint: hint}
}

// flagError says what was meant, or where to look.
func flagError(cmd *cobra.Command, err error) error {
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	hint := fmt.Sprintf("%q lists the flags", cmd.CommandPath()+" --help")
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := document.Nearest(unknown.GetSpecifiedName(), names); near != "" {
			hint = fmt.Sprintf("did you mean --%s?", near)
		}
	}
	return &failure{code: codeUsage, message: fmt.Sprintf("%s: %s", cmd.CommandPath(), err), hint: hint}
}

// argCount checks the number of arguments, and names them when it is wrong.
func argCount(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef("usage: "+useLine(cmd), "%s: an argument is missing", cmd.CommandPath())
		case most >= 0 && len(args) > most:
			return usagef("usage: "+useLine(cmd), "%s: unexpected argument %q", cmd.CommandPath(), args[most])
		}
		return nil
	}
}

// confirm asks a question on the terminal. Without one the answer must have
// been given by --yes; look is how to see before what that means.
func (a *app) confirm(question, look string) error {
	if !terminal(a.stdin) || !terminal(a.stderr) {
		return usagef("look at it with "+look+", then add --yes", "this needs --yes where nobody can be asked")
	}
	_ = a.out.Flush() // the error stays in the writer and comes up at the end
	fmt.Fprintf(a.stderr, "%s [y/N] ", question)
	answer, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return &failure{code: codeError, message: "nothing was done"}
	}
	return nil
}

// untilDone reads r until ctx ends. A read of a pipe or a terminal cannot be
// interrupted: one that is under way then is left behind, with its goroutine.
func untilDone(ctx context.Context, r io.Reader) io.Reader {
	out, in := io.Pipe()
	context.AfterFunc(ctx, func() { _ = in.CloseWithError(ctx.Err()) })
	go func() {
		_, err := io.Copy(in, r)
		_ = in.CloseWithError(err)
	}()
	return out
}

// open opens a file for reading; "-" is stdin. size is -1 when it is not known.
func (a *app) open(path string) (r io.ReadCloser, name string, size int64, err error) {
	if path == "-" {
		return io.NopCloser(a.stdin), "stdin", -1, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, "", 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, "", 0, errors.Join(err, f.Close())
	}
	switch {
	case info.IsDir():
		return nil, "", 0, errors.Join(fmt.Errorf("%s is a folder", path), f.Close())
	case !info.Mode().IsRegular():
		return f, path, -1, nil
	}
	return f, path, info.Size(), nil
}
