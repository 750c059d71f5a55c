package link_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// shelf is a link.Rulebook of blocks that all match.
type shelf struct {
	blocks []*link.Block
	in     link.InForce
}

func (s *shelf) AppendBlocks(dst []*link.Block, _ netip.Addr, _, _ []byte) []*link.Block {
	return append(dst, s.blocks...)
}

func (s *shelf) Policies(_, _ []byte) link.InForce { return s.in }

const (
	doLabel       = linkv1.BlockAction_BLOCK_ACTION_LABEL
	doRefuse      = linkv1.BlockAction_BLOCK_ACTION_REFUSE
	doFallback    = linkv1.BlockAction_BLOCK_ACTION_FALLBACK
	doNoAffiliate = linkv1.BlockAction_BLOCK_ACTION_NO_AFFILIATE
)

func compiledBlock(t *testing.T, b *linkv1.Block) *link.Block {
	t.Helper()
	if b.Reason == "" {
		b.Reason = "why"
	}
	value, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Block{Block: b}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := link.CompileBlock(value)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// says makes a policy: pairs of a label and an action.
func says(t *testing.T, scope string, off bool, pairs ...any) *link.LabelPolicies {
	t.Helper()
	p := &linkv1.Policy{Scope: scope, Off: off}
	for i := 0; i < len(pairs); i += 2 {
		p.Labels = append(p.Labels, &linkv1.LabelPolicy{Label: pairs[i].(link.Label).String(), Action: pairs[i+1].(linkv1.BlockAction)})
	}
	value, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: p}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := link.CompilePolicy(value)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestThePolicyThatIsNearestSaysWhatIsDoneAboutALabel(t *testing.T) {
	bot, rate, head := link.LabelBot, link.LabelRate, link.LabelHead
	any, domain, affiliate := says(t, "*", false, bot, doRefuse, rate, doNoAffiliate), says(t, "domains/h", false, bot, doFallback), says(t, "affiliates/a", false, bot, doLabel, head, doRefuse)
	for _, c := range []struct {
		in     link.InForce
		labels link.LabelSet
		want   link.Treatment
	}{
		{link.InForce{}, link.Of(bot, rate), link.TreatLabel},
		{link.InForce{Any: any}, 0, link.TreatLabel},
		{link.InForce{Any: any}, link.Of(head), link.TreatLabel},
		{link.InForce{Any: any}, link.Of(bot), link.TreatRefuse},
		{link.InForce{Any: any}, link.Of(rate), link.TreatNoAffiliate},
		{link.InForce{Any: any, Domain: domain}, link.Of(bot), link.TreatFallback},
		{link.InForce{Any: any, Domain: domain}, link.Of(rate), link.TreatNoAffiliate},
		{link.InForce{Any: any, Domain: domain}, link.Of(bot, rate), link.TreatFallback},
		{link.InForce{Any: any, Domain: domain, Affiliate: affiliate}, link.Of(bot), link.TreatLabel},
		{link.InForce{Any: any, Domain: domain, Affiliate: affiliate}, link.Of(bot, rate), link.TreatNoAffiliate},
		{link.InForce{Any: any, Domain: domain, Affiliate: affiliate}, link.Of(bot, head), link.TreatRefuse},
		{link.InForce{Any: says(t, "*", true, bot, doRefuse), Domain: says(t, "domains/h", false, bot, doRefuse)}, link.Of(bot), link.TreatLabel},
	} {
		var v link.Verdict
		for l := range link.NumLabels {
			if c.labels.Has(l) {
				v.Add(l, []byte("r"))
			}
		}
		v.Judge(&shelf{in: c.in}, matchOf(t, summer(), nil, nil), request("/summer", ""))
		if v.Treatment != c.want || v.Set() != c.labels {
			t.Errorf("%+v of labels %b: %v, want %v", c.in, c.labels, v.Treatment, c.want)
		}
	}
}

func TestTheStrictestBlockDecidesAndGivesItsReason(t *testing.T) {
	now := request("/summer", "").UnixMicro
	prefix := &linkv1.Block_Prefix{Prefix: "192.0.2.0/24"}
	ends := func(b *linkv1.Block, at int64) *linkv1.Block {
		b.Ttl, b.ExpireTime = durationpb.New(time.Hour), timestamppb.New(time.UnixMicro(at))
		return b
	}
	block := func(id string, action linkv1.BlockAction) *linkv1.Block {
		return &linkv1.Block{Id: id, Match: prefix, Action: action}
	}
	centre := block("dc", doNoAffiliate)
	centre.Label = "datacenter"
	for name, c := range map[string]struct {
		blocks  []*linkv1.Block
		in      link.InForce
		off     link.LabelSet
		want    link.Treatment
		reasons []string
	}{
		"one":                     {[]*linkv1.Block{block("a", 0)}, link.InForce{}, 0, link.TreatLabel, []string{"blocked a: why"}},
		"strictest first":         {[]*linkv1.Block{block("a", doRefuse), block("b", doFallback)}, link.InForce{}, 0, link.TreatRefuse, []string{"blocked a: why"}},
		"strictest last":          {[]*linkv1.Block{block("a", doNoAffiliate), block("b", doFallback)}, link.InForce{}, 0, link.TreatFallback, []string{"blocked b: why"}},
		"equally strict":          {[]*linkv1.Block{block("b", doRefuse), block("a", doRefuse), block("c", doRefuse)}, link.InForce{}, 0, link.TreatRefuse, []string{"blocked a: why"}},
		"two labels":              {[]*linkv1.Block{block("a", 0), centre}, link.InForce{}, 0, link.TreatNoAffiliate, []string{"datacenter dc: why", "blocked a: why"}},
		"policy is stricter":      {[]*linkv1.Block{block("a", doNoAffiliate)}, link.InForce{Any: says(t, "*", false, link.LabelBlocked, doRefuse)}, 0, link.TreatRefuse, []string{"blocked a: why"}},
		"block is stricter":       {[]*linkv1.Block{block("a", doRefuse)}, link.InForce{Any: says(t, "*", false, link.LabelBlocked, doLabel)}, 0, link.TreatRefuse, []string{"blocked a: why"}},
		"kill switch":             {[]*linkv1.Block{block("a", doRefuse)}, link.InForce{Any: says(t, "*", true)}, 0, link.TreatLabel, []string{"blocked a: why"}},
		"ends later":              {[]*linkv1.Block{ends(block("a", doRefuse), now+1)}, link.InForce{}, 0, link.TreatRefuse, []string{"blocked a: why"}},
		"ends now":                {[]*linkv1.Block{ends(block("a", doRefuse), now), block("b", doNoAffiliate)}, link.InForce{}, 0, link.TreatNoAffiliate, []string{"blocked b: why"}},
		"its label is off":        {[]*linkv1.Block{block("a", doRefuse), centre}, link.InForce{}, link.Of(link.LabelBlocked), link.TreatNoAffiliate, []string{"datacenter dc: why"}},
		"list and a block say it": {[]*linkv1.Block{centre}, link.InForce{}, 0, link.TreatNoAffiliate, []string{"datacenter dc: why"}},
	} {
		for _, traced := range []bool{false, true} {
			s := &shelf{in: c.in}
			for _, b := range c.blocks {
				s.blocks = append(s.blocks, compiledBlock(t, b))
			}
			req := request("/summer", "")
			if traced {
				req.Trace = new(link.Trace)
			}
			var v link.Verdict
			v.Off = c.off
			if name == "list and a block say it" {
				v.Add(link.LabelDatacenter, []byte("list 1"))
			}
			v.Judge(s, matchOf(t, summer(), nil, nil), req)
			var got []string
			for _, p := range v.Append(nil) {
				got = append(got, string(p.Name)+" "+string(p.Value))
			}
			if v.Treatment != c.want || !slices.Equal(got, c.reasons) {
				t.Errorf("%s: %v %q, want %v %q", name, v.Treatment, got, c.want, c.reasons)
			}
			if traced && (len(req.Trace.Blocks) != len(c.blocks) || len(req.Trace.Labels) != len(c.reasons) || req.Trace.Treatment != c.want || req.Trace.Off != (name == "kill switch")) {
				t.Errorf("%s: traced %+v", name, req.Trace)
			}
			v.Reset()
			if v.Set() != 0 || v.Treatment != link.TreatLabel || v.Reason(link.LabelBlocked) != nil || len(v.Append(nil)) > 0 {
				t.Errorf("%s: after Reset %+v", name, v)
			}
		}
	}
}

// A click whose address is truncated, hashed or left out has it from no label.
func TestALabelOfABlockDoesNotTellTheAddress(t *testing.T) {
	for prefix, c := range map[string]struct{ id, reason, want string }{
		"192.0.2.0/24":      {"net-192.0.2.0-24", "192.0.2.0/24 sends floods", "net-192.0.2.0-24: 192.0.2.0/24 sends floods"},
		"192.0.2.0/25":      {"net-192.0.2.0-25", "flood: 192.0.2.0/25 sent 50 clicks", "address: flood: it sent 50 clicks"},
		"192.0.2.1":         {"net-192.0.2.1", "192.0.2.1 sends floods, 192.0.2.1!", "address: it sends floods, it!"},
		"192.0.2.7":         {"guard-refuse-0123456789abcdef", "flood: 192.0.2.7/32 sent 50 clicks", "address: flood: it sent 50 clicks"},
		"2001:db8:1::/48":   {"net-2001_db8_1__-48", "a whole network", "net-2001_db8_1__-48: a whole network"},
		"2001:db8:1:2::/64": {"by-hand", "2001:db8:1:2:: again", "address: it again"},
		"2001:db8::1":       {"net-2001_db8__1", "flood", "address: flood"},
	} {
		b := compiledBlock(t, &linkv1.Block{Id: c.id, Reason: c.reason, Match: &linkv1.Block_Prefix{Prefix: prefix}})
		var v link.Verdict
		v.Judge(&shelf{blocks: []*link.Block{b}}, matchOf(t, summer(), nil, nil), request("/summer", ""))
		if got := string(v.Reason(link.LabelBlocked)); got != c.want {
			t.Errorf("%s: %q, want %q", prefix, got, c.want)
		}
		if b.ID != c.id || b.Reason() != c.reason {
			t.Errorf("%s: people are told of %s %q", prefix, b.ID, b.Reason())
		}
	}
	for _, b := range []*linkv1.Block{
		{Id: "agent", Match: &linkv1.Block_UserAgent{UserAgent: "x"}}, {Id: "affiliate", Match: &linkv1.Block_Affiliate{Affiliate: "x"}},
	} {
		c := compiledBlock(t, b)
		var v link.Verdict
		v.Judge(&shelf{blocks: []*link.Block{c}}, matchOf(t, summer(), nil, nil), request("/summer", ""))
		if got := string(v.Reason(link.LabelBlocked)); got != b.GetId()+": why" {
			t.Errorf("%s: %q", b.GetId(), got)
		}
	}
}

func TestABlockForOneAffiliateSparesTheOthers(t *testing.T) {
	one := &linkv1.Block{Id: "a", Match: &linkv1.Block_Prefix{Prefix: "192.0.2.0/24"}, Action: doRefuse, OnlyAffiliate: "aff_01"}
	s := &shelf{blocks: []*link.Block{compiledBlock(t, one)}}
	for affiliate, want := range map[string]link.Treatment{"aff_01": link.TreatRefuse, "aff_02": link.TreatLabel, "": link.TreatLabel} {
		l := summer()
		l.Affiliate = affiliate
		req := request("/summer", "")
		req.Trace = new(link.Trace)
		var v link.Verdict
		v.Judge(s, matchOf(t, l, nil, nil), req)
		if v.Treatment != want || v.Has(link.LabelBlocked) != (want == link.TreatRefuse) || len(req.Trace.Blocks) != min(1, int(want)) {
			t.Errorf("of %q: %v, %v", affiliate, v.Treatment, req.Trace.Blocks)
		}
	}
	var v link.Verdict
	if v.Judge(s, new(link.Match), request("/none", "")); v.Treatment != link.TreatLabel {
		t.Errorf("without a link: %v", v.Treatment)
	}
}

func TestATreatedRequestEarnsNothing(t *testing.T) {
	affiliate := &linkv1.Affiliate{Id: "aff_1", Parameters: []*linkv1.Parameter{{Name: "earn", Value: "yes"}}}
	l := summer()
	l.Destination, l.Affiliate = "https://store.com/p?own=1&ref={affiliate|nobody}", "aff_1"
	home := &linkv1.Domain{Host: "*", CacheControl: "max-age=60"}
	for _, mode := range []linkv1.QueryMode{linkv1.QueryMode_QUERY_MODE_DROP, linkv1.QueryMode_QUERY_MODE_KEEP, linkv1.QueryMode_QUERY_MODE_OVERRIDE, linkv1.QueryMode_QUERY_MODE_APPEND} {
		l.Query = &linkv1.QueryPolicy{Mode: mode}
		for _, traced := range []bool{false, true} {
			req := request("/summer", "earn=me&sub1=s&own=2")
			req.Treatment = link.TreatNoAffiliate
			if traced {
				req.Trace = new(link.Trace)
			}
			var d link.Decision
			link.Resolve(matchOf(t, l, home, affiliate), req, &d)
			want := map[linkv1.QueryMode]string{
				linkv1.QueryMode_QUERY_MODE_DROP:     "https://store.com/p?own=1&ref=nobody",
				linkv1.QueryMode_QUERY_MODE_KEEP:     "https://store.com/p?own=1&ref=nobody&sub1=s",
				linkv1.QueryMode_QUERY_MODE_OVERRIDE: "https://store.com/p?ref=nobody&sub1=s&own=2",
				linkv1.QueryMode_QUERY_MODE_APPEND:   "https://store.com/p?own=1&ref=nobody&sub1=s&own=2",
			}[mode]
			if string(d.Location) != want || d.Outcome != link.IsBlocked || d.Status != 302 || string(d.Affiliate) != "aff_1" || d.CacheControl != "no-store" {
				t.Errorf("%v: %d to %s, %v, %s; want %s", mode, d.Status, d.Location, d.Outcome, d.CacheControl, want)
			}
			if traced && !slices.ContainsFunc(req.Trace.Query, func(q link.QueryStep) bool {
				return q.Parameter == "earn=yes" && !q.Sent && q.Because != ""
			}) {
				t.Errorf("%v: the trace does not say why the affiliate's is left out: %+v", mode, req.Trace.Query)
			}
		}
	}
	// What nobody earns from is as it was.
	l.Affiliate = ""
	req := request("/summer", "")
	req.Treatment = link.TreatNoAffiliate
	var d link.Decision
	link.Resolve(matchOf(t, l, home, nil), req, &d)
	if d.Outcome != link.ToDestination {
		t.Errorf("without an affiliate: %v", d.Outcome)
	}
	// The destination's own parameter stays where the request's of that name may not pass.
	l.Affiliate, l.Destination, l.Query = "aff_1", "https://store.com/p?earn=mine", &linkv1.QueryPolicy{Mode: linkv1.QueryMode_QUERY_MODE_OVERRIDE}
	req = request("/summer", "earn=me")
	req.Treatment = link.TreatNoAffiliate
	link.Resolve(matchOf(t, l, home, affiliate), req, &d)
	if string(d.Location) != "https://store.com/p?earn=mine" {
		t.Errorf("sent to %s", d.Location)
	}
}

func TestRefusalsAndFallbacksOfTreatments(t *testing.T) {
	own, theirs := "https://store.com/own", "https://store.com/theirs?a={affiliate|nobody}"
	home := &linkv1.Domain{Host: "*", CacheControl: "max-age=60", NotFound: "https://store.com/404", RobotsTxt: "x"}
	for name, c := range map[string]struct {
		treatment link.Treatment
		link      func(*linkv1.Link)
		domain    *linkv1.Domain
		affiliate *linkv1.Affiliate
		path      string
		status    int
		location  string
		outcome   link.Outcome
	}{
		"refuse":                       {link.TreatRefuse, nil, home, nil, "/summer", 403, "", link.IsBlocked},
		"refuse a disabled link":       {link.TreatRefuse, func(l *linkv1.Link) { l.Disabled, l.Fallback = true, own }, home, nil, "/summer", 403, "", link.IsBlocked},
		"robots.txt is never refused":  {link.TreatRefuse, nil, home, nil, "/robots.txt", 200, "", link.ToRobots},
		"fallback of the link":         {link.TreatFallback, func(l *linkv1.Link) { l.Fallback = own }, home, &linkv1.Affiliate{Id: "a", Fallback: theirs}, "/summer", 302, own, link.IsBlocked},
		"fallback of the affiliate":    {link.TreatFallback, nil, home, &linkv1.Affiliate{Id: "a", Fallback: theirs}, "/summer", 302, "https://store.com/theirs?a=nobody", link.IsBlocked},
		"no fallback, and a not_found": {link.TreatFallback, nil, home, nil, "/summer", 302, "https://store.com/404", link.IsBlocked},
		"no fallback":                  {link.TreatFallback, nil, nil, nil, "/summer", 404, "", link.IsBlocked},
		"fallback where it is taken":   {link.TreatFallback, func(l *linkv1.Link) { l.Disabled, l.Fallback = true, own }, nil, nil, "/summer", 302, own, link.IsDisabled},
		"fallback before any cap":      {link.TreatFallback, func(l *linkv1.Link) { l.Cap, l.Fallback = &linkv1.Cap{Clicks: 1}, own }, nil, nil, "/summer", 302, own, link.IsBlocked},
	} {
		l := summer()
		if l.Affiliate = ""; c.affiliate != nil {
			l.Affiliate = "a"
		}
		if c.link != nil {
			c.link(l)
		}
		req := request(c.path, "sub1=s")
		req.Treatment, req.Caps = c.treatment, nobodyAsks{t}
		var d link.Decision
		link.Resolve(matchOf(t, l, c.domain, c.affiliate), req, &d)
		if d.Status != c.status || string(d.Location) != c.location || d.Outcome != c.outcome || c.outcome == link.IsBlocked && d.CacheControl != "no-store" {
			t.Errorf("%s: %d to %q, %v, %s", name, d.Status, d.Location, d.Outcome, d.CacheControl)
		}
		if c.status == 403 && (string(d.Path) != "/summer" || len(d.Params) != 1) {
			t.Errorf("%s: recorded as %s with %d parameters", name, d.Path, len(d.Params))
		}
	}
	req := request("/none", "")
	req.Treatment = link.TreatRefuse
	var d link.Decision
	link.Resolve(&link.Match{}, req, &d)
	if d.Status != 403 || d.Outcome != link.IsBlocked || d.Path != nil {
		t.Errorf("without a link: %+v", d)
	}
}

// nobodyAsks is a link.Caps that must not be asked.
type nobodyAsks struct{ t *testing.T }

func (n nobodyAsks) Take(*link.Match, link.Cap) bool {
	n.t.Error("a request that is treated took from the cap")
	return true
}

func TestCompileBlockAndPolicyRefuseWhatIsNone(t *testing.T) {
	noise := []byte("\xff\xfe")
	l, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: summer()}})
	if err != nil {
		t.Fatal(err)
	}
	bad, err := link.Marshal(&linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{Id: "b", Reason: "r", Match: &linkv1.Block_Prefix{Prefix: "10.0.0.1/8"}}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range [][]byte{nil, noise, l, bad} {
		if _, err := link.CompileBlock(value); err == nil {
			t.Errorf("%q is a block", value)
		}
		if _, err := link.CompilePolicy(value); err == nil {
			t.Errorf("%q is a policy", value)
		}
	}
}

func TestLabelSetsAreReadByName(t *testing.T) {
	if s, err := link.ParseLabelSet(" bot, no_ua,,bot"); err != nil || s != link.Of(link.LabelBot, link.LabelNoUserAgent) {
		t.Errorf("%b, %v", s, err)
	}
	if _, err := link.ParseLabelSet("bott"); err == nil {
		t.Error("bott is a label")
	}
}

func TestJudgingAllocatesNothing(t *testing.T) {
	s := &shelf{blocks: []*link.Block{compiledBlock(t, &linkv1.Block{Id: "a", Match: &linkv1.Block_Affiliate{Affiliate: "x"}})}, in: link.InForce{Any: says(t, "*", false, link.LabelBlocked, doNoAffiliate)}}
	m, req := matchOf(t, summer(), nil, nil), request("/summer", "")
	var v link.Verdict
	var params []link.Param
	why := []byte("list")
	if allocs := testing.AllocsPerRun(100, func() {
		v.Reset()
		v.Add(link.LabelBot, why)
		v.Judge(s, m, req)
		params = v.Append(params[:0])
	}); allocs != 0 || len(params) != 2 {
		t.Errorf("%v allocations, %d labels", allocs, len(params))
	}
}
