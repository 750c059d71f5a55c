package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/affleet/affleet/cli/internal/nginxmap"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func newImport(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "import", Short: "Write many resources from a file",
		Long: `Write many resources from a file: any number of rows, in one pass. What exists
is replaced, what is the same is left alone. Rows that fail are reported with
file and line, and the others are written: the exit code is then 3.`,
		Example: `  affctl import nginx-map /etc/nginx/redirects.map --domain go.example.com
  affctl import csv links.csv --wait
  affctl export | affctl --context staging import ndjson -`,
		Args: cobra.ArbitraryArgs, RunE: group,
	}
	cmd.AddCommand(importCSV(a), importNDJSON(a), importNginx(a))
	return cmd
}

// importFlags are those of every import.
type importFlags struct {
	options adminv1.ImportOptions
	wait    waiting
}

func (f *importFlags) addTo(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVar(&f.options.ValidateOnly, "dry-run", false, "check everything, write nothing")
	flags.BoolVar(&f.options.CreateOnly, "create-only", false, "a row whose resource exists fails")
	flags.BoolVar(&f.options.StopOnError, "stop-on-error", false, "end at the first row that fails")
	f.wait.addTo(cmd)
}

// importRows imports what read makes of a file.
func (a *app) importRows(cmd *cobra.Command, f *importFlags, path string, read func(r io.Reader, file string, imp *importer, emit func(row) error) error) error {
	input, name, size, err := a.open(path)
	if err != nil {
		return err
	}
	defer input.Close() // it was only read
	started := time.Now()
	imp := &importer{a: a, options: &f.options, bar: a.progress("importing", size, true), keys: newKeyIndex()}
	total, err := imp.run(cmd.Context(), func(ctx context.Context, emit func(row) error) error {
		if size < 0 { // it may give nothing for long
			return read(untilDone(ctx, input), name, imp, emit)
		}
		return read(input, name, imp, emit)
	})
	return imp.finish(cmd.Context(), total, err, started, &f.wait)
}

func importNginx(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "nginx-map FILE", Short: "Import a map of nginx",
		Long: `Import the map block of an nginx configuration, or a bare fragment of keys and
values. The default becomes the domain's not_found. nginx finds its keys in any
case, so the domain is set to ignore case too, unless it already says exact.
What cannot be carried over, such as regular expressions, is listed with file
and line.`,
		Example: `  affctl import nginx-map redirects.map --domain go.example.com --dry-run
  affctl import nginx-map /etc/nginx/nginx.conf --domain go.example.com \
    --map '$target' --base https://store.com --wait`,
		Args: argCount(1, 1),
	}
	var opts nginxmap.Options
	var f importFlags
	cmd.Flags().StringVar(&opts.Domain, "domain", "", "`HOST` of keys that have none; '*' is every host")
	cmd.Flags().StringVar(&opts.MapName, "map", "", "the map that sets this `$NAME`, where there are several")
	cmd.Flags().StringVar(&opts.Base, "base", "", "`URL` that relative targets start from")
	cmd.Flags().StringSliceVar(&opts.None, "none", nil, "`VALUES` that mean no redirect, instead of none, -, off, ...")
	f.addTo(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if opts.Domain, err = domainFlag(opts.Domain); err != nil {
			return err
		}
		return a.importNginx(cmd, args[0], opts, &f)
	}
	return cmd
}

func (a *app) importNginx(cmd *cobra.Command, path string, opts nginxmap.Options, f *importFlags) error {
	started := time.Now()
	name := path
	if path == "-" {
		name = "stdin"
		text, err := io.ReadAll(untilDone(cmd.Context(), a.stdin))
		if err != nil {
			return fmt.Errorf("read stdin: %w", err)
		}
		opts.Read = func(string) ([]byte, error) { return text, nil }
	}
	result, err := nginxmap.Parse(name, opts)
	if err != nil {
		return err
	}
	domains, links := nginxDomains(result)
	imp := &importer{a: a, options: &f.options, bar: a.progress("importing", int64(len(result.Entries)), false)}
	for _, note := range result.Notes {
		at := place{file: note.File, line: note.Line}
		if note.Severity == nginxmap.Warning {
			imp.warn(at, "%s", withHint(note.Text, note.Hint))
			continue
		}
		if err := imp.failed(at, note.Hint, "%s", note.Text); err != nil {
			return silent(codeError) // nothing is written yet
		}
	}
	for _, d := range domains {
		if err := a.mergeDomain(cmd, d, f.options.ValidateOnly); err != nil {
			return err
		}
	}
	total, err := imp.run(cmd.Context(), func(_ context.Context, emit func(row) error) error {
		return emitEntries(links, result.StatusCode, emit)
	})
	return imp.finish(cmd.Context(), total, err, started, &f.wait)
}

