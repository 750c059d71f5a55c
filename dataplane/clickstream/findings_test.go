package clickstream

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/internal/natstest"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

func finding(id, detector string) *clickv1.Report {
	return &clickv1.Report{Report: &clickv1.Report_Finding{Finding: &clickv1.Finding{Id: id, Detector: detector}}}
}

func decision(id, detector string) *clickv1.Report {
	return &clickv1.Report{Report: &clickv1.Report_Decision{Decision: &clickv1.Decision{Finding: id, Detector: detector, Verdict: clickv1.Verdict_VERDICT_BLOCKED}}}
}

func TestReportsAreReadInOrderAndChosenByDetectorAndKind(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	js := natstest.Start(t).JetStream()
	read := func(o ReportOptions) (ids []string, sequences []uint64) {
		t.Helper()
		err := Reports(ctx, js, o, func(r *Report) error {
			id := r.GetFinding().GetId()
			if d := r.GetDecision(); d != nil {
				id = d.GetFinding() + "!"
			}
			ids, sequences = append(ids, id), append(sequences, r.Sequence)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return ids, sequences
	}
	if ids, _ := read(ReportOptions{}); ids != nil {
		t.Fatalf("without a stream: %v", ids)
	}
	if _, err := js.CreateStream(ctx, FindingsConfig(1)); err != nil {
		t.Fatal(err)
	}
	if ids, _ := read(ReportOptions{}); ids != nil {
		t.Fatalf("of an empty stream: %v", ids)
	}
	publish := func(subject string, data []byte) {
		t.Helper()
		if _, err := js.Publish(ctx, subject, data); err != nil {
			t.Fatal(err)
		}
	}
	send := func(r *clickv1.Report) {
		t.Helper()
		data, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		subject := FindingSubject(r.GetFinding().GetDetector())
		if d := r.GetDecision(); d != nil {
			subject = DecisionSubject(d.GetDetector())
		}
		publish(subject, data)
	}
	send(finding("a", "flood"))
	send(decision("a", "flood"))
	publish(FindingSubject("flood"), []byte("none of ours"))
	send(finding("b", "many_agents"))

	for _, c := range []struct {
		name string
		o    ReportOptions
		want []string
	}{
		{"all", ReportOptions{}, []string{"a", "a!", "b"}},
		{"findings", ReportOptions{Findings: true}, []string{"a", "b"}},
		{"decisions", ReportOptions{Decisions: true}, []string{"a!"}},
		{"one detector", ReportOptions{Detector: "many_agents"}, []string{"b"}},
		{"a detector that found nothing", ReportOptions{Detector: "bursts"}, nil},
		{"behind a sequence", ReportOptions{After: 2}, []string{"b"}},
		{"from a time to come", ReportOptions{Since: time.Now().Add(time.Hour)}, nil},
		{"from a time before", ReportOptions{Since: time.Now().Add(-time.Hour)}, []string{"a", "a!", "b"}},
	} {
		if ids, _ := read(c.o); !slices.Equal(ids, c.want) {
			t.Errorf("%s: %v, not %v", c.name, ids, c.want)
		}
	}

	bad := uint64(0)
	end := errors.New("end")
	var followed []string
	err := Reports(ctx, js, ReportOptions{Follow: true, Malformed: func(n uint64, err error) {
		if bad = n; !errors.Is(err, ErrMalformedReport) {
			t.Errorf("malformed: %v", err)
		}
	}}, func(r *Report) error {
		switch id := r.GetFinding().GetId(); id {
		case "b":
			send(finding("c", "timing"))
		case "c":
			return end
		default:
			followed = append(followed, id)
		}
		return nil
	})
	if !errors.Is(err, end) || bad != 3 || len(followed) != 2 {
		t.Fatalf("followed %v, malformed %d: %v", followed, bad, err)
	}
}

func FuzzDecodeReport(f *testing.F) {
	for _, r := range []*clickv1.Report{finding("a", "flood"), decision("a", "flood"), {}} {
		data, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeReport(data)
		if (r == nil) == (err == nil) || err != nil && !errors.Is(err, ErrMalformedReport) {
			t.Fatalf("%v, %v", r, err)
		}
	})
}
