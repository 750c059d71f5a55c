package cli

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/cli/internal/document"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// format is the value of -o.
type format struct {
	value   string
	allowed []string
}

// addTo adds -o with the formats that a command knows; the first is the
// default.
func (f *format) addTo(cmd *cobra.Command, allowed ...string) {
	f.allowed, f.value = allowed, allowed[0]
	cmd.Flags().VarP(f, "output", "o", "`FORMAT`: "+strings.Join(append([]string{allowed[0] + " (the default)"}, allowed[1:]...), ", "))
	cmd.Flags().Lookup("output").DefValue = "" // it is told already
	must(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp)))
}

func (f *format) String() string { return f.value }
func (f *format) Type() string   { return "format" }

func (f *format) Set(value string) error {
	if !slices.Contains(f.allowed, value) {
		return usagef("it is one of "+strings.Join(f.allowed, ", "), "there is no output format %q", value)
	}
	f.value = value
	return nil
}

// must reports mistakes in the wiring of the commands.
func must(err error) {
	if err != nil {
		panic("BUG: " + err.Error())
	}
}

// tablePage is after how many rows a table is printed, so that a long list
// neither waits for its end nor is held in memory.
const tablePage = 1000

// printer prints resources of one kind in a format.
type printer struct {
	a      *app
	noun   *noun
	format string
	list   bool // many were asked for: JSON is an array
	table  *table
	count  int
}

func (a *app) printer(n *noun, format string, list bool) *printer {
	p := &printer{a: a, noun: n, format: format, list: list}
	if format == "table" && list {
		var header []string
		for _, c := range n.columns {
			header = append(header, c.header)
		}
		p.table = a.table(header...)
	}
	return p
}

// resource prints one.
func (p *printer) resource(r *linkv1.Resource) error {
	p.count++
	switch p.format {
	case "name":
		name, err := link.Name(r)
		if err != nil {
			return err
		}
		p.a.printf("%s\n", name)
	case "json":
		return p.json(r)
	case "yaml":
		text, err := document.YAML(r)
		if err != nil {
			return err
		}
		if p.count > 1 {
			p.a.printf("---\n")
		}
		p.a.printf("%s", text)
	default:
		if !p.list {
			return p.details(r)
		}
		cells := make([]string, len(p.noun.columns))
		for i, c := range p.noun.columns {
			cells[i] = c.cell(p.a, r)
		}
		p.table.row(cells...)
		if len(p.table.rows) >= tablePage {
			return p.table.flush()
		}
	}
	return nil
}

func (p *printer) json(r *linkv1.Resource) error {
	text, err := document.JSON(r)
	if err != nil {
		return err
	}
	prefix := ""
	if p.list {
		prefix = "  "
		p.a.printf("%s", map[bool]string{true: "[\n  ", false: ",\n  "}[p.count == 1])
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, text, prefix, "  "); err != nil {
		return err
	}
	p.a.printf("%s", indented.Bytes())
	if !p.list {
		p.a.printf("\n")
	}
	return nil
}

// details prints the fields that are set, one in a line.
func (p *printer) details(r *linkv1.Resource) error {
	m := document.Message(r)
	if p.count > 1 {
		p.a.printf("\n")
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if fd := fields.Get(i); m.Has(fd) {
			p.a.printf("%-14s %s\n", fd.Name(), printable(document.Text(m, fd)))
		}
	}
	return nil
}

// end prints what closes the output.
func (p *printer) end() error {
	switch {
	case p.format == "json" && p.list && p.count == 0:
		p.a.printf("[]\n")
	case p.format == "json" && p.list:
		p.a.printf("\n]\n")
	case p.format == "table" && p.list && p.count == 0:
		p.a.notef("no %s", p.noun.plural)
	case p.format == "table" && p.list:
		return p.table.flush()
	}
	return nil
}

// protoJSON is any message as indented JSON with proto names, and with what is 0 or
// false: a script asks for nodes without clicks, or that differ, too.
func protoJSON(m proto.Message) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = json.Indent(&out, text, "", "  ")
	out.WriteByte('\n')
	return out.Bytes(), err
}

// protoYAML is any message as YAML with proto names.
func protoYAML(m proto.Message) ([]byte, error) {
	text, err := protoJSON(m)
	if err != nil {
		return nil, err
	}
	return document.ToYAML(text)
}
