package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// maxFile is the most bytes that a policy's file may have.
const maxFile = 1 << 20

// ParseFile reads a policy from YAML or JSON, in the form in which affctl writes
// and reads it: "kind: Policy" and its fields. kind and scope may be left out.
func ParseFile(data []byte) (*Policy, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("it has %d bytes, and at most %d are allowed", len(data), maxFile)
	}
	var fields map[string]any
	if err := yaml.Unmarshal(data, &fields); err != nil {
		return nil, fmt.Errorf("%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if fields == nil {
		return nil, errors.New("it is empty")
	}
	if kind, ok := fields["kind"]; ok {
		if text, _ := kind.(string); !strings.EqualFold(text, "policy") {
			return nil, fmt.Errorf("kind: %v is no Policy", kind)
		}
		delete(fields, "kind")
	}
	if _, ok := fields["scope"]; !ok {
		fields["scope"] = "*"
	}
	text, err := json.Marshal(plain("", fields, 0))
	if err != nil {
		return nil, err
	}
	p := new(linkv1.Policy)
	if err := protojson.Unmarshal(text, p); err != nil {
		return nil, errors.New(strings.TrimSpace(strings.NewReplacer("proto:", "", "\u00a0", " ").Replace(err.Error())))
	}
	if p.GetScope() != "*" {
		return nil, fmt.Errorf(`scope: the detector heeds only the policy of scope "*", not of %q`, p.GetScope())
	}
	return New(p)
}

// plain turns what people write into what JSON of protobuf wants: short names of
// actions, and durations such as 1h.
func plain(name string, v any, depth int) any {
	if depth > 16 {
		return nil
	}
	switch v := v.(type) {
	case map[string]any:
		for key, one := range v {
			v[key] = plain(key, one, depth+1)
		}
	case map[any]any:
		all := make(map[string]any, len(v))
		for key, one := range v {
			all[fmt.Sprint(key)] = plain(fmt.Sprint(key), one, depth+1)
		}
		return all
	case []any:
		for i := range v {
			v[i] = plain(name, v[i], depth+1)
		}
	case string:
		switch name {
		case "action":
			if !strings.HasPrefix(v, "BLOCK_ACTION_") {
				return "BLOCK_ACTION_" + strings.ToUpper(v)
			}
		case "ttl":
			if d, err := time.ParseDuration(v); err == nil {
				return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s"
			}
		}
	case time.Time: // of create_time and the like
		return v.Format(time.RFC3339Nano)
	}
	return v
}
