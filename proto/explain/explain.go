// Package explain says step by step how a request is decided: by the code that
// nodes decide with, told to leave a trace. The node answers with it for its own
// table, affctl for what the control plane or a file holds.
//
// It is for people, not for the redirect path. Functions may be called from any
// goroutine; an Explanation belongs to one.
package explain

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"net/textproto"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
	"github.com/affleet/affleet/proto/visitor"
)

// Request is what is to be explained.
type Request struct {
	URL     string
	At      time.Time
	Address netip.Addr          // of the client; the zero Addr is not known
	Headers map[string][]string // by canonical name; a User-Agent that is not there was left out, one that is empty was not sent

	Sources    *visitor.Sources   // of facts. Required
	GeoHeaders visitor.GeoHeaders // that say where the client is, as if a trusted proxy had sent them
	Caps       link.Caps          // is asked for room, and must not count; nil: there is room
	Off        link.LabelSet      // labels that are never given
}

// Explanation is how a request is decided.
type Explanation struct {
	URL        string      `json:"url"`
	Host       string      `json:"host"`
	Path       string      `json:"path"`
	At         time.Time   `json:"at"`
	Version    int64       `json:"version"`
	Node       string      `json:"node,omitempty"`
	Visitor    Visitor     `json:"visitor"`
	Candidates []Candidate `json:"candidates"`
	Blocks     []Block     `json:"blocks,omitempty"` // that match
	Labels     []Label     `json:"labels,omitempty"`
	NotCounted []string    `json:"not_counted"`           // labels that take memory, which is not looked at
	KillSwitch bool        `json:"kill_switch,omitempty"` // the policy of everything says off: labels and blocks only label
	Treatment  string      `json:"treatment"`             // label, no_affiliate, fallback or refuse
	Link       string      `json:"link,omitempty"`
	Affiliate  string      `json:"affiliate,omitempty"`
	Campaign   string      `json:"campaign,omitempty"`
	Rules      []Rule      `json:"rules,omitempty"`
	Rule       uint32      `json:"rule,omitempty"` // 1 for the first; 0 when none decided
	Splits     []Split     `json:"splits,omitempty"`
	SplitKey   string      `json:"split_key,omitempty"`
	Variant    string      `json:"variant,omitempty"`
	Cap        *Cap        `json:"cap,omitempty"`
	Macros     []Macro     `json:"macros,omitempty"`
	Query      []Parameter `json:"query,omitempty"`
	Recorded   []string    `json:"recorded,omitempty"` // parameters: "name=value"
	Outcome    string      `json:"outcome"`
	Because    string      `json:"because"`
	Status     int         `json:"status"`
	Location   string      `json:"location,omitempty"`
	Body       string      `json:"body,omitempty"`
	Cache      string      `json:"cache_control,omitempty"`
	RobotsTag  string      `json:"robots_tag,omitempty"`
}

// Visitor is what is known about who asks.
type Visitor struct {
	Address  string   `json:"address,omitempty"`
	Country  string   `json:"country,omitempty"`
	Region   string   `json:"region,omitempty"`
	City     string   `json:"city,omitempty"`
	ASN      uint32   `json:"asn,omitempty"`
	Device   string   `json:"device,omitempty"`
	OS       string   `json:"os,omitempty"`
	Browser  string   `json:"browser,omitempty"`
	Bot      bool     `json:"bot,omitempty"`
	Preview  bool     `json:"preview,omitempty"`
	Langs    []string `json:"languages,omitempty"`
	Referrer string   `json:"referrer_domain,omitempty"`
}

// Candidate is a resource that may have a say.
type Candidate struct {
	Name   string `json:"name"`
	Stored string `json:"stored,omitempty"` // the link's own name, where a policy found it under this one
	Found  bool   `json:"found"`
	Used   bool   `json:"used"`
	State  string `json:"state,omitempty"`
}

// Block is a block that matches the request.
type Block struct {
	Name    string     `json:"name"`
	Matches string     `json:"matches"`
	Label   string     `json:"label"`
	Action  string     `json:"action"`
	Reason  string     `json:"reason"`
	Ends    *time.Time `json:"ends,omitempty"`
	Counts  bool       `json:"counts"` // false: it has ended, or its label is off
}

// Label is a label that speaks against the request.
type Label struct {
	Label  string `json:"label"`
	Reason string `json:"reason"`
	Action string `json:"action"`           // that policies say
	Policy string `json:"policy,omitempty"` // whose; empty: none says anything
}

