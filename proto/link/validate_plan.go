package link

import (
	"fmt"
	"slices"
	"strings"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// destination checks a destination of a link, and that it is not a loop.
func (p *problems) destination(field, destination string, l *linkv1.Link) {
	if err := checkDestination(field, []byte(destination)); err != nil {
		p.add(err)
		return
	}
	if l.GetAllowLoop() || l.GetDomain() == "" {
		return
	}
	rest, _ := cutScheme(field, []byte(destination))
	host, _ := AppendCanonicalHost(nil, authorityOf(rest))
	if string(host) == l.GetDomain() {
		p.add(invalid(field, "set allow_loop (--allow-loop) if it is meant", "%q is on the link's own domain: a loop", destination))
	}
}

// plan checks the query policy, the rules and the splits, and gives the programs
// of the rules: nil for those that have none.
func (p *problems) plan(l *linkv1.Link) []*program {
	p.query(l.GetQuery())
	p.splits("splits", l.GetSplits(), l)
	rules := l.GetRules()
	if len(rules) > MaxRules {
		p.add(invalid("rules", "", "are %d, and at most %d are allowed", len(rules), MaxRules))
		return nil
	}
	programs := make([]*program, len(rules))
	total := uint64(0)
	for i, r := range rules {
		programs[i] = p.rule(fmt.Sprintf("rules[%d]", i), r, l)
		if programs[i] != nil {
			total += programs[i].cost
		}
	}
	if total > MaxRulesCost {
		p.add(invalid("rules", "use fewer loops, and shorter lists and patterns",
			"may cost %s units together, and at most %d are allowed", units(total), MaxRulesCost))
	}
	return programs
}

// units writes a cost, which may be beyond all counting.
func units(cost uint64) string {
	if cost > 1e15 {
		return "unbounded"
	}
	return fmt.Sprint(cost)
}

func (p *problems) rule(field string, r *linkv1.Rule, l *linkv1.Link) *program {
	when, err := checkCondition(field+".when", r.GetWhen())
	p.add(err)
	p.textOf(field+".name", r.GetName(), MaxName)
	switch o := r.GetOutcome().(type) {
	case *linkv1.Rule_Destination:
		p.destination(field+".destination", o.Destination, l)
	case *linkv1.Rule_Splits:
		if len(o.Splits.GetSplits()) == 0 {
			p.add(invalid(field+".splits", "", "are missing"))
		}
		p.splits(field+".splits.splits", o.Splits.GetSplits(), l)
	case *linkv1.Rule_Fallback:
		if !o.Fallback {
			p.add(invalid(field+".fallback", "leave it out, or set it to true", "is false"))
		}
	case *linkv1.Rule_NotFound:
		if !o.NotFound {
			p.add(invalid(field+".not_found", "leave it out, or set it to true", "is false"))
		}
	default:
		p.add(invalid(field, "set destination, splits, fallback or not_found", "has no outcome"))
	}
	return when
}

func checkCondition(field, text string) (*program, *Error) {
	if text == "" {
		return nil, invalid(field, ruleHint, "is missing")
	}
	if len(text) > MaxExpression {
		return nil, invalid(field, "", "is %d bytes long, and at most %d are allowed", len(text), MaxExpression)
	}
	if i := strings.IndexFunc(text, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }); i >= 0 {
		return nil, invalid(field, `in a string, write it as \x0a`, "has the control character %#02x in it", text[i])
	}
	p, err := programOf(text)
	if err != nil {
		err.Field = field
	}
	return p, err
}

func (p *problems) splits(field string, splits []*linkv1.Split, l *linkv1.Link) {
	if len(splits) > MaxSplits {
		p.add(invalid(field, "", "are %d, and at most %d are allowed", len(splits), MaxSplits))
		return
	}
	names := make([]string, 0, len(splits))
	for i, s := range splits {
		field := fmt.Sprintf("%s[%d]", field, i)
		if name := s.GetName(); name != "" && slices.Contains(names, name) {
			p.add(invalid(field+".name", "", "%q is there twice", name))
		} else {
			p.name(field+".name", name, MaxName)
		}
		names = append(names, s.GetName())
		switch w := s.GetWeight(); {
		case w == 0:
			p.add(invalid(field+".weight", "leave the variant out if nobody is to see it", "must be at least 1"))
		case w > MaxWeight:
			p.add(invalid(field+".weight", "weights are shares of their sum", "is %d, and at most %d is allowed", w, int(MaxWeight)))
		}
		p.destination(field+".destination", s.GetDestination(), l)
	}
}

// sticky checks what splits are sticky by.
func (p *problems) sticky(l *linkv1.Link) {
	by, parameter := l.GetSticky(), l.GetStickyParameter()
	splits := len(l.GetSplits()) > 0 || slices.ContainsFunc(l.GetRules(), func(r *linkv1.Rule) bool { return r.GetSplits() != nil })
	if parameter != "" {
		p.name("sticky_parameter", parameter, MaxText)
	}
	switch {
	case linkv1.StickyKey_name[int32(by)] == "":
		p.add(invalid("sticky", "CLIENT, QUERY or NONE", "%d is no key", by))
	case by != 0 && !splits:
		p.add(invalid("sticky", "leave it out, or add splits", "is for links with splits, and there are none"))
	case by == linkv1.StickyKey_STICKY_KEY_QUERY && parameter == "":
		p.add(invalid("sticky_parameter", "name the parameter of the request", "is missing"))
	case by != linkv1.StickyKey_STICKY_KEY_QUERY && parameter != "":
		p.add(invalid("sticky_parameter", "leave it out, or set sticky to QUERY", "is for splits that are sticky by a parameter"))
	}
}

// cap checks the limit on clicks, and what it and rules rely on: a fallback.
func (p *problems) cap(l *linkv1.Link) {
	if c := l.GetCap(); c != nil {
		if c.GetClicks() == 0 {
			p.add(invalid("cap.clicks", "leave the cap out for no limit", "must be at least 1"))
		}
		if linkv1.CapPeriod_name[int32(c.GetPeriod())] == "" {
			p.add(invalid("cap.period", "TOTAL, HOUR or DAY", "%d is no period", c.GetPeriod()))
		}
		if l.GetFallback() == "" {
			p.add(invalid("fallback", "say where requests over the cap go", "is missing, and there is a cap"))
		}
	}
	for i, r := range l.GetRules() {
		if r.GetFallback() && l.GetFallback() == "" {
			p.add(invalid(fmt.Sprintf("rules[%d].fallback", i), "set the link's fallback, or say not_found", "has no fallback to go to"))
		}
	}
}

func (p *problems) query(q *linkv1.QueryPolicy) {
	if linkv1.QueryMode_name[int32(q.GetMode())] == "" {
		p.add(invalid("query.mode", "DROP, KEEP, OVERRIDE or APPEND", "%d is no mode", q.GetMode()))
	}
	for _, list := range []struct {
		field string
		names []string
	}{{"query.allow", q.GetAllow()}, {"query.deny", q.GetDeny()}, {"query.capture", q.GetCapture()}} {
		if len(list.names) > MaxNames {
			p.add(invalid(list.field, "", "has %d names, and at most %d are allowed", len(list.names), MaxNames))
		}
		for i, name := range list.names {
			p.name(fmt.Sprintf("%s[%d]", list.field, i), name, MaxText)
		}
	}
	for i, name := range q.GetDeny() {
		if slices.Contains(q.GetAllow(), name) {
			p.add(invalid(fmt.Sprintf("query.deny[%d]", i), "", "%q is in allow as well", name))
		}
	}
}
