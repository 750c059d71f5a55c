package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/affleet/affleet/dataplane/clickstream"
)

func clicksExport(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "export FILE", Short: "Write clicks into a file",
		Long: `Write the clicks that the stream took between two times into a file, each once;
"-" is stdout. Windows that touch neither share a click nor lose one.

FILE appears when it is complete. Until then FILE.partial and FILE.resume are
beside it: the same command goes on where it was interrupted. At the end the
number of clicks is compared with what the nodes have counted; when these
differ, the file is kept, what is missing is listed, and the exit code is 1.`,
		Example: "  affctl clicks export november.parquet --from 2026-11-01 --to 2026-12-01\n  affctl clicks export - --from 1h --affiliate aff_01 | jq .destination",
		Args:    argCount(1, 1),
	}
	e := &export{a: a}
	flags := cmd.Flags()
	e.window.addTo(cmd, a, "")
	flags.Var(&e.format, "format", "`FORMAT`: ndjson, csv or parquet (by FILE's name, or ndjson)")
	must(cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(exportFormats, cobra.ShellCompDirectiveNoFileComp)))
	e.chosen.addTo(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		e.path = args[0]
		e.saved.FromFlag, e.saved.ToFlag = flags.Lookup("from").Value.(*when).text, flags.Lookup("to").Value.(*when).text
		if err := errors.Join(e.chosen.check(), e.format.complete(e.path)); err != nil {
			return err
		}
		if err := e.window.check(a.now()); err != nil {
			return err
		}
		return e.run(cmd.Context())
	}
	return cmd
}

var exportFormats = []string{"ndjson", "csv", "parquet"}

// exportFormat is the value of --format.
type exportFormat string

func (f *exportFormat) String() string { return string(*f) }
func (*exportFormat) Type() string     { return "format" }

func (f *exportFormat) Set(text string) error {
	if slices.Contains(exportFormats, text) {
		*f = exportFormat(text)
		return nil
	}
	return usagef("it is one of "+strings.Join(exportFormats, ", "), "there is no export format %q", text)
}

// complete finds the format by the file's name.
func (f *exportFormat) complete(path string) error {
	if *f == "" {
		switch *f = exportFormat(strings.TrimPrefix(filepath.Ext(path), ".")); *f {
		case "csv", "parquet":
		default:
			*f = "ndjson"
		}
	}
	if *f == "parquet" && path == "-" {
		return usagef("", "a Parquet file cannot be written to stdout")
	}
	return nil
}

// export is one run of clicks export. It is the handler and the store of the
// consumer: what is written is made durable together with the place to go on.
type export struct {
	a      *app
	path   string
	window window
	chosen chosen
	format exportFormat

	saved resumeFile
	rows  rowFile
	audit clickstream.Audit
	// failed: half a batch may be written, and nothing more is saved.
	failed error
}

// resumeFile is what goes on with an export that was interrupted.
type resumeFile struct {
	Format   exportFormat          `json:"format"`
	FromFlag string                `json:"from_flag"`
	ToFlag   string                `json:"to_flag"`
	Regions  []string              `json:"regions"`
	Filter   clickstream.Filter    `json:"filter"`
	From     time.Time             `json:"from"`
	To       time.Time             `json:"to"`
	Rows     uint64                `json:"rows"`
	Size     int64                 `json:"size"`     // of the partial file
	Parts    int                   `json:"parts"`    // of a Parquet file
	Bad      uint64                `json:"bad"`      // messages that cannot be read
	Complete bool                  `json:"complete"` // all is written, and the file may have its name
	State    clickstream.State     `json:"state"`
	Accounts []clickstream.Account `json:"accounts"`
}

func (e *export) resumePath() string { return e.path + ".resume" }

func (e *export) run(ctx context.Context) error {
	if err := e.open(); err != nil {
		return err
	}
	defer e.rows.close()
	if !e.saved.Complete {
		if err := e.read(ctx); err != nil {
			return err
		}
	}
	if err := e.finish(); err != nil {
		return err
	}
	return e.report()
}