// Rule is a rule that was looked at.
type Rule struct {
	Number  int               `json:"number"` // from 1
	Name    string            `json:"name,omitempty"`
	When    string            `json:"when"`
	Matched bool              `json:"matched"`
	Error   string            `json:"error,omitempty"`
	Outcome string            `json:"outcome"`
	Facts   map[string]string `json:"facts,omitempty"`
}

// Split is a variant.
type Split struct {
	Name   string  `json:"name"`
	Share  float64 `json:"share"`
	Chosen bool    `json:"chosen"`
}

// Cap is the limit on clicks that was asked.
type Cap struct {
	Clicks uint64 `json:"clicks"`
	Period string `json:"period"`
	Asked  bool   `json:"asked"` // false: nobody was, and room is assumed
	Room   bool   `json:"room"`
}

// Macro is a macro that was filled in.
type Macro struct {
	Macro   string `json:"macro"`
	Value   string `json:"value"`
	Default bool   `json:"default,omitempty"`
}

// Parameter is a parameter that is in the Location, or might have been.
type Parameter struct {
	Parameter string `json:"parameter"`
	Origin    string `json:"origin"`
	Sent      bool   `json:"sent"`
	Because   string `json:"because,omitempty"` // why it was not sent
}

// ErrBadRequest is wrapped by what New says of a URL that a node answers with
// 400 Bad Request.
var ErrBadRequest = errors.New("a node answers 400 Bad Request")

// New begins an explanation: host and path as a node reads them.
func New(req *Request) (*Explanation, error) {
	rawHost, rawPath, _ := splitURL(req.URL)
	host, ok := link.AppendCanonicalHost(nil, []byte(rawHost))
	if !ok && rawHost != link.AnyHost {
		return nil, fmt.Errorf("%q: %q is not a host: %w", req.URL, rawHost, ErrBadRequest)
	}
	path, ok := link.AppendCanonicalPath(nil, []byte(rawPath))
	if !ok {
		return nil, fmt.Errorf("%q: the path has a broken escape, a percent sign is written %%25: %w", req.URL, ErrBadRequest)
	}
	return &Explanation{URL: req.URL, Host: string(host), Path: string(path), At: req.At.UTC()}, nil
}

// splitURL takes a URL, or one without scheme, apart as an HTTP client does.
func splitURL(raw string) (host, path, query string) {
	rest, _, _ := strings.Cut(raw, "#")
	if _, behind, ok := strings.Cut(rest, "://"); ok {
		rest = behind
	}
	rest, query, _ = strings.Cut(rest, "?")
	i := strings.IndexByte(rest, '/')
	if i < 0 {
		return rest, "/", query
	}
	return rest[:i], rest[i:], query
}

// Decide decides the request with the match that was found for it, and the
// blocks and policies that there are, and fills in all but what New and the
// search have. Nothing is counted: not even a node knows whether the request would
// have the labels rate, duplicate and replay.
func (e *Explanation) Decide(m *link.Match, book link.Rulebook, req *Request) error {
	_, _, query := splitURL(req.URL)
	headers := headersOf(req)
	var who visitor.Visitor
	who.Reset(req.Sources, req.Address, &headers)
	var trace link.Trace
	asks := link.Request{
		Host: []byte(e.Host), Path: []byte(e.Path), Query: []byte(query), UnixMicro: req.At.UnixMicro(),
		Address: req.Address, UserAgent: headers[visitor.UserAgent], Random: rand.Uint64(),
		Visitor: &who, Caps: req.Caps, Trace: &trace,
	}
	var verdict link.Verdict
	verdict.Off = req.Off
	if headers[visitor.UserAgent] == nil {
		verdict.Off |= link.Of(link.LabelNoUserAgent) // it was left out
	}
	who.Label(&verdict.Labels, false, isSecure(req.URL))
	verdict.Judge(book, m, &asks)
	asks.Treatment = verdict.Treatment
	var d link.Decision
	link.Resolve(m, &asks, &d)
	winner, err := Winner(m)
	if err != nil {
		return err
	}
	e.Visitor = visitorOf(&who, req.Address)
	e.answer(&d)
	e.judge(&trace, req.Off)
	e.trace(&trace)
	e.Because = because(&d, e, m, winner)
	return nil
}

// isSecure says whether a URL is asked for over TLS. It must say so.
func isSecure(url string) bool { return len(url) > 8 && strings.EqualFold(url[:8], "https://") }

