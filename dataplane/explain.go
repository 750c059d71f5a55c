package dataplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"strings"
	"time"

	"github.com/affleet/affleet/dataplane/internal/caps"
	"github.com/affleet/affleet/proto/explain"
	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/visitor"
)

// Explain answers how the node would decide a request, as the JSON of an
// explain.Explanation: GET ?url=URL, and optionally ip=ADDRESS, ua=USER-AGENT,
// header=NAME: VALUE (any number), at=TIME (RFC 3339). It is for the address
// where a server says how it fares, not for the public: nothing is recorded or
// counted.
func (n *Node) Explain() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e, status, err := n.explain(r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), status)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(e) // the client has gone
	})
}

func (n *Node) explain(q url.Values) (*explain.Explanation, int, error) {
	req, err := n.explainRequest(q)
	if err != nil {
		return nil, http.StatusBadRequest, err
	}
	t := n.live.Load()
	if t == nil {
		return nil, http.StatusServiceUnavailable, errors.New("no state yet: waiting for a control plane")
	}
	e, err := explain.New(req)
	if err != nil {
		return nil, http.StatusBadRequest, err
	}
	e.Node, e.Version = n.cfg.Node, t.Version().Revision
	var m link.Match
	t.Lookup([]byte(e.Host), []byte(e.Path), &m)
	e.Candidates = candidates(e, &m, req.At)
	if m.Value != nil {
		e.Link = link.LinkName(string(m.Link.Domain(m.Value)), string(m.Link.Path(m.Value)))
	}
	if err := e.Decide(&m, t, req); err != nil {
		return nil, http.StatusInternalServerError, err
	}
	return e, http.StatusOK, nil
}

// explainRequest reads a question.
func (n *Node) explainRequest(q url.Values) (req *explain.Request, err error) {
	geo, _ := visitor.ParseGeoHeaders(n.cfg.GeoHeaders) // Validate has seen it
	req = &explain.Request{
		URL: q.Get("url"), At: time.Now(), Headers: map[string][]string{}, Sources: n.sources, GeoHeaders: geo,
	}
	if req.URL == "" {
		return nil, errors.New("url is missing: /explain?url=http://go.example.com/summer")
	}
	if text := q.Get("at"); text != "" {
		if req.At, err = time.Parse(time.RFC3339, text); err != nil {
			return nil, fmt.Errorf("at: %q is no time such as 2026-12-24T18:00:00Z", text)
		}
	}
	if text := q.Get("ip"); text != "" {
		if req.Address, err = netip.ParseAddr(text); err != nil {
			return nil, fmt.Errorf("ip: %q is no address", text)
		}
	}
	for _, header := range q["header"] {
		name, value, ok := strings.Cut(header, ":")
		if !ok {
			return nil, fmt.Errorf("header: %q is not NAME: VALUE", header)
		}
		name = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name))
		req.Headers[name] = append(req.Headers[name], strings.TrimSpace(value))
	}
	if agent := q.Get("ua"); agent != "" {
		req.Headers["User-Agent"] = []string{agent}
	}
	req.Caps = capLooker{n.caps, req.At.UnixMicro()}
	req.Off = n.judge.Off()
	return req, nil
}

// capLooker says whether a cap has room as the node knows it, and takes nothing.
type capLooker struct {
	leases    *caps.Leases
	unixMicro int64
}

func (c capLooker) Take(m *link.Match, limit link.Cap) bool {
	return c.leases.Room(m.Link.Domain(m.Value), m.Link.Path(m.Value), limit, c.unixMicro)
}

// candidates are those that were looked up: all before the one that was found.
func candidates(e *explain.Explanation, m *link.Match, at time.Time) (all []explain.Candidate) {
	for _, name := range link.Candidates(e.Host, e.Path, m.Domain.Policy()) {
		if !strings.HasPrefix(name, link.Links.Prefix()) {
			continue
		}
		domain, path := link.SplitLinkID(strings.TrimPrefix(name, link.Links.Prefix()))
		c := explain.Candidate{Name: name}
		if m.Value != nil && domain == string(m.Link.Domain(m.Value)) && samePath(m, path) {
			c.Found, c.Used = true, true
			if stored := link.LinkName(domain, string(m.Link.Path(m.Value))); stored != name {
				c.Stored = stored
			}
			if l, err := explain.Winner(m); err == nil {
				c.State = explain.LinkState(l, at)
			}
			all = append(all, c)
			break
		}
		all = append(all, c)
	}
	if m.Affiliate != nil {
		all = append(all, explain.Candidate{Name: link.Affiliates.Prefix() + m.Affiliate.ID, Found: true, Used: true})
	}
	if m.Domain != nil {
		c := explain.Candidate{Name: link.Domains.Prefix() + m.Domain.Host, Found: true, Used: true}
		if ignored := explain.Ignores(m.Domain.Policy()); ignored != "" {
			c.State = "ignores " + ignored
		}
		all = append(all, c)
	}
	return all
}

// samePath says whether the link of a match is what a candidate with a path
// stands for.
func samePath(m *link.Match, path string) bool {
	have := string(m.Link.Path(m.Value))
	return have == path || link.IsPrefix(have) == link.IsPrefix(path) && m.Domain.Policy().Same([]byte(have), []byte(path))
}