// read writes what the window has, from where an earlier run was.
func (e *export) read(ctx context.Context) error {
	conn, js, err := e.a.jetStream(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	bar, err := e.a.reading(ctx, js, "exporting", &e.window, e.chosen.regions)
	if err != nil {
		return err
	}
	defer bar.end()
	e.audit.Whole, e.saved.To = bar.whole, e.window.to
	options := e.window.options(e.a, e.window.to)
	options.Regions, options.Filter = e.chosen.regions, e.chosen.filter
	options.Audit, options.Progress, options.Malformed = &e.audit, bar.at, e.malformed
	options.Log = slog.New(slog.NewTextHandler(e.a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	options.SaveEvery, options.SaveClicks = e.rows.pace()
	if e.path != "-" {
		options.Store = e
	}
	err = clickstream.Consume(ctx, js, options, func(_ context.Context, b *clickstream.Batch) error {
		e.saved.Rows += uint64(len(b.Clicks))
		e.failed = e.rows.write(b.Clicks)
		return e.failed
	})
	if err != nil && e.path != "-" && ctx.Err() != nil {
		return &failure{
			code: codeError, message: fmt.Sprintf("interrupted after %s clicks", thousands(int64(e.saved.Rows))),
			hint: "the same command goes on from there",
		}
	}
	return err
}

// finish gives the file its name. That all is written is noted before: whoever is
// killed in between, or does not get that name, has nothing to read again.
func (e *export) finish() error {
	if e.path == "-" {
		return e.rows.finish()
	}
	e.saved.Complete = true
	if err := e.note(); err != nil {
		return err
	}
	if err := e.rows.finish(); err != nil {
		return err
	}
	return os.Remove(e.resumePath())
}

func (e *export) malformed(m clickstream.Malformed) {
	line, within := e.window.unread(m)
	if within {
		e.saved.Bad++
	}
	e.a.warnf("%s", printable(line))
}

// open begins the export, or goes on with the one that was interrupted.
func (e *export) open() (err error) {
	s := &e.saved
	s.Format, s.Regions, s.Filter, s.From, s.To = e.format, e.chosen.regions, e.chosen.filter, e.window.from, e.window.to
	if e.path == "-" {
		e.rows = newTextFile(e.format, e.a.out)
		return nil
	}
	if old, err := readResume(e.resumePath()); err != nil {
		return err
	} else if old != nil {
		if !s.same(old) {
			return &failure{
				code:    codeError,
				message: fmt.Sprintf("an export into %s was interrupted, and it had other flags", e.path),
				hint:    fmt.Sprintf("give the same to go on with it, or remove %s to begin anew", e.resumePath()),
			}
		}
		e.saved = *old
		e.window = window{from: old.From, to: old.To}
		e.audit.Resume(old.Accounts)
		e.a.notef("going on after %s clicks", thousands(int64(old.Rows)))
	}
	if e.format == "parquet" {
		e.rows, err = openParquet(e.path, &e.saved)
	} else {
		e.rows, err = openText(e.path, &e.saved)
	}
	return err
}

// readResume reads what an earlier run has left, if it has.
func readResume(path string) (*resumeFile, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	old := new(resumeFile)
	if err := json.Unmarshal(text, old); err != nil {
		return nil, &failure{code: codeError, message: fmt.Sprintf("%s: %s", path, err), hint: "remove it to begin anew"}
	}
	return old, nil
}

// same says whether two exports are of the same clicks.
func (s *resumeFile) same(o *resumeFile) bool {
	key := func(s *resumeFile) any {
		return []any{s.Format, s.FromFlag, s.ToFlag, strings.Join(s.Regions, "\x00"), s.Filter}
	}
	return reflect.DeepEqual(key(s), key(o))
}

// Load implements clickstream.Store.
func (e *export) Load(context.Context) (clickstream.State, error) { return e.saved.State, nil }

// Save implements clickstream.Store: what was written is durable before the
// file beside it says so.
func (e *export) Save(_ context.Context, state clickstream.State) error {
	if e.failed != nil {
		return e.failed
	}
	if err := e.rows.save(&e.saved); err != nil {
		return err
	}
	e.saved.State, e.saved.Accounts = state, e.audit.State()
	return e.note()
}

// note writes beside the file how far it is.
func (e *export) note() error {
	text, err := json.Marshal(&e.saved)
	if err != nil {
		return err
	}
	f, err := createAtomic(e.resumePath())
	if err != nil {
		return err
	}
	defer f.discard()
	if _, err := f.Write(text); err != nil {
		return err
	}
	return f.commit()
}

// report compares what was written with what the nodes have counted.
func (e *export) report() error {
	accounts := e.audit.Accounts()
	var inStream, lost, late uint64
	for i := range accounts {
		inStream, lost, late = inStream+accounts[i].Clicks, lost+accounts[i].Lost(), late+accounts[i].Late
	}
	lines := troubles(accounts)
	where := ""
	if e.path != "-" {
		where = " to " + e.path
	}
	text := fmt.Sprintf("exported %s clicks%s", thousands(int64(e.saved.Rows)), where)
	switch total := inStream + late; {
	case !e.chosen.all():
		text += fmt.Sprintf(" of %s", thousands(int64(total)))
	case total != e.saved.Rows:
		lines = append(lines, fmt.Sprintf("%s clicks were read, and %s written", thousands(int64(total)), thousands(int64(e.saved.Rows))))
	}
	if e.saved.Bad > 0 {
		lines = append(lines, fmt.Sprintf("messages that cannot be read: %s", thousands(int64(e.saved.Bad))))
	}
	if len(lines) == 0 {
		text += "; the ledgers of the nodes close"
		if lost > 0 {
			text += fmt.Sprintf(", with %s dropped", thousands(int64(lost)))
		}
	}
	e.a.notef("%s", text)
	for _, line := range lines {
		e.a.warnf("%s", printable(line))
	}
	if len(lines) > 0 {
		return silent(codeError)
	}
	return nil
}
