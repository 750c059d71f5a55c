package link_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// withEverything says something in every field.
func withEverything() *linkv1.Link {
	l := withThreeRules()
	l.Affiliate, l.Campaign, l.Fallback = "aff_01", "spring", "https://store.com/sorry"
	l.Labels = map[string]string{"tier": "gold", "a": ""}
	l.StatusCode, l.Path, l.Rest = 307, "/summer/*", linkv1.RestPolicy_REST_POLICY_DROP
	l.Query = &linkv1.QueryPolicy{Mode: keep, Allow: []string{"a"}, Capture: []string{"c"}}
	l.Splits = []*linkv1.Split{{Name: "a", Weight: 1, Destination: "https://store.com/a"}, {Name: "b", Weight: 1, Destination: "https://store.com/b"}}
	l.Rules = append(l.Rules, &linkv1.Rule{When: `labels.tier == "none"`, Name: "n", Outcome: &linkv1.Rule_Fallback{Fallback: true}})
	l.Rules[2].When = `labels["tier"] == "gold" && country == "DE"`
	l.NotBefore, l.ExpiresAt = timestamppb.New(time.Unix(1, 0)), timestamppb.New(time.Unix(4e9, 0))
	l.Cap = &linkv1.Cap{Clicks: 3, Period: linkv1.CapPeriod_CAP_PERIOD_HOUR}
	l.Sticky, l.StickyParameter, l.AllowLoop = linkv1.StickyKey_STICKY_KEY_QUERY, "a", true
	return l
}

func TestBareLinksDecideAsWholeOnes(t *testing.T) {
	tiny := summer()
	tiny.Query = &linkv1.QueryPolicy{}
	for _, l := range []*linkv1.Link{withEverything(), withThreeRules(), withMacros(), tiny} {
		value, err := link.Encode(resource(l))
		if err != nil {
			t.Fatal(err)
		}
		var whole link.Match
		if err := whole.Load(value); err != nil {
			t.Fatal(err)
		}
		c, _ := link.Compile(value)
		plan := c.Plan(value)
		bare := c.AppendBare([]byte("x"), value, 1<<63|7)[1:]
		c = link.LoadCompiled(c.Append(nil))
		if !c.HasPlan() || !c.IsBare() || c.PlanKey(bare) != 1<<63|7 || len(bare) != len(value)-len(plan)+12 {
			t.Errorf("%d bytes of %d without a plan of %d, key %d", len(bare), len(value), len(plan), c.PlanKey(bare))
		}
		if got := c.AppendValue([]byte("x"), bare, plan); !bytes.Equal(got[1:], value) {
			t.Errorf("%x becomes %x", value, got[1:])
		}
		p, err := link.NewPlan(bytes.Clone(plan))
		if err != nil || !bytes.Equal(p.Bytes(), plan) {
			t.Fatalf("%v, or not its bytes", err)
		}
		for _, query := range []string{"", "a=1&c=2", "a=2&ref=3"} {
			var want, got link.Decision
			path := "/summer/x"
			link.Resolve(&whole, request(path, query), &want)
			link.Resolve(&link.Match{Link: c, Value: bare, Plan: p}, request(path, query), &got)
			if string(got.Location) != string(want.Location) || got.Rule != want.Rule || string(got.Variant) != string(want.Variant) ||
				got.Outcome != want.Outcome || string(got.Campaign) != string(want.Campaign) || want.Location == nil {
				t.Errorf("%s: %s rule %d, want %s rule %d", query, got.Location, got.Rule, want.Location, want.Rule)
			}
		}
	}
	value, _ := link.Encode(resource(summer()))
	if c, _ := link.Compile(value); c.HasPlan() || c.Plan(value) != nil {
		t.Error("a plain link has a plan")
	}
}

func TestLinksAreReadAsTheyWereWritten(t *testing.T) {
	l := withEverything()
	value, err := link.Encode(resource(l))
	if err != nil {
		t.Fatal(err)
	}
	r, err := link.Unmarshal("links/go.example.com/summer/*", value)
	if err != nil || !proto.Equal(r.GetLink(), l) {
		t.Fatalf("%v becomes %v, %v", l, r, err)
	}
	again, err := link.Encode(r)
	if err != nil || !bytes.Equal(value, again) {
		t.Errorf("%x becomes %x, %v", value, again, err)
	}
	if marshalled, err := link.Marshal(r); err != nil || !bytes.Equal(value, marshalled) {
		t.Errorf("Encode and Marshal differ: %v", err)
	}
}

// The longest value that may have a plan is, bare and with the shortest plan, as long
// as a value may be. What an earlier release has stored is not to become too long.
func TestTheLongestLinkWithAPlanFitsBare(t *testing.T) {
	const longest = 65525
	shortest, _ := link.Encode(resource(summer()))
	inner, n := protowire.ConsumeBytes(shortest[1:])
	if n != len(shortest)-1 {
		t.Fatalf("%x is not a link alone", shortest)
	}
	inner = append(bytes.Clone(inner), 8<<3|2, 0) // an empty query policy
	for _, size := range []int{longest, longest + 1} {
		with := protowire.AppendTag(bytes.Clone(inner), 99, protowire.BytesType) // of a later release
		with = protowire.AppendBytes(with, make([]byte, size-4-len(inner)-5))
		value := protowire.AppendBytes(shortest[:1:1], with)
		if len(value) != size {
			t.Fatalf("%d bytes, want %d", len(value), size)
		}
		var m link.Match
		if err := m.Load(value); (err == nil) != (size == longest) {
			t.Errorf("%d bytes: got %v", size, err)
		} else if err != nil {
			continue
		}
		bare := m.Link.AppendBare(nil, value, 7)
		if len(bare) != link.MaxValue {
			t.Errorf("%d bytes are %d bare", size, len(bare))
		}
		if !bytes.Equal(m.Link.AppendValue(nil, bare, m.Plan.Bytes()), value) {
			t.Error("another value comes back")
		}
	}
}

