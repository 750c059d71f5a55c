package document

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxAliases bounds how often a file may refer to its anchors, so that a small
// one cannot stand for a huge or endless one.
const maxAliases = 10_000

// resolve follows aliases and document nodes; nothing is a null.
func (p *parser) resolve(node *yaml.Node) *yaml.Node {
	null := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: node.Line}
	for {
		switch {
		case node.Kind == yaml.AliasNode:
			if p.aliases++; p.aliases > maxAliases {
				if p.aliases == maxAliases+1 {
					p.problem(node.Line, "", "more than %d aliases in one file", maxAliases)
				}
				return null
			}
			node = node.Alias
		case node.Kind == yaml.DocumentNode && len(node.Content) > 0:
			node = node.Content[0]
		case node.Kind == yaml.DocumentNode, node.Kind == 0:
			return null
		default:
			return node
		}
	}
}

// entry is the value of a key of a mapping, nil when it has none.
func (p *parser) entry(node *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return p.resolve(node.Content[i+1])
		}
	}
	return nil
}

// typeName says for people what a node is.
func typeName(node *yaml.Node) string {
	switch node.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch node.Tag {
	case "!!int", "!!float":
		return "the number " + node.Value
	case "!!bool":
		return "the boolean " + node.Value
	case "!!null":
		return "nothing"
	case "!!timestamp":
		return "the time " + node.Value
	}
	return "the string " + strconv.Quote(node.Value)
}

// message fills m from a mapping. Paths are those of link.Error.Field.
func (p *parser) message(node *yaml.Node, m protoreflect.Message, path string) {
	if node.Kind != yaml.MappingNode {
		p.problem(node.Line, "", "%s must be a mapping, not %s", path, typeName(node))
		return
	}
	fields := m.Descriptor().Fields()
	seen := map[protoreflect.FullName]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], p.resolve(node.Content[i+1])
		if path == "" && key.Value == "kind" {
			if first, ok := seen["kind"]; ok {
				p.problem(key.Line, "", "kind is set twice: first in line %d", first)
			}
			seen["kind"] = key.Line
			continue
		}
		if key.Tag == "!!merge" {
			p.problem(key.Line, "repeat the fields", "merge keys (<<) are not supported")
			continue
		}
		fd := fields.ByName(protoreflect.Name(key.Value))
		if fd == nil {
			fd = fields.ByJSONName(key.Value)
		}
		if fd == nil {
			p.problem(key.Line, "", "%s: unknown field of %s%s", join(path, key.Value),
				m.Descriptor().Name(), didYouMean(key.Value, fieldNames(m.Descriptor())))
			continue
		}
		at := join(path, string(fd.Name()))
		if first, ok := seen[fd.FullName()]; ok {
			p.problem(key.Line, "", "%s is set twice: first in line %d", at, first)
			continue
		}
		seen[fd.FullName()] = key.Line
		if group := fd.ContainingOneof(); group != nil {
			if other := m.WhichOneof(group); other != nil {
				p.problem(key.Line, "", "%s cannot be set beside %s", at, other.Name())
				continue
			}
		}
		p.fields[at] = key.Line
		p.field(value, m, fd, at)
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// fieldNames are the names of a message's fields that can be written.
func fieldNames(md protoreflect.MessageDescriptor) []string {
	var names []string
	for i := range md.Fields().Len() {
		if fd := md.Fields().Get(i); !IsReadOnly(fd) {
			names = append(names, string(fd.Name()))
		}
	}
	return names
}

