package link

import (
	"fmt"
	"net/netip"
	"strings"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// Treatment is what is done about a request. A larger one is stricter.
type Treatment uint8

// The treatments.
const (
	TreatLabel       Treatment = iota // it is as any other, but for its labels
	TreatNoAffiliate                  // the destination, without what the affiliate earns by
	TreatFallback                     // the link's fallback, the affiliate's, or as if there were no link
	TreatRefuse                       // 403
	NumTreatments
)

var treatmentNames = [NumTreatments]string{"label", "no_affiliate", "fallback", "refuse"}

// String is the treatment's name: "no_affiliate".
func (t Treatment) String() string { return treatmentNames[t] }

// treatmentOf is what an action comes to.
func treatmentOf(a linkv1.BlockAction) Treatment {
	switch a {
	case linkv1.BlockAction_BLOCK_ACTION_REFUSE:
		return TreatRefuse
	case linkv1.BlockAction_BLOCK_ACTION_FALLBACK:
		return TreatFallback
	case linkv1.BlockAction_BLOCK_ACTION_NO_AFFILIATE:
		return TreatNoAffiliate
	}
	return TreatLabel
}

// LabelSet is a set of labels.
type LabelSet uint16

// Of gives the set of some labels.
func Of(labels ...Label) (s LabelSet) {
	for _, l := range labels {
		s |= 1 << l
	}
	return s
}

// Has says whether a label is in the set.
func (s LabelSet) Has(l Label) bool { return s&(1<<l) != 0 }

// ParseLabelSet reads names that are separated by commas. Nothing is the empty
// set.
func ParseLabelSet(list string) (s LabelSet, err error) {
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		l, hint, ok := ParseLabel(name)
		if !ok {
			return 0, fmt.Errorf("%q is no label: %s", name, hint)
		}
		s |= 1 << l
	}
	return s, nil
}

// Labels are the labels of one request, each with a reason. The zero value has
// none. What the reasons are is borrowed until the next Reset.
type Labels struct {
	Off LabelSet // those that are never given. Reset leaves it as it is

	set     LabelSet
	reasons [NumLabels][]byte
	by      [NumLabels]*Block // whose reason it is; nil: no block's
}

// Reset takes all labels away.
func (l *Labels) Reset() {
	for s := l.set; s != 0; s &= s - 1 {
		l.reasons[s.first()], l.by[s.first()] = nil, nil
	}
	l.set = 0
}

// Add gives a label, unless it is off. The first reason stays.
func (l *Labels) Add(label Label, reason []byte) {
	if l.Off.Has(label) || l.set.Has(label) {
		return
	}
	l.set |= 1 << label
	l.reasons[label] = reason
}

// Set is which labels there are.
func (l *Labels) Set() LabelSet { return l.set }

// Has says whether there is a label.
func (l *Labels) Has(label Label) bool { return l.set.Has(label) }

// Reason is why there is a label, nil if there is none.
func (l *Labels) Reason(label Label) []byte { return l.reasons[label] }

// Append appends the labels with their reasons as a click has them, in the order
// of their numbers.
func (l *Labels) Append(dst []Param) []Param {
	for s := l.set; s != 0; s &= s - 1 {
		i := s.first()
		dst = append(dst, Param{labelBytes[i], l.reasons[i]})
	}
	return dst
}

var labelBytes = func() (all [NumLabels][]byte) {
	for i, name := range labelNames {
		all[i] = []byte(name)
	}
	return all
}()

// Rulebook has the blocks and the policies of a state.
type Rulebook interface {
	// AppendBlocks appends the blocks that match a client's address, its user
	// agent or the affiliate of its link, whether they have expired or not, and
	// whichever affiliate's links they are about only. An address that is none, and
	// what is empty, matches nothing.
	AppendBlocks(dst []*Block, addr netip.Addr, userAgent, affiliate []byte) []*Block
	// Policies gives what holds for a host and an affiliate.
	Policies(host, affiliate []byte) InForce
}

// InForce are the policies that hold for one request, nil where there is none: what
// an affiliate's says about a label wins over its domain's, and that over the
// one of everything. The domain's is that of the host that was asked for, and
// where there is none that of "domains/*".
type InForce struct{ Any, Domain, Affiliate *LabelPolicies }

// about says what is done about a label, and whose policy says so.
func (p *InForce) about(l Label) (t Treatment, by *LabelPolicies) {
	for _, by := range [...]*LabelPolicies{p.Affiliate, p.Domain, p.Any} {
		if by != nil && by.says.Has(l) {
			return by.treatments[l], by
		}
	}
	return TreatLabel, nil
}

// Verdict is what is held against a request: its labels and, once it is judged,
// how it is treated. It is used again and again without an allocation.
type Verdict struct {
	Labels
	Treatment Treatment
	blocks    []*Block
}

// Reset makes it the verdict of a request against which nothing is held.
func (v *Verdict) Reset() {
	v.Labels.Reset()
	v.Treatment = TreatLabel
	clear(v.blocks)
	v.blocks = v.blocks[:0]
}

// Judge adds the labels of the blocks that match the request, and decides how it
// is treated: as the strictest of these blocks and of the policies of its labels
// says. A block counts until just before its end by the request's time. A label
// that blocks and others give has the reason of the strictest, and of several of
// these that of the smallest id. The switch of the
// policy of everything turns each treatment into a label.
func (v *Verdict) Judge(book Rulebook, m *Match, req *Request) {
	v.Find(book, m, req)
	v.Decide(book, m, req)
}

// Find is the first half of Judge, which can be done before the request has all its
// other labels: it finds the blocks that match.
func (v *Verdict) Find(book Rulebook, m *Match, req *Request) {
	v.blocks = book.AppendBlocks(v.blocks[:0], req.Address.Unmap().WithZone(""), req.UserAgent, m.affiliate())
}

// Decide is the other half: with the blocks that Find has found for the same
// request.
func (v *Verdict) Decide(book Rulebook, m *Match, req *Request) {
	affiliate := m.affiliate()
	treatment := TreatLabel
	for _, b := range v.blocks {
		if b.Only != "" && b.Only != string(affiliate) {
			continue
		}
		applies := req.UnixMicro < b.until && !v.Off.Has(b.label)
		if req.Trace != nil {
			req.Trace.block(b, applies)
		}
		if !applies {
			continue
		}
		v.accuse(b)
		treatment = max(treatment, b.treatment)
	}
	if v.set == 0 && req.Trace == nil {
		v.Treatment = treatment
		return
	}
	policies := book.Policies(req.Host, affiliate)
	for s := v.set; s != 0; s &= s - 1 {
		t, _ := policies.about(s.first())
		treatment = max(treatment, t)
	}
	off := policies.Any != nil && policies.Any.off
	if v.Treatment = treatment; off {
		v.Treatment = TreatLabel
	}
	if req.Trace != nil {
		req.Trace.verdict(v, &policies, off)
	}
}

// affiliate is the id of the link's affiliate, nil where there is none.
func (m *Match) affiliate() []byte {
	if m.Value == nil {
		return nil
	}
	return m.Link.Affiliate(m.Value)
}

// accuse gives the label of a block.
func (v *Verdict) accuse(b *Block) {
	switch by := v.by[b.label]; {
	case !v.Has(b.label):
	case by == nil && b.treatment == TreatLabel,
		by != nil && (b.treatment < by.treatment || b.treatment == by.treatment && b.ID > by.ID):
		return
	}
	v.set |= 1 << b.label
	v.reasons[b.label], v.by[b.label] = b.why, b
}