// judge fills in what is held against the request.
func (e *Explanation) judge(t *link.Trace, off link.LabelSet) {
	for _, b := range t.Blocks {
		block := Block{
			Name: link.Blocks.Prefix() + b.Block.ID, Matches: b.Block.Matches(), Label: b.Label.String(), Action: b.Treatment.String(),
			Reason: b.Block.Reason(), Counts: b.Counts,
		}
		if end := b.Block.Ends(); !end.IsZero() {
			block.Ends = &end
		}
		e.Blocks = append(e.Blocks, block)
	}
	for _, l := range t.Labels {
		label := Label{Label: l.Label.String(), Reason: l.Reason, Action: l.Treatment.String()}
		if l.Scope != "" {
			label.Policy = link.Policies.Prefix() + l.Scope
		}
		e.Labels = append(e.Labels, label)
	}
	for _, l := range []link.Label{link.LabelRate, link.LabelDuplicate, link.LabelReplay} {
		if !off.Has(l) {
			e.NotCounted = append(e.NotCounted, l.String())
		}
	}
	e.KillSwitch, e.Treatment = t.Off, t.Treatment.String()
}

// headersOf are those of a request that something is known from.
func headersOf(req *Request) (h visitor.Headers) {
	value := func(name string) []byte {
		if values := req.Headers[textproto.CanonicalMIMEHeaderKey(name)]; name != "" && len(values) > 0 {
			return []byte(values[0])
		}
		return nil
	}
	for i, name := range visitor.HeaderNames {
		h[i] = value(name)
	}
	for i, name := range []string{req.GeoHeaders.Country, req.GeoHeaders.Region, req.GeoHeaders.City, req.GeoHeaders.ASN} {
		h[int(visitor.GeoCountry)+i] = value(name)
	}
	return h
}

func visitorOf(who *visitor.Visitor, addr netip.Addr) Visitor {
	place, agent := who.Place(), who.Agent()
	v := Visitor{
		Country: place.Country, Region: place.Region, City: place.City, ASN: place.ASN,
		Device: agent.Device, OS: agent.OS, Browser: agent.Browser, Bot: agent.Bot, Preview: who.IsPreview(),
		Langs: who.Languages(), Referrer: who.ReferrerDomain(),
	}
	if addr.IsValid() {
		v.Address = addr.String()
	}
	return v
}

func (e *Explanation) answer(d *link.Decision) {
	e.Status, e.Location, e.Outcome, e.Body = d.Status, string(d.Location), d.Outcome.String(), string(d.Body)
	e.Affiliate, e.Campaign, e.Variant, e.Rule = string(d.Affiliate), string(d.Campaign), string(d.Variant), d.Rule
	if d.Location != nil || d.Body != nil {
		e.Cache = d.CacheControl
	}
	if d.Location != nil {
		e.RobotsTag = d.RobotsTag
	}
	for _, p := range d.Params {
		e.Recorded = append(e.Recorded, string(p.Name)+"="+string(p.Value))
	}
}

var periods = map[link.CapPeriod]string{link.PerLife: "in all", link.PerHour: "per hour", link.PerDay: "per day"}

func (e *Explanation) trace(t *link.Trace) {
	for _, r := range t.Rules {
		rule := Rule{Number: r.Index + 1, Name: r.Name, When: r.When, Matched: r.Matched, Error: r.Error, Outcome: r.Outcome, Facts: map[string]string{}}
		for _, f := range r.Facts {
			rule.Facts[f.Name] = f.Value
		}
		e.Rules = append(e.Rules, rule)
	}
	for _, s := range t.Splits {
		e.Splits = append(e.Splits, Split(s))
	}
	e.SplitKey = t.SplitKey
	if c := t.Cap; c != nil {
		e.Cap = &Cap{c.Limit.Clicks, periods[c.Limit.Period], c.Asked, c.Room}
	}
	for _, m := range t.Macros {
		e.Macros = append(e.Macros, Macro(m))
	}
	for _, q := range t.Query {
		e.Query = append(e.Query, Parameter{q.Parameter, string(q.Origin), q.Sent, q.Because})
	}
}

// Winner decodes the link of a match, nil if there is none.
func Winner(m *link.Match) (*linkv1.Link, error) {
	if m.Value == nil {
		return nil, nil //nolint:nilnil // there is none
	}
	value := bytes.Clone(m.Value)
	if m.Link.IsBare() {
		value = m.Link.AppendValue(nil, m.Value, m.Plan.Bytes())
	}
	var r linkv1.Resource
	if err := proto.Unmarshal(value, &r); err != nil {
		return nil, fmt.Errorf("decode the link: %w", err)
	}
	return r.GetLink(), nil
}
