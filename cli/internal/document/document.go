// Package document is the form in which people write resources: YAML or JSON
// documents with a kind and the fields of its message, by their proto or JSON
// names.
//
//	kind: Link
//	domain: go.example.com
//	path: /summer
//	destination: https://store.com/p/123
//
// Parse says everything that is wrong with a file at once, each with its line.
// JSON and YAML write what Parse reads. It does no I/O. Functions may be
// called from any goroutine.
//
// It is not for bulk: a file of more than some hundred thousand resources is
// imported as CSV or NDJSON, row by row.
package document

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// Document is one resource of a file.
type Document struct {
	Resource *linkv1.Resource
	Name     string         // of the resource: "links/go.example.com/summer"
	Line     int            // of the document, from 1
	Fields   map[string]int // the line of each field by its path: "rules[0].when"
}

// Problem is something wrong at a place of a file.
type Problem struct {
	File    string
	Line    int // from 1; 0: the file as a whole
	Message string
	Hint    string // the cure, where it is known
}

// Error gives the place and the message: "links.yaml:3: ...".
func (p *Problem) Error() string {
	if p.Line == 0 {
		return p.File + ": " + p.Message
	}
	return p.File + ":" + strconv.Itoa(p.Line) + ": " + p.Message
}

// Parse reads the documents of a file and validates them. The file's name is
// for problems, and its extension .json rules YAML out. Documents that have a
// problem are left out of the result.
func Parse(file string, data []byte) ([]Document, []*Problem) {
	p := &parser{file: file, seen: map[string]int{}}
	nodes, err := p.nodes(data)
	if err != nil {
		p.problems = append(p.problems, err)
	}
	for _, node := range nodes {
		p.document(node)
	}
	return p.documents, p.problems
}

type parser struct {
	file      string
	documents []Document
	problems  []*Problem
	seen      map[string]int // name -> line
	fields    map[string]int // of the document under way
	aliases   int            // followed so far
}

func (p *parser) problem(line int, hint, format string, args ...any) {
	p.problems = append(p.problems, &Problem{File: p.file, Line: line, Hint: hint, Message: fmt.Sprintf(format, args...)})
}

// nodes gives the documents of the file, and those before a syntax error
// together with it.
func (p *parser) nodes(data []byte) ([]*yaml.Node, *Problem) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	isJSON := strings.EqualFold(filepath.Ext(p.file), ".json")
	if start := bytes.TrimLeft(data, " \t\r\n"); isJSON || len(start) > 0 && (start[0] == '{' || start[0] == '[') {
		nodes, err := jsonNodes(data)
		if err == nil {
			return nodes, nil
		}
		if isJSON {
			err.File = p.file
			return nodes, err
		}
	}
	return p.yamlNodes(data)
}

func (p *parser) yamlNodes(data []byte) (nodes []*yaml.Node, problem *Problem) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var node yaml.Node
		switch err := decoder.Decode(&node); {
		case errors.Is(err, io.EOF):
			return nodes, nil
		case err != nil:
			return nodes, p.yamlProblem(err)
		}
		nodes = append(nodes, &node)
	}
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// yamlProblem turns "yaml: line 3: text" into a problem of line 3.
func (p *parser) yamlProblem(err error) *Problem {
	problem := &Problem{File: p.file, Message: err.Error()}
	if m := yamlLine.FindStringSubmatch(problem.Message); m != nil {
		problem.Line, problem.Message = 1, m[2] // the first line is not named
		if m[1] != "" {
			problem.Line, _ = strconv.Atoi(m[1])
		}
	}
	return problem
}

var kindNames = []string{"Link", "Domain", "Affiliate", "Block", "Policy", "List"}

// document takes one document, or the items of a list, in.
func (p *parser) document(node *yaml.Node) {
	node = p.resolve(node)
	switch {
	case node.Kind == yaml.ScalarNode && node.Tag == "!!null":
		return
	case node.Kind == yaml.SequenceNode:
		for _, item := range node.Content {
			p.document(item)
		}
		return
	case node.Kind != yaml.MappingNode:
		p.problem(node.Line, `it starts with "kind: Link"`, "a document must be a mapping, not %s", typeName(node))
		return
	}
	kind := p.entry(node, "kind")
	hint := "it is one of " + strings.Join(kindNames, ", ")
	switch {
	case kind == nil:
		p.problem(node.Line, hint, "kind is missing")
	case kind.Kind != yaml.ScalarNode:
		p.problem(kind.Line, hint, "kind must be a string, not %s", typeName(kind))
	case kind.Value == "List":
		p.list(node)
	default:
		p.resource(node, kind)
	}
}

