package guard

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// verdict is what a detector says. Without confidence it says nothing.
type verdict struct {
	confidence float64
	summary    string // behind the subject's name
	figures    []*clickv1.Figure
	// What an affiliate's verdict rests on.
	begin  int64 // µs
	clicks uint64
}

func figure(name string, value, baseline, threshold float64) *clickv1.Figure {
	return &clickv1.Figure{Name: name, Value: value, Baseline: baseline, Threshold: threshold}
}

// span is the clicks that a verdict rests on.
type span struct {
	begin, end int64 // µs
	clicks     uint64
	affiliate  string
	share      float64 // of the clicks, at least, that are for it
	samples    []sample
}

// sourceFinding says what a detector found about a source.
func (e *Engine) sourceFinding(d detector, k kind, i int, f *features, at int64, v verdict) {
	s := &e.sources[k].slots[i]
	if !e.again(&s.found[d], at) {
		return
	}
	about := span{f.begin, max(f.last, at), uint64(f.n), e.affiliates.name(f.affiliate.hash), f.affiliate.least(f.n), s.samples[:min(s.taken, sourceSamples)]}
	// What is said next rests on what comes next.
	defer func() {
		if f == &s.long {
			s.hours = [24]uint16{}
		}
		*f = features{}
	}()
	var subject clickv1.Subject
	key := e.sources[k].keys[i]
	switch k {
	case kindAddress, kindNetwork:
		subject.Subject = &clickv1.Subject_Prefix{Prefix: getPrefix(s.prefix).String()}
	case kindAgent:
		subject.Subject = &clickv1.Subject_UserAgent{UserAgent: []byte(e.sources[k].names[i])}
	case kindASN:
		subject.Subject = &clickv1.Subject_Asn{Asn: s.asn}
	}
	e.emit(d, &subject, key^uint64(k), about, v)
}

// again says whether a detector may speak of a subject, and notes that it does.
func (e *Engine) again(found *uint32, at int64) bool {
	second := uint32(at / 1e6)
	if *found > 0 && second < *found+uint32(e.settings.Again/time.Second) {
		return false
	}
	*found = second
	return true
}

func (e *Engine) emit(d detector, subject *clickv1.Subject, key uint64, s span, v verdict) {
	e.findings[d]++
	if e.found == nil {
		return
	}
	f := &clickv1.Finding{
		Id:              fmt.Sprintf("%s-%016x-%x", d, key, s.begin),
		Detector:        d.String(),
		DetectorVersion: detectorVersion,
		Subject:         subject,
		Confidence:      v.confidence,
		Summary:         SubjectName(subject) + " " + v.summary,
		Figures:         v.figures,
		From:            timestamppb.New(time.UnixMicro(s.begin)),
		To:              timestamppb.New(time.UnixMicro(s.end)),
		Clicks:          s.clicks,
		Affiliate:       s.affiliate,
		AffiliateShare:  s.share,
	}
	if s.affiliate == "" {
		f.AffiliateShare = 0
	}
	for _, one := range s.samples {
		if id := e.boots.id(one); id != nil && one.sequence > 0 {
			f.Samples = append(f.Samples, id)
		}
	}
	e.found(f)
}

// SubjectName is the subject for people.
func SubjectName(s *clickv1.Subject) string {
	switch s := s.GetSubject().(type) {
	case *clickv1.Subject_Prefix:
		return s.Prefix
	case *clickv1.Subject_UserAgent:
		agent := s.UserAgent
		if len(agent) > 80 {
			return fmt.Sprintf("user agent %q...", agent[:80])
		}
		return fmt.Sprintf("user agent %q", agent)
	case *clickv1.Subject_Affiliate:
		return "affiliate " + s.Affiliate
	case *clickv1.Subject_Asn:
		return fmt.Sprintf("AS%d", s.Asn)
	}
	return "nobody"
}

// percent is a share for people.
func percent(share float64) string { return fmt.Sprintf("%.0f%%", 100*share) }

// per is how often something comes, for people.
func per(rate float64) string {
	switch {
	case rate >= 1:
		return fmt.Sprintf("%.1f/s", rate)
	case rate >= 1.0/60:
		return fmt.Sprintf("%.1f/min", 60*rate)
	}
	return fmt.Sprintf("%.1f/h", 3600*rate)
}

// lookFast, lookShort and lookLong ask the detectors about a source's windows.
func (e *Engine) lookFast(k kind, i int, at int64) {
	s := &e.sources[k].slots[i]
	e.say(detectFlood, k, i, &s.fast, at, e.settings.Flood.source(k, &s.fast, true))
	e.say(detectAgents, k, i, &s.fast, at, e.settings.ManyAgents.source(e, k, &s.fast))
}

func (e *Engine) lookShort(k kind, i int, at int64) {
	s := &e.sources[k].slots[i]
	e.say(detectAgents, k, i, &s.short, at, e.settings.ManyAgents.source(e, k, &s.short))
	e.say(detectFlood, k, i, &s.short, at, e.settings.Flood.source(k, &s.short, false))
	e.say(detectTiming, k, i, &s.short, at, e.settings.Timing.source(k, &s.short, s.again(detectTiming, at)))
}

func (e *Engine) lookLong(k kind, i int, at int64) {
	s := &e.sources[k].slots[i]
	e.say(detectTiming, k, i, &s.long, at, e.settings.Timing.source(k, &s.long, s.again(detectTiming, at)))
	e.say(detectTiming, k, i, &s.long, at, e.settings.Timing.night(k, &s.long, &s.hours))
	e.say(detectLowAndSlow, k, i, &s.long, at, e.settings.LowAndSlow.source(e, k, &s.long, s, at))
}

// again says whether a detector has found a source in the last day: then a
// quarter of the evidence is enough to find it again.
func (s *source) again(d detector, at int64) bool {
	return s.found[d] > 0 && at < int64(s.found[d])*1e6+longWindow
}

// onePeer is the share of a network's clicks from which it is one address: that is
// found itself, and its neighbours are not held to account for it. Where nodes
// truncate addresses, a network has none.
const onePeer = 0.9

func (e *Engine) say(d detector, k kind, i int, f *features, at int64, v verdict) {
	if k == kindNetwork && f.peer.hash != 0 && f.peer.share(f.n) >= onePeer {
		return
	}
	if v.confidence > 0 {
		e.sourceFinding(d, k, i, f, at, v)
	}
}
