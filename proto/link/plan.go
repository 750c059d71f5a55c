package link

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// Plan is how a link decides where to send a request: the runtime form of its
// query policy, rules and splits. Links that say the same can share one. It
// never changes.
type Plan struct {
	bytes  []byte
	query  *queryPolicy // nil: the domain's
	rules  []rule
	splits []variant // in place of the destination
}

// rule is a condition, and where a request goes that meets it.
type rule struct {
	when     *program
	name     span
	outcome  ruleOutcome
	to       span      // of ruleSends
	variants []variant // of ruleSplits
}

// ruleOutcome is a kind of outcome of a rule: its field number.
type ruleOutcome uint8

const (
	ruleSends     ruleOutcome = 2
	ruleSplits    ruleOutcome = 3
	ruleFallsBack ruleOutcome = 4
	ruleNotFound  ruleOutcome = 5
)

var ruleOutcomeNames = map[ruleOutcome]string{
	ruleSends: "destination", ruleSplits: "splits", ruleFallsBack: "fallback", ruleNotFound: "not_found",
}

// NewPlan makes the runtime form of what Compiled.Plan gives, and checks it. It
// keeps b, which must not change any more. CEL programs that another Plan has
// are shared.
func NewPlan(b []byte) (*Plan, error) {
	l := new(linkv1.Link)
	if err := proto.Unmarshal(b, l); err != nil {
		return nil, invalid("", "", "is damaged: %v", err)
	}
	var found problems
	programs := found.plan(l)
	if len(found) > 0 {
		return nil, found[0]
	}
	p := &Plan{bytes: b, query: policyOfQuery(l.GetQuery())}
	if n := len(l.GetRules()); n > 0 {
		p.rules = make([]rule, 0, n)
	}
	if n := len(l.GetSplits()); n > 0 {
		p.splits = make([]variant, 0, n)
	}
	err := fields(b, 0, func(num protowire.Number, typ protowire.Type, at span, _ uint64) *Error {
		if typ != protowire.BytesType {
			return invalid("", "", "field %d has wire type %d", num, typ)
		}
		switch num {
		case linkRules:
			r, err := readRule(b, at)
			if err != nil {
				return err
			}
			r.when = programs[len(p.rules)]
			p.rules = append(p.rules, r)
		case linkSplits:
			v, err := readVariant(b, at)
			if err != nil {
				return err
			}
			p.splits = append(p.splits, v)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Bytes are what the plan was made of. They belong to it.
func (p *Plan) Bytes() []byte { return p.bytes }

// asksVisitor says whether the plan sends different visitors to different
// places.
func (p *Plan) asksVisitor() bool { return len(p.rules) > 0 || len(p.splits) > 0 }

// readRule reads a rule that protobuf has read as well.
func readRule(b []byte, at span) (r rule, err *Error) {
	err = fields(at.in(b), at.off, func(num protowire.Number, typ protowire.Type, at span, _ uint64) *Error {
		switch {
		case typ == protowire.BytesType && (num == 2 || num == 3), typ == protowire.VarintType && (num == 4 || num == 5):
			if r.outcome != 0 {
				return invalid("rules", "", "have a rule with two outcomes")
			}
			r.outcome, r.to = ruleOutcome(num), at
		case typ == protowire.BytesType && num == 6:
			r.name = at
		}
		return nil
	})
	if err != nil || r.outcome != ruleSplits {
		return r, err
	}
	return r, fields(r.to.in(b), r.to.off, func(num protowire.Number, typ protowire.Type, at span, _ uint64) *Error {
		if num != 1 || typ != protowire.BytesType {
			return nil
		}
		v, err := readVariant(b, at)
		r.variants = append(r.variants, v)
		return err
	})
}

func readVariant(b []byte, at span) (v variant, err *Error) {
	err = fields(at.in(b), at.off, func(num protowire.Number, typ protowire.Type, at span, n uint64) *Error {
		switch {
		case typ == protowire.BytesType && num == 1:
			v.name = at
		case typ == protowire.VarintType && num == 2:
			v.weight = float64(uint32(n))
		case typ == protowire.BytesType && num == 3:
			v.destination = at
		}
		return nil
	})
	return v, err
}
