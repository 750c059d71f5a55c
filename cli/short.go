package cli

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/affleet/affleet/cli/internal/document"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// shortFlag is a flag with a form of its own for a field that is written as YAML
// otherwise. An empty text clears the field.
type shortFlag struct {
	flag, field, usage string
	many               bool // may be repeated
	set                func(r *linkv1.Resource, texts []string) error
}

// linkShorts are those of links.
var linkShorts = []shortFlag{
	{
		flag: "split", field: "splits", many: true, usage: "`VARIANTS` by weight: a=70:URL,b=30:URL",
		set: func(r *linkv1.Resource, texts []string) (err error) {
			r.GetLink().Splits, err = parseSplits(strings.Join(texts, ","))
			return err
		},
	},
	{
		flag: "rule", field: "rules", many: true,
		usage: "`'WHEN => TO'`: CEL, and a URL, fallback or not-found; may be repeated",
		set: func(r *linkv1.Resource, texts []string) error {
			for _, text := range texts {
				rule, err := parseRule(text)
				if err != nil {
					return err
				}
				r.GetLink().Rules = append(r.GetLink().Rules, rule)
			}
			return nil
		},
	},
	queryFlag(func(r *linkv1.Resource) **linkv1.QueryPolicy { return &r.GetLink().Query }),
	queryNames("query-allow", "allow", "forward only these parameters: `NAMES`, by commas", func(r *linkv1.Resource) **linkv1.QueryPolicy { return &r.GetLink().Query }),
	queryNames("query-deny", "deny", "do not forward these: `NAMES`, by commas", func(r *linkv1.Resource) **linkv1.QueryPolicy { return &r.GetLink().Query }),
	queryNames("capture", "capture", "record these, and do not forward them: `NAMES`", func(r *linkv1.Resource) **linkv1.QueryPolicy { return &r.GetLink().Query }),
	{
		flag: "cap", field: "cap", usage: "at most so many `CLICKS`: 1000/day, 9/hour, or 9 in all",
		set: func(r *linkv1.Resource, texts []string) (err error) {
			r.GetLink().Cap, err = parseCap(texts[0])
			return err
		},
	},
}

// queryFlag is the mode of a query policy.
func queryFlag(policy func(*linkv1.Resource) **linkv1.QueryPolicy) shortFlag {
	return shortFlag{
		flag: "query", field: "query.mode", usage: "`MODE`: drop, keep, override or append the request's parameters",
		set: func(r *linkv1.Resource, texts []string) error {
			q := policyOf(policy(r)).ProtoReflect()
			return document.SetText(q, q.Descriptor().Fields().ByName("mode"), texts[0])
		},
	}
}

// queryNames is a list of names of a query policy.
func queryNames(flag, field, usage string, policy func(*linkv1.Resource) **linkv1.QueryPolicy) shortFlag {
	return shortFlag{
		flag: flag, field: "query." + field, usage: usage,
		set: func(r *linkv1.Resource, texts []string) error {
			q := policyOf(policy(r)).ProtoReflect()
			list := q.Mutable(q.Descriptor().Fields().ByName(protoreflect.Name(field))).List()
			for name := range strings.SplitSeq(texts[0], ",") {
				list.Append(protoreflect.ValueOfString(strings.TrimSpace(name)))
			}
			return nil
		},
	}
}

func policyOf(q **linkv1.QueryPolicy) *linkv1.QueryPolicy {
	if *q == nil {
		*q = &linkv1.QueryPolicy{}
	}
	return *q
}

// domainShorts are those of domains.
var domainShorts = []shortFlag{queryFlag(func(r *linkv1.Resource) **linkv1.QueryPolicy { return &r.GetDomain().Query })}

// affiliateShorts are those of affiliates.
var affiliateShorts = []shortFlag{{
	flag: "parameter", field: "parameters", many: true,
	usage: "`NAME=VALUE` that is added to the destinations of its links; may be repeated",
	set: func(r *linkv1.Resource, texts []string) error {
		for _, text := range texts {
			name, value, ok := strings.Cut(text, "=")
			if !ok || name == "" {
				return fmt.Errorf("must be NAME=VALUE, not %q", text)
			}
			r.GetAffiliate().Parameters = append(r.GetAffiliate().Parameters, &linkv1.Parameter{Name: name, Value: value})
		}
		return nil
	},
}}

// variantStart is where a variant begins: a URL may hold commas too.
var variantStart = regexp.MustCompile(`(?:^|,)\s*([^=,:/]+)=(\d+):`)

// parseSplits reads "a=70:URL,b=30:URL".
func parseSplits(text string) ([]*linkv1.Split, error) {
	starts := variantStart.FindAllStringSubmatchIndex(text, -1)
	if starts == nil || starts[0][0] != 0 {
		return nil, fmt.Errorf("must be NAME=WEIGHT:URL, separated by commas, not %q", text)
	}
	var splits []*linkv1.Split
	for i, at := range starts {
		end := len(text)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		weight, err := strconv.ParseUint(text[at[4]:at[5]], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("has a weight that is too large: %s", text[at[4]:at[5]])
		}
		splits = append(splits, &linkv1.Split{Name: text[at[2]:at[3]], Weight: uint32(weight), Destination: strings.TrimSpace(text[at[1]:end])})
	}
	return splits, nil
}

// parseRule reads "WHEN => TO".
func parseRule(text string) (*linkv1.Rule, error) {
	when, to, ok := strings.Cut(text, "=>")
	when, to = strings.TrimSpace(when), strings.TrimSpace(to)
	if !ok || when == "" || to == "" {
		return nil, fmt.Errorf(`must be WHEN => URL, such as 'country == "DE" => https://store.de/', not %q`, text)
	}
	rule := &linkv1.Rule{When: when}
	switch variants, isSplit := strings.CutPrefix(to, "split "); {
	case to == "fallback":
		rule.Outcome = &linkv1.Rule_Fallback{Fallback: true}
	case to == "not-found":
		rule.Outcome = &linkv1.Rule_NotFound{NotFound: true}
	case isSplit:
		splits, err := parseSplits(strings.TrimSpace(variants))
		if err != nil {
			return nil, err
		}
		rule.Outcome = &linkv1.Rule_Splits{Splits: &linkv1.SplitSet{Splits: splits}}
	default:
		rule.Outcome = &linkv1.Rule_Destination{Destination: to}
	}
	return rule, nil
}

// parseCap reads "1000/day".
func parseCap(text string) (*linkv1.Cap, error) {
	number, period, _ := strings.Cut(text, "/")
	clicks, err := strconv.ParseUint(number, 10, 64)
	periods := map[string]linkv1.CapPeriod{
		"": linkv1.CapPeriod_CAP_PERIOD_TOTAL, "total": linkv1.CapPeriod_CAP_PERIOD_TOTAL,
		"hour": linkv1.CapPeriod_CAP_PERIOD_HOUR, "day": linkv1.CapPeriod_CAP_PERIOD_DAY,
	}
	p, known := periods[period]
	if err != nil || !known {
		return nil, fmt.Errorf("must be a number of clicks, or one per hour or day such as 1000/day, not %q", text)
	}
	return &linkv1.Cap{Clicks: clicks, Period: p}, nil
}

// apply sets the field, or clears it.
func (s *shortFlag) apply(r *linkv1.Resource, texts []string) error {
	if len(texts) == 1 && texts[0] == "" {
		return nil // what is not set, and in the mask, is cleared
	}
	if err := s.set(r, texts); err != nil {
		return usagef("", "--%s %s", s.flag, err)
	}
	return nil
}