// A later release may say more in a resource, in front of the link or behind it.
func TestFieldsOfAResourceAreNotReadAsTheLinks(t *testing.T) {
	// Of numbers that a link has too: its cap, not_before, expires_at, labels and stickiness.
	others := protowire.AppendTag(nil, 14, protowire.BytesType)
	others = protowire.AppendBytes(others, []byte("\x08\x01"))
	for _, num := range []protowire.Number{12, 13} {
		others = protowire.AppendTag(others, num, protowire.BytesType)
		others = protowire.AppendBytes(others, []byte("\x08\x02"))
	}
	others = protowire.AppendTag(others, 6, protowire.BytesType)
	others = protowire.AppendBytes(others, []byte("\x0a\x04tier\x12\x06bronze"))
	others = protowire.AppendTag(others, 17, protowire.VarintType)
	others = protowire.AppendVarint(others, 1)
	plain := summer()
	plain.NotBefore = timestamppb.New(time.Unix(1, 0))
	for _, l := range []*linkv1.Link{withEverything(), withThreeRules(), plain} {
		value, err := link.Encode(resource(l))
		if err != nil {
			t.Fatal(err)
		}
		want := decideStored(t, value, false)
		for _, with := range [][]byte{slices.Concat(others, value), slices.Concat(value, others), slices.Concat(others, value, others)} {
			for _, bare := range []bool{false, true} {
				got := decideStored(t, with, bare)
				if string(got.Location) != string(want.Location) || got.Rule != want.Rule || got.Outcome != want.Outcome || got.Location == nil {
					t.Errorf("bare %t: %s by rule %d, %v, want %s by rule %d, %v", bare, got.Location, got.Rule, got.Outcome, want.Location, want.Rule, want.Outcome)
				}
			}
			c, err := link.Compile(with)
			if limit, _ := c.Cap(with); err != nil || limit.Clicks != l.GetCap().GetClicks() {
				t.Errorf("the cap is %+v, want %v, %v", limit, l.GetCap(), err)
			}
		}
	}
}

// decideStored decides by a stored value, whole or bare.
func decideStored(t *testing.T, value []byte, bare bool) (d link.Decision) {
	t.Helper()
	var m link.Match
	if err := m.Load(value); err != nil {
		t.Fatal(err)
	}
	if bare && m.Link.HasPlan() {
		m.Value = m.Link.AppendBare(nil, value, 7)
		if got := m.Link.AppendValue(nil, m.Value, m.Plan.Bytes()); !bytes.Equal(got, value) {
			t.Errorf("%x becomes %x", value, got)
		}
	}
	link.Resolve(&m, request("/summer/x", "a=1"), &d)
	return d
}

func TestPlansThatAreDamagedAreRefused(t *testing.T) {
	value, _ := link.Encode(resource(withEverything()))
	c, _ := link.Compile(value)
	plan := c.Plan(value)
	for n := range plan {
		damaged := bytes.Clone(plan)
		damaged[n] ^= 0x55
		if p, err := link.NewPlan(damaged); err == nil {
			var d link.Decision
			m := link.Match{Link: c, Value: value, Plan: p}
			link.Resolve(&m, request("/summer/x", "a=1"), &d)
		}
	}
	// Fields of the plan that do not stand side by side.
	apart := append([]byte{}, "\x42\x00\x3a\x00\x42\x00"...)
	l := []byte("\x0a\x01*\x12\x02/a\x1a\x0ehttps://a.com/")
	l = append(l, apart...)
	if _, err := link.Compile(append([]byte{0x0a, byte(len(l))}, l...)); err == nil {
		t.Error("a plan in several places is accepted")
	}
}

// FuzzNewPlan decides by whatever passes.
func FuzzNewPlan(f *testing.F) {
	value, _ := link.Encode(resource(withEverything()))
	c, _ := link.Compile(value)
	f.Add(c.Plan(value), "a=1")
	f.Fuzz(func(t *testing.T, b []byte, query string) {
		p, err := link.NewPlan(b)
		if err != nil {
			return
		}
		var d, traced link.Decision
		m := link.Match{Link: c, Value: value, Plan: p}
		req := request("/summer/x", query)
		link.Resolve(&m, req, &d)
		req.Trace = new(link.Trace)
		link.Resolve(&m, req, &traced)
		if string(d.Location) != string(traced.Location) || d.Rule != traced.Rule {
			t.Fatalf("%q by rule %d, and explained %q by rule %d", d.Location, d.Rule, traced.Location, traced.Rule)
		}
	})
}
