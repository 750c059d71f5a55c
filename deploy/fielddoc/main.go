// Command fielddoc is a protoc plugin that writes the comments of the resources'
// fields as a page: FIELDS.md beside their .proto file. buf runs it with the
// other generators.
package main

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// source is the file that people write resources by.
const source = "aff/link/v1/link.proto"

func main() {
	protogen.Options{}.Run(func(p *protogen.Plugin) error {
		for _, f := range p.Files {
			if f.Generate && f.Desc.Path() == source {
				write(p.NewGeneratedFile(strings.TrimSuffix(source, "link.proto")+"FIELDS.md", ""), f)
			}
		}
		return nil
	})
}

// hidden are messages that nobody writes by hand.
var hidden = map[string]bool{"Version": true, "Resource": true, "Record": true}

func write(g *protogen.GeneratedFile, f *protogen.File) {
	g.P("<!-- Generated from link.proto by deploy/fielddoc. -->")
	g.P()
	g.P("# Fields")
	g.P()
	g.P("What can be written in YAML and JSON (`affctl apply`, `affctl import`), field by field.")
	g.P("Values of an enumeration may be written without their prefix: `SUSPENDED`.")
	for _, m := range f.Messages {
		if hidden[string(m.Desc.Name())] {
			continue
		}
		g.P()
		g.P("## ", m.Desc.Name())
		g.P()
		g.P(text(m.Comments.Leading))
		g.P()
		g.P("| field | type | |")
		g.P("|---|---|---|")
		for _, field := range m.Fields {
			g.P("| `", field.Desc.Name(), "` | ", typeOf(field), " | ", cell(field), " |")
		}
	}
	for _, e := range f.Enums {
		g.P()
		g.P("## ", e.Desc.Name())
		g.P()
		g.P(text(e.Comments.Leading))
		g.P()
		g.P("| value | |")
		g.P("|---|---|")
		for _, v := range e.Values {
			g.P("| `", v.Desc.Name(), "` | ", escape(text(v.Comments.Leading)), " |")
		}
	}
}

// text is a comment in one line.
func text(c protogen.Comments) string { return strings.Join(strings.Fields(string(c)), " ") }

func escape(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

// cell is a field's comment, and what it stands beside in a oneof.
func cell(f *protogen.Field) string {
	s := escape(text(f.Comments.Leading))
	if o := f.Oneof; o != nil && !o.Desc.IsSynthetic() {
		s = fmt.Sprintf("%s One of `%s`: %s", s, o.Desc.Name(), escape(text(o.Comments.Leading)))
	}
	return s
}

func typeOf(f *protogen.Field) string {
	switch {
	case f.Desc.IsMap():
		return "map of text to text"
	case f.Desc.IsList():
		return "list of " + kindOf(f)
	}
	return kindOf(f)
}

func kindOf(f *protogen.Field) string {
	switch {
	case f.Enum != nil:
		return anchor(f.Enum.Desc.Name())
	case f.Message == nil && f.Desc.Kind() == protoreflect.StringKind:
		return "text"
	case f.Message == nil && f.Desc.Kind() == protoreflect.BoolKind:
		return "true or false"
	case f.Message == nil:
		return "number"
	case f.Message.Desc.FullName() == "google.protobuf.Timestamp":
		return "time"
	case f.Message.Desc.FullName() == "google.protobuf.Duration":
		return "duration"
	}
	return anchor(f.Message.Desc.Name())
}

func anchor(name protoreflect.Name) string {
	return fmt.Sprintf("[%s](#%s)", name, strings.ToLower(string(name)))
}
