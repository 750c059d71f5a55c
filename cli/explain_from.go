package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/affleet/affleet/proto/explain"
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
