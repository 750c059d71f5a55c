package cli

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/affleet/affleet/cli/internal/document"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func importCSV(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "csv FILE", Short: "Import a table with a header row",
		Long: `Import a table whose header row names the fields: domain, path, destination,
affiliate, campaign, status_code, expires_at, labels, labels.KEY and the others
of a link; or "link" for DOMAIN/PATH in one. FILE may be - for stdin.`,
		Example: `  affctl import csv links.csv
  affctl import csv shop.csv --domain go.example.com \
    --map slug=path --map url=destination --map notes=`,
		Args: argCount(1, 1),
	}
	var f importFlags
	var domain, kind, comma string
	columns := map[string]string{}
	cmd.Flags().StringVar(&kind, "kind", "link", "`KIND` of the rows: link, domain, affiliate, block or policy")
	cmd.Flags().StringVar(&domain, "domain", "", "`HOST` of links whose row has none")
	cmd.Flags().StringToStringVar(&columns, "map", nil, "`COLUMN=FIELD`: what a column is; no field: ignore it")
	cmd.Flags().StringVar(&comma, "comma", ",", "`CHARACTER` between cells; tab for a tab")
	f.addTo(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		n, err := nounNamed(kind)
		if err != nil {
			return err
		}
		if domain, err = domainFlag(domain); err != nil {
			return err
		}
		c := &csvReader{noun: n, domain: domain, columns: columns, comma: []rune(strings.ReplaceAll(comma, "tab", "\t"))}
		if len(c.comma) != 1 {
			return usagef("", "--comma must be one character, not %q", comma)
		}
		return a.importRows(cmd, &f, args[0], c.read)
	}
	return cmd
}

// nounNamed finds a kind of resource.
func nounNamed(name string) (*noun, error) {
	var names []string
	for _, n := range allNouns {
		if n.name == name || n.plural == name {
			return n, nil
		}
		names = append(names, n.name)
	}
	return nil, usagef("it is one of "+strings.Join(names, ", "), "there is no kind %q", name)
}

// csvReader makes resources of rows.
type csvReader struct {
	noun    *noun
	domain  string            // for links without one
	columns map[string]string // column -> field
	comma   []rune

	setters []func(*linkv1.Resource, string) error // by column; nil: ignored
}

func (c *csvReader) read(in io.Reader, file string, imp *importer, emit func(row) error) error {
	r := csv.NewReader(in)
	r.Comma = c.comma[0]
	r.ReuseRecord = true
	header, err := r.Read()
	if errors.Is(err, io.EOF) {
		return &failure{code: codeError, message: file + ": is empty", hint: "the first row names the fields"}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := c.header(file, slices.Clone(header)); err != nil {
		return err
	}
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if parse, ok := errors.AsType[*csv.ParseError](err); ok {
			if err := imp.failed(place{file: file, line: parse.StartLine}, "", "%s", parse.Err); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		line, _ := r.FieldPos(0)
		at := place{file: file, line: line}
		resource, err := c.resource(record)
		if err == nil {
			err = emit(row{resource: resource, place: at, done: r.InputOffset()})
			if err != nil {
				return err
			}
			continue
		}
		hint := ""
		if f, ok := errors.AsType[*failure](err); ok {
			hint = f.hint
		}
		if err := imp.failed(at, hint, "%s", err); err != nil {
			return err
		}
	}
}

// resource makes one of a record.
func (c *csvReader) resource(record []string) (*linkv1.Resource, error) {
	r := document.Blank(c.noun.title())
	for i, cell := range record {
		if cell == "" || c.setters[i] == nil {
			continue
		}
		if err := c.setters[i](r, cell); err != nil {
			return nil, err
		}
	}
	if l := r.GetLink(); l != nil && l.GetDomain() == "" {
		l.Domain = c.domain
	}
	return r, nil
}

// header decides what each column sets. All that is wrong is said at once.
func (c *csvReader) header(file string, header []string) error {
	header[0] = strings.TrimPrefix(header[0], "\ufeff")
	md := document.Message(document.Blank(c.noun.title())).Descriptor()
	var errs []error
	seen := map[string]bool{}
	left := maps.Clone(c.columns)
	for _, column := range header {
		column = strings.TrimSpace(column)
		field, mapped := c.columns[column]
		if !mapped {
			field = column
		}
		delete(left, column)
		if mapped && field == "" {
			c.setters = append(c.setters, nil)
			continue
		}
		set, err := c.setter(md, field)
		if err == nil && seen[field] {
			err = fmt.Errorf("%s is there twice", field)
		}
		seen[field] = true
		if err != nil {
			errs = append(errs, fmt.Errorf("%s:1: column %q: %w", file, column, err))
		}
		c.setters = append(c.setters, set)
	}
	for _, column := range slices.Sorted(maps.Keys(left)) {
		errs = append(errs, usagef("", "--map %s: there is no such column in %s", column, file))
	}
	if len(errs) > 0 {
		errs = append(errs, usagef(fmt.Sprintf("--map COLUMN=FIELD names a field, --map COLUMN= leaves a column out; fields are %s",
			strings.Join(c.fieldNames(md), ", ")), "%s: nothing was imported", file))
	}
	return errors.Join(errs...)
}

func (c *csvReader) fieldNames(md protoreflect.MessageDescriptor) []string {
	var names []string
	for i := range md.Fields().Len() {
		if fd := md.Fields().Get(i); !document.IsReadOnly(fd) {
			names = append(names, string(fd.Name()))
		}
	}
	return names
}

// setter gives what sets a field from a cell; nil for what is ignored.
func (c *csvReader) setter(md protoreflect.MessageDescriptor, field string) (func(*linkv1.Resource, string) error, error) {
	if key, ok := strings.CutPrefix(field, "labels."); ok && key != "" {
		return func(r *linkv1.Resource, cell string) error {
			labels := labelsOf(r)
			if labels == nil {
				labels = map[string]string{}
				setLabels(r, labels)
			}
			labels[key] = cell
			return nil
		}, nil
	}
	fd := md.Fields().ByName(protoreflect.Name(field))
	if fd == nil {
		fd = md.Fields().ByJSONName(field)
	}
	switch {
	case field == "kind", fd != nil && document.IsReadOnly(fd):
		return nil, nil //nolint:nilnil // documented
	case field == "link" && c.noun == linkNoun:
		return func(r *linkv1.Resource, cell string) (err error) {
			r.GetLink().Domain, r.GetLink().Path, err = linkKey(cell)
			return err
		}, nil
	case fd == nil:
		if near := document.Nearest(field, append(c.fieldNames(md), "link")); near != "" {
			return nil, fmt.Errorf("unknown field; did you mean %q?", near)
		}
		return nil, errors.New("unknown field")
	case fd.Kind() == protoreflect.StringKind && !fd.IsMap() && !fd.IsList():
		return func(r *linkv1.Resource, cell string) error {
			document.Message(r).Set(fd, protoreflect.ValueOfString(cell))
			return nil
		}, nil
	}
	return func(r *linkv1.Resource, cell string) error {
		if err := document.SetText(document.Message(r), fd, cell); err != nil {
			return fmt.Errorf("%s %w", field, err)
		}
		return nil
	}, nil
}

// domainFlag checks the domain that stands in for missing ones.
func domainFlag(domain string) (string, error) {
	if domain == "" {
		return "", nil
	}
	host, err := link.CanonicalHost(domain)
	if err != nil {
		return "", argument(domain, err)
	}
	return host, nil
}