const defaultStatus = 302

// emitEntries makes links of entries. A link says its status code only where
// it is not what it would be anyway.
func emitEntries(entries []nginxmap.Entry, code int, emit func(row) error) error {
	if code == defaultStatus {
		code = 0
	}
	for i := range entries {
		e := &entries[i]
		r := row{place: place{file: e.File, line: e.Line}, done: int64(i + 1), resource: &linkv1.Resource{
			Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
				Domain: e.Host, Path: e.Path, Destination: e.Destination, StatusCode: int32(code), //nolint:gosec // 301 to 308
			}},
		}}
		if err := emit(r); err != nil {
			return err
		}
	}
	return nil
}

// nginxDomains takes what is true of a whole host out of the entries: the
// default, keys that are a host alone, and that nginx finds paths in any case.
func nginxDomains(result *nginxmap.Result) (domains []*linkv1.Domain, links []nginxmap.Entry) {
	known := map[string]*linkv1.Domain{}
	domain := func(host string) *linkv1.Domain {
		d := known[host]
		if d == nil {
			d = &linkv1.Domain{Host: host}
			known[host] = d
			domains = append(domains, d)
		}
		return d
	}
	code := int32(0)
	if result.StatusCode != defaultStatus {
		code = int32(result.StatusCode) //nolint:gosec // 301 to 308
	}
	if result.HasDefault {
		d := domain(result.DefaultHost)
		d.NotFound, d.StatusCode = result.Default, code
	}
	links = result.Entries[:0]
	for _, e := range result.Entries {
		d := domain(e.Host)
		if e.Path == "" {
			d.NotFound, d.StatusCode = e.Destination, code
			continue
		}
		d.CasePolicy = linkv1.CasePolicy_CASE_POLICY_IGNORE
		links = append(links, e)
	}
	return domains, links
}

// mergeDomain sets the fields that a domain has, and keeps its others: also its
// case policy, where it says that case matters.
func (a *app) mergeDomain(cmd *cobra.Command, d *linkv1.Domain, dryRun bool) error {
	service, err := a.links()
	if err != nil {
		return err
	}
	stored, err := service.Get(cmd.Context(), &adminv1.GetRequest{Name: link.Domains.Prefix() + d.GetHost()})
	if err != nil && status.Code(err) != codes.NotFound {
		return err
	}
	var mask, says []string
	if d.GetNotFound() != "" {
		mask, says = append(mask, "not_found"), append(says, "not_found is "+d.GetNotFound())
	}
	if d.GetStatusCode() != 0 {
		mask = append(mask, "status_code")
	}
	if d.GetCasePolicy() != 0 {
		if stored.GetResource().GetDomain().GetCasePolicy() == linkv1.CasePolicy_CASE_POLICY_EXACT {
			d.CasePolicy = 0
			says = append(says, "paths match by case, as it was set; nginx ignores case")
		} else {
			mask, says = append(mask, "case_policy"), append(says, "paths match in any case, as in nginx")
		}
	}
	suffix := " (dry run)"
	if len(mask) > 0 {
		resp, err := service.Update(cmd.Context(), &adminv1.UpdateRequest{
			Resource:   &linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: proto.CloneOf(d)}},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}, AllowMissing: true, ValidateOnly: dryRun,
		})
		if err != nil {
			return err
		}
		if !dryRun {
			suffix = fmt.Sprintf(" (version %d)", resp.GetVersion().GetRevision())
		}
	} else if !dryRun {
		suffix = ""
	}
	a.printf("domain %q: %s%s\n", d.GetHost(), strings.Join(says, "; "), suffix)
	return nil
}
