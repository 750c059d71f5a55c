package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/affleet/affleet/cli/internal/document"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/explain"
	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/statefile"
)

// readResources reads an export (YAML or JSON documents, or NDJSON), or the
// state file of a node.
func (a *app) readResources(path string) (resources, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(data, []byte(statefile.Magic)) {
		_, all, err := statefile.All(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return stateResources(all), nil
	}
	all := fileResources{}
	if strings.HasSuffix(path, ".ndjson") || strings.HasSuffix(path, ".jsonl") {
		path += ".json" // one value after the other is what a JSON file may hold
	}
	documents, problems := document.Parse(path, data)
	if len(problems) > 0 {
		errs := make([]error, len(problems))
		for i, p := range problems {
			errs[i] = p
		}
		return nil, errors.Join(errs...)
	}
	for _, d := range documents {
		all[d.Name] = d.Resource
	}
	return all, nil
}

// fileResources are the resources of an export, by name.
type fileResources map[string]*linkv1.Resource

func (f fileResources) stored(_ context.Context, name string) (*linkv1.Resource, error) {
	return f[name], nil
}

func (f fileResources) same(_ context.Context, name string, policy link.Policy) (*linkv1.Resource, error) {
	return f[sameName(f, name, policy)], nil
}

// book has all blocks and policies of the export.
func (f fileResources) book(context.Context, *explain.Explanation, *link.Match, *explain.Request) (*explain.Book, error) {
	b := new(explain.Book)
	for _, r := range f {
		if err := b.Add(r); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// stateResources are the stored bytes of a node's state, by name: there may be
// millions.
type stateResources map[string][]byte

func (s stateResources) stored(_ context.Context, name string) (*linkv1.Resource, error) {
	value, ok := s[name]
	if !ok {
		return nil, nil
	}
	return link.Unmarshal(name, value)
}

func (s stateResources) same(ctx context.Context, name string, policy link.Policy) (*linkv1.Resource, error) {
	return s.stored(ctx, sameName(s, name, policy))
}

// book has all blocks and policies of the state, but for those that the node
// holds and does not serve because they cannot be read.
func (s stateResources) book(context.Context, *explain.Explanation, *link.Match, *explain.Request) (*explain.Book, error) {
	b := new(explain.Book)
	for name, value := range s {
		if !strings.HasPrefix(name, link.Blocks.Prefix()) && !strings.HasPrefix(name, link.Policies.Prefix()) {
			continue
		}
		if r, err := link.Unmarshal(name, value); err == nil {
			_ = b.Add(r) // likewise
		}
	}
	return b, nil
}

// sameName is the name of the link that the name of a candidate stands for
// under a policy; the name itself if there is none.
func sameName[V any](all map[string]V, name string, policy link.Policy) string {
	if _, ok := all[name]; ok || policy == 0 {
		return name
	}
	id, ok := strings.CutPrefix(name, link.Links.Prefix())
	if !ok {
		return name
	}
	domain, path := link.SplitLinkID(id)
	head := link.LinkName(domain, "")
	best := ""
	for other := range all {
		at, ok := strings.CutPrefix(other, head)
		if ok && policy.Same([]byte(at), []byte(path)) && (best == "" || other < best) {
			best = other
		}
	}
	if best == "" {
		return name
	}
	return best
}
