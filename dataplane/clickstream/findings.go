package clickstream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// Where the fraud detector's findings and decisions are.
const (
	FindingsStreamName = "AFF_FINDINGS"
	FindingsSubjects   = "aff.findings.v1.>"
	findingPrefix      = "aff.findings.v1.finding."
	decisionPrefix     = "aff.findings.v1.decision."
)

// FindingSubject is where findings of one detector are published, and
// DecisionSubject where is said what was done about them.
func FindingSubject(detector string) string { return findingPrefix + token(detector) }

// DecisionSubject is described at FindingSubject.
func DecisionSubject(detector string) string { return decisionPrefix + token(detector) }

// Limits of the stream of findings, where nobody has made another.
const (
	findingsAge   = 90 * 24 * time.Hour
	findingsBytes = 1 << 30
	// A report is small: a summary, some figures and 16 samples.
	largestReport = 64 << 10
	// A detector that starts anew repeats what it found in the last minutes;
	// what it said earlier it looks up in the stream.
	findingsDuplicates = 10 * time.Minute
)

// FindingsConfig is the stream of findings as the fraud detector makes it when
// there is none: the oldest reports go first.
func FindingsConfig(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        FindingsStreamName,
		Description: "What Affleet's fraud detector found, and what it did about it",
		Subjects:    []string{FindingsSubjects},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardOld,
		MaxAge:      findingsAge,
		MaxBytes:    findingsBytes,
		MaxMsgSize:  largestReport,
		Duplicates:  findingsDuplicates,
		Replicas:    max(1, replicas),
		AllowDirect: true,
	}
}

// ErrMalformedReport is wrapped by what is said about a message that is no
// report.
var ErrMalformedReport = errors.New("malformed report")

// DecodeReport reads one message of the stream of findings: a Finding or a
// Decision. One of a newer detector that is neither is an error too.
func DecodeReport(data []byte) (*clickv1.Report, error) {
	r := new(clickv1.Report)
	if err := proto.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformedReport, err)
	}
	switch {
	case r.GetFinding().GetId() != "", r.GetDecision().GetFinding() != "":
		return r, nil
	}
	return nil, fmt.Errorf("%w: it is neither a finding nor a decision", ErrMalformedReport)
}

// Report is a message of the stream of findings.
type Report struct {
	*clickv1.Report
	Sequence uint64    // of the stream
	Stored   time.Time // when the stream took it
}

// ReportOptions chooses reports. The zero value is all that the stream holds.
type ReportOptions struct {
	Since    time.Time // stored at this time or later. Default: the oldest
	After    uint64    // of a higher sequence; wins over Since
	Detector string    // only of this one
	// Findings and Decisions choose; neither is both.
	Findings, Decisions bool
	// Follow: go on with what comes, until the context ends.
	Follow bool
	// Malformed is called with a message that is no report. Default: it is
	// passed over.
	Malformed func(sequence uint64, err error)
}

func (o *ReportOptions) subjects() []string {
	detector := "*"
	if o.Detector != "" {
		detector = token(o.Detector)
	}
	switch {
	case o.Findings == o.Decisions:
		return []string{findingPrefix + detector, decisionPrefix + detector}
	case o.Findings:
		return []string{findingPrefix + detector}
	}
	return []string{decisionPrefix + detector}
}

// Reports calls handle with the reports that are chosen, in the order of the
// stream, and returns behind the last one; with Follow, when ctx ends. Where
// there is no stream nothing was ever found; with Follow it is waited for. An
// error of handle ends it and is returned.
func Reports(ctx context.Context, js jetstream.JetStream, options ReportOptions, handle func(*Report) error) error {
	for {
		stream, err := js.Stream(ctx, FindingsStreamName)
		switch {
		case err == nil:
			return reports(ctx, stream, &options, handle)
		case !errors.Is(err, jetstream.ErrStreamNotFound):
			return fmt.Errorf("read findings: %w", err)
		case !options.Follow:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func reports(ctx context.Context, stream jetstream.Stream, options *ReportOptions, handle func(*Report) error) error {
	config := jetstream.OrderedConsumerConfig{FilterSubjects: options.subjects(), InactiveThreshold: time.Minute}
	switch {
	case options.After > 0:
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, options.After+1
	case !options.Since.IsZero():
		config.DeliverPolicy, config.OptStartTime = jetstream.DeliverByStartTimePolicy, &options.Since
	}
	consumer, err := stream.OrderedConsumer(ctx, config)
	if err != nil {
		return fmt.Errorf("read findings: %w", err)
	}
	defer func() { // it would go by itself, later
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = stream.DeleteConsumer(last, consumer.CachedInfo().Name)
	}()
	if !options.Follow && consumer.CachedInfo().NumPending == 0 {
		return nil
	}
	messages, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("read findings: %w", err)
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("read findings: %w", err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("read findings: %w", err)
		}
		report, err := DecodeReport(m.Data())
		switch {
		case err == nil:
			if err := handle(&Report{report, meta.Sequence.Stream, meta.Timestamp}); err != nil {
				return err
			}
		case options.Malformed != nil:
			options.Malformed(meta.Sequence.Stream, err)
		}
		if !options.Follow && meta.NumPending == 0 {
			return nil
		}
	}
}