func (p *parser) list(node *yaml.Node) {
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], p.resolve(node.Content[i+1])
		switch {
		case key.Value == "kind":
		case key.Value != "items":
			p.problem(key.Line, "", "%s: unknown field of List%s", key.Value, didYouMean(key.Value, []string{"items", "kind"}))
		case value.Kind != yaml.SequenceNode:
			p.problem(value.Line, "", "items must be a list, not %s", typeName(value))
		default:
			for _, item := range value.Content {
				p.document(item)
			}
		}
	}
}

func (p *parser) resource(node, kind *yaml.Node) {
	r := Blank(kind.Value)
	if r == nil {
		p.problem(kind.Line, "it is one of "+strings.Join(kindNames, ", "),
			"kind: there is no %q%s", kind.Value, didYouMean(kind.Value, kindNames))
		return
	}
	before := len(p.problems)
	p.fields = map[string]int{}
	p.message(node, Message(r), "")
	if len(p.problems) > before {
		return
	}
	ClearReadOnly(r)
	name, _ := link.Name(r) // its error is one of Validate's
	for _, e := range link.Problems(link.Validate(r)) {
		p.invalid(node, name, e)
	}
	if len(p.problems) > before {
		return
	}
	if first, ok := p.seen[name]; ok {
		p.problem(node.Line, "", "%s is in this file twice: first in line %d", name, first)
		return
	}
	p.seen[name] = node.Line
	p.documents = append(p.documents, Document{Resource: r, Name: name, Line: node.Line, Fields: p.fields})
}

// invalid reports what Validate says, at the line of the field.
func (p *parser) invalid(node *yaml.Node, name string, e *link.Error) {
	line := node.Line
	for path := e.Field; path != ""; {
		if at, ok := p.fields[path]; ok {
			line = at
			break
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			break
		}
		path = path[:cut]
	}
	message := e.Message
	if e.Field != "" {
		message = e.Field + ": " + message
	}
	if e.Field == "" && name != "" {
		message = name + ": " + message
	}
	p.problem(line, e.Hint, "%s", message)
}

// Blank is an empty resource of a kind, by the name of its message: "Link".
// It is nil when there is no such kind.
func Blank(kind string) *linkv1.Resource {
	switch kind {
	case "Link":
		return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{}}}
	case "Domain":
		return &linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{}}}
	case "Affiliate":
		return &linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{}}}
	case "Block":
		return &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{}}}
	case "Policy":
		return &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{}}}
	}
	return nil
}

// Message is the message that a resource holds, of which Name gives the kind;
// nil when it holds none.
func Message(r *linkv1.Resource) protoreflect.Message {
	switch k := r.GetKind().(type) {
	case *linkv1.Resource_Link:
		return k.Link.ProtoReflect()
	case *linkv1.Resource_Domain:
		return k.Domain.ProtoReflect()
	case *linkv1.Resource_Affiliate:
		return k.Affiliate.ProtoReflect()
	case *linkv1.Resource_Block:
		return k.Block.ProtoReflect()
	case *linkv1.Resource_Policy:
		return k.Policy.ProtoReflect()
	}
	return nil
}

// readOnly is the first number of the fields that only the control plane
// writes.
const readOnly protoreflect.FieldNumber = 100

// IsReadOnly says whether only the control plane writes a field.
func IsReadOnly(fd protoreflect.FieldDescriptor) bool { return fd.Number() >= readOnly }

// ClearReadOnly removes what only the control plane writes, so that what was
// read can be compared and written again.
func ClearReadOnly(r *linkv1.Resource) { link.SetReadOnly(r, 0, nil) }

// ParseRow reads one JSON document, a Link where it has no kind. Unlike Parse
// it does not validate. Its problems have no place.
func ParseRow(text []byte) (*linkv1.Resource, []*Problem) {
	p := &parser{fields: map[string]int{}}
	nodes, problem := jsonNodes(text)
	switch {
	case problem != nil:
		return nil, []*Problem{problem}
	case len(nodes) != 1 || nodes[0].Kind != yaml.MappingNode:
		p.problem(1, "", "must be one JSON object")
		return nil, p.problems
	}
	name := "Link"
	if kind := p.entry(nodes[0], "kind"); kind != nil {
		name = kind.Value
	}
	r := Blank(name)
	if r == nil {
		p.problem(1, "", "kind: there is no %q%s", name, didYouMean(name, kindNames[:5]))
		return nil, p.problems
	}
	p.message(nodes[0], Message(r), "")
	ClearReadOnly(r)
	return r, p.problems
}
