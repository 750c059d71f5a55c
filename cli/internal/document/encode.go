package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// marshalJSON is protojson with proto names and without the white space that
// differs from build to build.
func marshalJSON(m proto.Message) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, text); err != nil {
		return nil, err
	}
	return compact.Bytes(), nil
}

// JSON writes a resource as a document in one line, without line feed: kind
// first, then the fields in the order of the proto file.
func JSON(r *linkv1.Resource) ([]byte, error) {
	m := Message(r)
	if m == nil {
		return nil, errors.New("empty resource")
	}
	text, err := marshalJSON(m.Interface())
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(text)+24)
	out = append(out, `{"kind":"`...)
	out = append(out, m.Descriptor().Name()...)
	out = append(out, '"')
	if len(text) > len("{}") {
		out = append(out, ',')
	}
	return append(out, text[1:]...), nil
}

// YAML writes a resource as a document, without the "---" before it.
func YAML(r *linkv1.Resource) ([]byte, error) {
	text, err := JSON(r)
	if err != nil {
		return nil, err
	}
	return ToYAML(text)
}

// ToYAML turns JSON into YAML with the same order of fields.
func ToYAML(text []byte) ([]byte, error) {
	nodes, problem := jsonNodes(text)
	if problem != nil {
		return nil, problem
	}
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	for _, node := range nodes {
		quoteOld(node)
		if err := encoder.Encode(node); err != nil {
			return nil, err
		}
	}
	if err := encoder.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// old matches strings that readers of YAML 1.1 take for something else, and
// that the encoder does not quote: booleans and numbers to base 60.
var old = regexp.MustCompile(`^(?i:y|n|yes|no|on|off|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)$`)

func quoteOld(node *yaml.Node) {
	if node.Tag == "!!str" && old.MatchString(node.Value) {
		node.Style = yaml.DoubleQuotedStyle
	}
	for _, child := range node.Content {
		quoteOld(child)
	}
}
