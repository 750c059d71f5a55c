package cli

import (
	"context"
	"encoding/csv"
	"errors"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/affleet/affleet/cli/internal/document"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

func newExport(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "export", Short: "Read everything, at one version",
		Long: `Read everything that matches, at one version, in a form that import and apply
read: affiliates, domains, links, blocks, then policies. CSV holds one kind. A
block with a ttl has its expire_time: written back, it ends when it would have.`,
		Example: `  affctl export > backup.ndjson
  affctl export --domain go.example.com -o yaml --file links.yaml
  affctl export -o csv --kind link --label team=eu`,
		Args: argCount(0, 0),
	}
	var flags filterFlags
	var domains, kinds []string
	var file string
	var out format
	cmd.Flags().StringArrayVar(&domains, "domain", nil, "only this `HOST` and its links; may be repeated")
	cmd.Flags().StringArrayVar(&kinds, "kind", nil, "only this `KIND`: link, domain, affiliate, block, policy; may be repeated")
	flags.addTo(cmd, []string{"affiliate", "label", "prefix"})
	cmd.Flags().StringVar(&file, "file", "", "write to this `FILE`, which appears when it is complete")
	out.addTo(cmd, "ndjson", "yaml", "csv")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		chosen, err := exportKinds(kinds, out.value, len(domains) > 0, flags)
		if err != nil {
			return err
		}
		filters, err := exportFilters(chosen, domains, flags)
		if err != nil {
			return err
		}
		if file == "" {
			return a.export(cmd.Context(), filters, chosen, out.value, a.out)
		}
		f, err := createAtomic(file)
		if err != nil {
			return err
		}
		defer f.discard()
		if err := a.export(cmd.Context(), filters, chosen, out.value, f); err != nil {
			return err
		}
		return f.commit()
	}
	return cmd
}

// exportKinds says which kinds the flags ask for; none: all.
func exportKinds(names []string, form string, byDomain bool, flags filterFlags) ([]*noun, error) {
	var chosen []*noun
	for _, name := range names {
		n, err := nounNamed(name)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, n)
	}
	switch {
	case form == "csv" && len(chosen) > 1:
		return nil, usagef("export each kind to a file of its own", "a CSV file holds one kind")
	case len(chosen) > 0:
		return chosen, nil
	case form == "csv", flags.affiliate != "", flags.prefix != "", len(flags.labels) > 0:
		return []*noun{linkNoun}, nil
	case byDomain:
		return []*noun{domainNoun, linkNoun}, nil
	}
	return nil, nil
}

// exportFilters makes a filter for each kind and domain.
func exportFilters(kinds []*noun, domains []string, flags filterFlags) ([]*adminv1.Filter, error) {
	if len(domains) == 0 {
		domains = []string{""}
	}
	var filters []*adminv1.Filter
	for _, n := range kinds {
		for _, domain := range domains {
			flags.domain = domain
			filter, err := flags.filter(n.kind)
			if err != nil {
				return nil, err
			}
			if n != linkNoun && n != domainNoun {
				filter.Domain = ""
			}
			filters = append(filters, filter)
		}
	}
	return filters, nil
}

// export writes what matches to w.
func (a *app) export(ctx context.Context, filters []*adminv1.Filter, kinds []*noun, form string, w io.Writer) error {
	service, err := a.links()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := service.Export(ctx, &adminv1.ExportRequest{Filters: filters})
	if err != nil {
		return err
	}
	write, flush := exportWriter(w, form, kinds)
	var bar *progress
	var rows int64
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if bar != nil {
				bar.end()
			}
			return err
		}
		if bar == nil {
			total := resp.GetEstimatedTotal()
			if total == 0 || len(filters) > 0 {
				total = -1
			}
			bar = a.progress("exporting", total, false)
			defer bar.end()
		}
		for _, r := range resp.GetResources() {
			document.ClearReadOnly(r) // of this store, not of the resource
			if err := write(r); err != nil {
				return err
			}
		}
		rows += int64(len(resp.GetResources()))
		bar.set(rows)
	}
	if bar != nil {
		bar.end()
	}
	if err := flush(); err != nil {
		return err
	}
	if terminal(a.stderr) && !terminal(a.stdout) || w != io.Writer(a.out) {
		a.notef("exported %s", count(rows, "resource"))
	}
	return nil
}

// exportWriter gives what writes one resource, and what ends the file.
func exportWriter(w io.Writer, form string, kinds []*noun) (write func(*linkv1.Resource) error, flush func() error) {
	none := func() error { return nil }
	switch form {
	case "csv":
		return csvWriter(w, kinds[0])
	case "yaml":
		started := false
		return func(r *linkv1.Resource) error {
			text, err := document.YAML(r)
			if err != nil {
				return err
			}
			if started {
				text = append([]byte("---\n"), text...)
			}
			started = true
			_, err = w.Write(text)
			return err
		}, none
	}
	return func(r *linkv1.Resource) error {
		text, err := document.JSON(r)
		if err != nil {
			return err
		}
		_, err = w.Write(append(text, '\n'))
		return err
	}, none
}

// csvWriter writes a column for each field that can be written, so that
// nothing is lost.
func csvWriter(w io.Writer, n *noun) (write func(*linkv1.Resource) error, flush func() error) {
	out := csv.NewWriter(w)
	var fields []protoreflect.FieldDescriptor
	var header []string
	all := document.Message(document.Blank(n.title())).Descriptor().Fields()
	for i := range all.Len() {
		if fd := all.Get(i); !document.IsReadOnly(fd) {
			fields, header = append(fields, fd), append(header, string(fd.Name()))
		}
	}
	_ = out.Write(header) // its error comes up in flush
	record := make([]string, len(fields))
	write = func(r *linkv1.Resource) error {
		m := document.Message(r)
		for i, fd := range fields {
			record[i] = document.Text(m, fd)
		}
		return out.Write(record)
	}
	return write, func() error { out.Flush(); return out.Error() }
}
