package link

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// Trace is how a request was decided, for people. Resolve adds to the one of its
// Request; what is in it stays valid.
type Trace struct {
	Blocks    []BlockStep // those that match, whether they count or not
	Labels    []LabelStep
	Off       bool // the kill switch: every label and block only labels
	Treatment Treatment

	Rules    []RuleStep
	Splits   []SplitStep // of the split that decided
	SplitKey string      // what the split is sticky by, in words
	Cap      *CapStep    // nil: no cap was asked for
	Macros   []MacroStep
	Query    []QueryStep
}

// BlockStep is a block that matches the request.
type BlockStep struct {
	Block     *Block
	Label     Label
	Treatment Treatment
	Counts    bool // false: it has expired, or its label is off
}

// LabelStep is a label of the request.
type LabelStep struct {
	Label     Label
	Reason    string
	Treatment Treatment
	Scope     string // of the policy that says so; empty when none does
}

// RuleStep is a rule that was looked at. Those behind the one that matched were
// not.
type RuleStep struct {
	Index   int // 0 for the first
	Name    string
	When    string
	Matched bool
	Error   string // why it was passed over; empty when it gave an answer
	Facts   []Fact // what it knows of, and what that was for the request
	Outcome string // in words: "destination", "splits", "fallback", "not_found"
}

// Fact is the value of a name that a rule uses, as CEL writes it.
type Fact struct{ Name, Value string }

// SplitStep is a variant of a split.
type SplitStep struct {
	Name   string
	Share  float64 // of all requests
	Chosen bool
}

// CapStep is the cap that was asked for.
type CapStep struct {
	Limit Cap
	Asked bool // false: the request has nobody to ask
	Room  bool
}

// MacroStep is a macro of the template that was filled in.
type MacroStep struct {
	Macro   string // as written: "{sub1|none}"
	Value   string // what it gave, before it was escaped
	Default bool   // the value is its default
}

// QueryStep is a parameter that was, or might have been, in the Location.
type QueryStep struct {
	Parameter string // "name=value" as it stands there
	Origin    Origin
	Sent      bool
	Because   string // why it was not sent
}

// Origin is where a parameter comes from.
type Origin string

// The origins.
const (
	OfDestination Origin = "destination"
	OfAffiliate   Origin = "affiliate"
	OfRequest     Origin = "request"
)

func (t *Trace) block(b *Block, counts bool) {
	t.Blocks = append(t.Blocks, BlockStep{b, b.label, b.treatment, counts})
}

func (t *Trace) verdict(v *Verdict, p *InForce, off bool) {
	for s := v.set; s != 0; s &= s - 1 {
		l := s.first()
		step := LabelStep{Label: l, Reason: string(v.reasons[l])}
		var by *LabelPolicies
		if step.Treatment, by = p.about(l); by != nil {
			step.Scope = by.Scope
		}
		t.Labels = append(t.Labels, step)
	}
	t.Off, t.Treatment = off, v.Treatment
}

func (t *Trace) rule(i int, r *rule, p *Plan, f *facts, a answer) {
	step := RuleStep{
		Index: i, Name: string(r.name.in(p.bytes)), When: r.when.text, Matched: a == yes, Outcome: ruleOutcomeNames[r.outcome],
	}
	if a == failed {
		step.Error = r.when.whyFailed(f)
	}
	for _, name := range r.when.names {
		step.Facts = append(step.Facts, Fact{name, f.literal(name)})
	}
	t.Rules = append(t.Rules, step)
}

// whyFailed is why a program fails for a request, in CEL's words.
func (p *program) whyFailed(f *facts) string {
	slow := p.slow
	if slow == nil {
		checked, issues := environment().Compile(p.text)
		if issues.Err() != nil {
			return issues.Err().Error()
		}
		var err error
		if slow, err = environment().Program(checked); err != nil {
			return err.Error()
		}
	}
	if _, _, err := slow.Eval(activation{f}); err != nil {
		return err.Error()
	}
	return "it fails"
}

// literal is the value of a variable as CEL writes it.
func (f *facts) literal(name string) string {
	v, _ := activation{f}.ResolveName(name)
	switch v := v.(type) {
	case time.Time:
		return "timestamp(" + strconv.Quote(v.Format(time.RFC3339Nano)) + ")"
	case string:
		return strconv.Quote(v)
	case []string:
		quoted := make([]string, len(v))
		for i, s := range v {
			quoted[i] = strconv.Quote(s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case map[string]string:
		return mapLiteral(v)
	}
	return fmt.Sprint(v)
}

func mapLiteral(m map[string]string) string {
	pairs := make([]string, 0, len(m))
	for k, v := range m {
		pairs = append(pairs, strconv.Quote(k)+": "+strconv.Quote(v))
	}
	slices.Sort(pairs)
	return "{" + strings.Join(pairs, ", ") + "}"
}

func (t *Trace) split(variants []variant, p *Plan, chosen *variant, f *facts) {
	sum := 0.0
	for i := range variants {
		sum += variants[i].weight
	}
	for i := range variants {
		v := &variants[i]
		t.Splits = append(t.Splits, SplitStep{string(v.name.in(p.bytes)), v.weight / sum, v == chosen})
	}
	t.SplitKey = f.stickyWords()
}

// stickyWords says what the split is drawn from.
func (f *facts) stickyWords() string {
	by, parameter := f.match.Link.sticky(f.match.Value)
	switch by {
	case linkv1.StickyKey_STICKY_KEY_NONE:
		return "nothing: each request is drawn anew"
	case linkv1.StickyKey_STICKY_KEY_QUERY:
		if len(f.parameterNamed(parameter)) > 0 {
			return "the parameter " + string(parameter)
		}
		return "address and user agent: the request has no parameter " + string(parameter)
	}
	return "address and user agent"
}

func (t *Trace) macro(text, value []byte, from form, raw, defaulted bool) {
	if from == queryText && !raw {
		value = appendDecodedQuery(nil, value)
	}
	t.Macros = append(t.Macros, MacroStep{string(text), string(value), defaulted})
}

func (t *Trace) query(parameter []byte, of Origin, because string) {
	t.Query = append(t.Query, QueryStep{string(parameter), of, because == "", because})
}
