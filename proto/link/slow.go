package link

import (
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
)

// evalSlowly evaluates with CEL's own evaluator, which allocates, and says why
// it failed.
func (p *program) evalSlowly(f *facts) (answer, error) {
	out, _, err := p.slow.Eval(activation{f})
	if err != nil {
		return failed, err
	}
	if out == types.True {
		return yes, nil
	}
	return no, nil
}

// activation shows facts to CEL. Programs hold on to nothing that it gives.
type activation struct{ facts *facts }

func (activation) Parent() cel.Activation { return nil }

func (a activation) ResolveName(name string) (any, bool) {
	f := a.facts
	if get, ok := stringFacts[name]; ok {
		return get(f), true
	}
	switch name {
	case "asn":
		return int64(f.where().ASN), true
	case "bot":
		return f.who().Bot, true
	case "now":
		return time.UnixMicro(f.req.UnixMicro).UTC(), true
	case "languages":
		return f.languages(), true
	case "query":
		return f.wholeQuery(), true
	case "labels":
		labels := map[string]string{}
		f.labels(func(key, value []byte) { labels[string(key)] = string(value) })
		return labels, true
	}
	return nil, false
}

// stringFacts are the variables of rules that are strings.
var stringFacts = map[string]func(*facts) string{
	"country": (*facts).country, "region": (*facts).region, "city": (*facts).city,
	"device": (*facts).device, "os": (*facts).os, "browser": (*facts).browser,
	"language": (*facts).language, "referrer_domain": (*facts).referrerDomain,
	"host": (*facts).host, "path": (*facts).path, "ip": (*facts).ip,
}

// wholeQuery gives the parameters of the request, decoded; of those with one
// name the first.
func (f *facts) wholeQuery() map[string]string {
	all := map[string]string{}
	rest := f.req.Query
	for range MaxQuery {
		var p param
		if p, rest = nextParam(rest); p.text == nil {
			break
		}
		name := string(appendDecodedQuery(nil, p.name()))
		if _, ok := all[name]; !ok {
			all[name] = string(appendDecodedQuery(nil, p.value()))
		}
	}
	return all
}
