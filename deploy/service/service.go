// Package service is how an Affleet server runs as a process: its settings
// (flags, AFF_* variables, a YAML file), its log, its signals, and the address
// where it says how it fares. The servers' main functions and the fleet in one
// process use it; the planes themselves do not.
package service

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/peterbourgon/ff/v3"
	"github.com/peterbourgon/ff/v3/ffyaml"
	"golang.org/x/term"
)

// Version is the program's version, set by the linker.
var Version = "devel"

// Exit codes of a server.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// A Server is a process in the making.
type Server struct {
	Name    string // of the program
	Summary string // one line
	Example string // lines that can be pasted
	// Flags declares the settings. Each may also come from the variable
	// AFF_<NAME>, in upper case with underscores, and from the file that
	// --config names; a flag wins over a variable, and that over the file.
	Flags func(*flag.FlagSet)
	// LogLevel is the default of --log-level. Default: info.
	LogLevel string
	// Check validates the settings without touching anything.
	Check func() error
	// Run serves until ctx ends.
	Run func(ctx context.Context, log *slog.Logger) error
}

// Main runs a server and gives its exit code: 0 after a clean stop, 1 when it
// failed, 2 when its settings are wrong. SIGINT and SIGTERM stop it; the second
// one kills it.
func (s Server) Main(args []string, stdout, stderr *os.File) int {
	fs := flag.NewFlagSet(s.Name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.String("config", "", "YAML `file` with settings: the names of these flags")
	check := fs.Bool("check-config", false, "validate the settings and exit")
	version := fs.Bool("version", false, "print the version and exit")
	level := fs.String("log-level", cmp.Or(s.LogLevel, "info"), "debug, info, warn or error")
	s.Flags(fs)

	err := ff.Parse(fs, args, ff.WithEnvVarPrefix("AFF"), ff.WithConfigFileFlag("config"), ff.WithConfigFileParser(ffyaml.Parser))
	if err == nil && fs.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		s.help(stdout, fs)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\nhint: see %s --help\n", s.Name, err, s.Name)
		return exitUsage
	case *version:
		fmt.Fprintln(stdout, s.Name, Version)
		return exitOK
	}
	log, err := newLogger(stderr, *level)
	if err == nil {
		err = s.Check()
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", s.Name, err)
		return exitUsage
	}
	if *check {
		fmt.Fprintln(stdout, "the settings are valid")
		return exitOK
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	if err := s.Run(ctx, log); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintf(stderr, "%s: %v\n", s.Name, err)
		return exitError
	}
	return exitOK
}

func (s Server) help(w io.Writer, fs *flag.FlagSet) {
	fmt.Fprintf(w, "%s\n\nUsage:\n  %s [flags]\n\nExample:\n", s.Summary, s.Name)
	for line := range strings.Lines(s.Example) {
		fmt.Fprint(w, "  ", line)
	}
	fmt.Fprint(w, "\n\nFlags (each also as AFF_<NAME>, or in the file that --config names):\n")
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fs.VisitAll(func(f *flag.Flag) {
		kind, usage := flag.UnquoteUsage(f)
		value := ""
		if f.DefValue != "" && f.DefValue != "false" {
			value = " (" + f.DefValue + ")"
		}
		fmt.Fprintf(tw, "  --%s %s\t%s%s\n", f.Name, kind, usage, value)
	})
	_ = tw.Flush() // it was help, and there is nobody left to tell
}

// newLogger writes text to a terminal and JSON elsewhere.
func newLogger(w *os.File, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log-level: %q is not debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration { // "1.5s" rather than nanoseconds
			a.Value = slog.StringValue(a.Value.Duration().Round(time.Microsecond).String())
		}
		return a
	}}
	if term.IsTerminal(int(w.Fd())) {
		return slog.New(slog.NewTextHandler(w, opts)), nil
	}
	return slog.New(slog.NewJSONHandler(w, opts)), nil
}
