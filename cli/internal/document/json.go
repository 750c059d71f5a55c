package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxDepth bounds how deep JSON may nest.
const maxDepth = 100

// jsonNodes reads JSON values, one after the other, into the same form as
// YAML's, so that lines and problems are the same. YAML's own parser is not
// used: it refuses some JSON (tabs, surrogate pairs).
func jsonNodes(data []byte) ([]*yaml.Node, *Problem) {
	j := &jsonReader{data: data, decoder: json.NewDecoder(bytes.NewReader(data)), line: 1}
	j.decoder.UseNumber()
	var nodes []*yaml.Node
	for {
		node, err := j.value(0)
		switch {
		case errors.Is(err, io.EOF):
			return nodes, nil
		case err != nil:
			return nodes, j.problem(err)
		}
		nodes = append(nodes, node)
	}
}

type jsonReader struct {
	data    []byte
	decoder *json.Decoder
	offset  int // up to where lines were counted
	line    int // at offset
}

// lineAt gives the line of an offset; offsets only grow.
func (j *jsonReader) lineAt(offset int) int {
	offset = min(offset, len(j.data))
	if offset > j.offset {
		j.line += bytes.Count(j.data[j.offset:offset], []byte("\n"))
		j.offset = offset
	}
	return j.line
}

func (j *jsonReader) problem(err error) *Problem {
	offset := int(j.decoder.InputOffset())
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		offset = int(syntax.Offset)
	}
	message := err.Error()
	if errors.Is(err, io.ErrUnexpectedEOF) {
		message, offset = "the JSON ends too early", len(j.data)
	}
	return &Problem{Line: j.lineAt(offset), Message: message}
}

// value reads the next value; io.EOF only at depth 0.
func (j *jsonReader) value(depth int) (*yaml.Node, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested more than %d deep", maxDepth)
	}
	token, err := j.decoder.Token()
	if err != nil {
		if depth > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	node := &yaml.Node{Kind: yaml.ScalarNode, Line: j.lineAt(int(j.decoder.InputOffset()))}
	switch t := token.(type) {
	case json.Delim:
		return node, j.container(node, t, depth)
	case string:
		node.Tag, node.Value = "!!str", t
	case json.Number:
		node.Tag, node.Value = "!!int", t.String()
		if strings.ContainsAny(node.Value, ".eE") {
			node.Tag = "!!float"
		}
	case bool:
		node.Tag, node.Value = "!!bool", strconv.FormatBool(t)
	case nil:
		node.Tag, node.Value = "!!null", "null"
	}
	return node, nil
}

func (j *jsonReader) container(node *yaml.Node, start json.Delim, depth int) error {
	node.Kind, node.Tag = yaml.SequenceNode, "!!seq"
	if start == '{' {
		node.Kind, node.Tag = yaml.MappingNode, "!!map"
	}
	for j.decoder.More() {
		child, err := j.value(depth + 1)
		if err != nil {
			return err
		}
		node.Content = append(node.Content, child)
	}
	_, err := j.decoder.Token() // the end, or what is wrong with it
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
