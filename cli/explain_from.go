package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/affleet/affleet/cli/internal/document"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/explain"
	"github.com/affleet/affleet/proto/link"
)

// askNode lets a node explain.
func (f *explainFlags) askNode(ctx context.Context, req *explain.Request) (*explain.Explanation, error) {
	for flag, set := range map[string]bool{"--geoip": f.geoip != nil, "--bots": f.bots != "", "--datacenters": f.datacenters != nil, "--geo-headers": f.geoHeaders != ""} {
		if set {
			return nil, usagef("leave out "+flag, "%s and --node: a node knows what it knows", flag)
		}
	}
	q := url.Values{"url": {req.URL}, "at": {req.At.UTC().Format(time.RFC3339Nano)}, "ip": {f.ip}, "ua": {f.agent}, "header": f.headers}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.node+"/explain?"+q.Encode(), nil)
	if err != nil {
		return nil, usagef("the address of affnode's --admin: 10.0.0.7:9091", "--node must be HOST:PORT, not %q", f.node)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask node %s: %w", f.node, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("ask node %s: %w", f.node, err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusBadRequest:
		return nil, usagef("", "%s", strings.TrimSpace(string(body)))
	default:
		return nil, fmt.Errorf("ask node %s: %s: %.300s", f.node, resp.Status, bytes.TrimSpace(body))
	}
	e := new(explain.Explanation)
	if err := json.Unmarshal(body, e); err != nil {
		return nil, fmt.Errorf("ask node %s: its answer cannot be read: %w", f.node, err)
	}
	return e, nil
}

// fileResources are the resources of a file, by name.
type fileResources map[string]*linkv1.Resource

// readResources reads an export: YAML or JSON documents, or NDJSON.
func (a *app) readResources(path string) (fileResources, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
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

func (f fileResources) stored(_ context.Context, name string) (*linkv1.Resource, error) {
	return f[name], nil
}

func (f fileResources) same(_ context.Context, name string, policy link.Policy) (*linkv1.Resource, error) {
	if r := f[name]; r != nil || policy == 0 {
		return r, nil
	}
	domain, path := link.SplitLinkID(strings.TrimPrefix(name, link.Links.Prefix()))
	var best *linkv1.Resource
	for _, r := range f {
		l := r.GetLink()
		if l != nil && l.GetDomain() == domain && policy.Same([]byte(l.GetPath()), []byte(path)) && (best == nil || l.GetPath() < best.GetLink().GetPath()) {
			best = r
		}
	}
	return best, nil
}

// book has all blocks and policies of the file.
func (f fileResources) book(context.Context, *explain.Explanation, *link.Match, *explain.Request) (*explain.Book, error) {
	b := new(explain.Book)
	for _, r := range f {
		if err := b.Add(r); err != nil {
			return nil, err
		}
	}
	return b, nil
}