// field sets one field; null leaves it unset.
func (p *parser) field(node *yaml.Node, m protoreflect.Message, fd protoreflect.FieldDescriptor, path string) {
	if node.Kind == yaml.ScalarNode && node.Tag == "!!null" {
		return
	}
	switch {
	case fd.IsMap():
		p.mapping(node, m.Mutable(fd).Map(), fd, path)
	case fd.IsList():
		if node.Kind != yaml.SequenceNode {
			p.problem(node.Line, "", "%s must be a list, not %s", path, typeName(node))
			return
		}
		list := m.Mutable(fd).List()
		for i, item := range node.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			item = p.resolve(item)
			p.fields[at] = item.Line
			if fd.Message() == nil {
				if v, ok := p.scalar(item, fd, at); ok {
					list.Append(v)
				}
				continue
			}
			v := list.NewElement()
			p.message(item, v.Message(), at)
			list.Append(v)
		}
	case fd.Message() != nil && wellKnown(fd.Message().FullName()):
		if node.Kind != yaml.ScalarNode {
			p.problem(node.Line, "", "%s must be %s, not %s", path, want(fd), typeName(node))
			return
		}
		if err := SetText(m, fd, node.Value); err != nil {
			p.problem(node.Line, "", "%s %s", path, err)
		}
	case fd.Message() != nil:
		v := m.NewField(fd)
		p.message(node, v.Message(), path)
		m.Set(fd, v)
	default:
		if v, ok := p.scalar(node, fd, path); ok {
			m.Set(fd, v)
		}
	}
}

// mapping fills a map of strings.
func (p *parser) mapping(node *yaml.Node, into protoreflect.Map, fd protoreflect.FieldDescriptor, path string) {
	if node.Kind != yaml.MappingNode {
		p.problem(node.Line, "", "%s must be a mapping, not %s", path, typeName(node))
		return
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], p.resolve(node.Content[i+1])
		at := join(path, key.Value)
		if key.Kind != yaml.ScalarNode {
			p.problem(key.Line, "", "%s: a key must be a string, not %s", path, typeName(key))
			continue
		}
		if first, ok := lines[key.Value]; ok {
			p.problem(key.Line, "", "%s is set twice: first in line %d", at, first)
			continue
		}
		lines[key.Value], p.fields[at] = key.Line, key.Line
		if v, ok := p.scalar(value, fd.MapValue(), at); ok {
			into.Set(protoreflect.ValueOfString(key.Value).MapKey(), v)
		}
	}
}

// scalar gives the value of a string, number, boolean or enum.
func (p *parser) scalar(node *yaml.Node, fd protoreflect.FieldDescriptor, path string) (protoreflect.Value, bool) {
	fits := node.Kind == yaml.ScalarNode
	switch fd.Kind() {
	case protoreflect.StringKind, protoreflect.BytesKind:
		fits = fits && (node.Tag == "!!str" || node.Tag == "!!timestamp")
	case protoreflect.BoolKind:
		fits = fits && node.Tag == "!!bool"
	case protoreflect.Int32Kind, protoreflect.Uint32Kind:
		fits = fits && node.Tag == "!!int"
	case protoreflect.DoubleKind:
		fits = fits && (node.Tag == "!!float" || node.Tag == "!!int")
	case protoreflect.EnumKind:
		fits = fits && node.Tag == "!!str"
	}
	if !fits {
		hint := ""
		if fd.Kind() == protoreflect.StringKind && node.Kind == yaml.ScalarNode {
			hint = "put it in quotes"
		}
		p.problem(node.Line, hint, "%s must be %s, not %s", path, want(fd), typeName(node))
		return protoreflect.Value{}, false
	}
	v, err := scalarValue(fd, node.Value)
	if err != nil {
		p.problem(node.Line, "", "%s %s", path, err)
		return protoreflect.Value{}, false
	}
	return v, true
}

// didYouMean names the nearest of names, when one is near.
func didYouMean(name string, names []string) string {
	if near := Nearest(name, names); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}

// Nearest gives the name with the fewest edits to name, and "" when none is
// near: at most a third of the letters differ, or one starts with the other.
func Nearest(name string, names []string) string {
	best, least := "", len(name)/3+2
	lower := strings.ToLower(name)
	for _, candidate := range names {
		other := strings.ToLower(candidate)
		d := distance(lower, other)
		if len(lower) >= 3 && (strings.HasPrefix(other, lower) || strings.HasPrefix(lower, other)) {
			d = min(d, 1)
		}
		if d < least {
			best, least = candidate, d
		}
	}
	return best
}

// distance is the number of insertions, deletions, replacements and swaps of
// neighbours between two strings.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var before, row [65]int
	var next [65]int
	for j := range len(b) + 1 {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(row[j]+1, next[j-1]+1, row[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}
