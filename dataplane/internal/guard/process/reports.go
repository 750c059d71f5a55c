package process

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/guard/policy"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// reports writes the stream of findings. Each message names the one that it must
// follow, so that of two that believe to lead only one can write: the other learns
// what was written, and whether its lease holds. Methods may be called by any
// goroutine.
type reports struct {
	js      jetstream.JetStream
	lease   *lease
	metrics *metrics

	mu     sync.Mutex
	last   uint64          // sequence in the stream
	known  map[string]bool // ids of messages since the checkpoint
	latest time.Time       // of the clicks that were spoken of
}

func newReports(js jetstream.JetStream, lease *lease, m *metrics) *reports {
	return &reports{js: js, lease: lease, metrics: m, known: make(map[string]bool)}
}

// load reads what was said since a time, and gives the findings that nobody has
// decided.
func (r *reports) load(ctx context.Context, since time.Time, judge *policy.Judge) (undecided []*clickv1.Finding, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	stream, err := r.js.Stream(ctx, clickstream.FindingsStreamName)
	if err != nil {
		return nil, err
	}
	r.last = stream.CachedInfo().State.LastSeq
	findings := make(map[string]*clickv1.Finding)
	var order []string
	err = clickstream.Reports(ctx, r.js, clickstream.ReportOptions{Since: since}, func(report *clickstream.Report) error {
		r.last = max(r.last, report.Sequence)
		r.known[messageID(report.Report)] = true
		if d := report.GetDecision(); d != nil {
			judge.Note(d, findings[d.GetFinding()])
			delete(findings, d.GetFinding())
			return nil
		}
		f := report.GetFinding()
		if to := f.GetTo().AsTime(); to.After(r.latest) {
			r.latest = to
		}
		findings[f.GetId()] = f
		order = append(order, f.GetId())
		return nil
	})
	for _, id := range order {
		if f := findings[id]; f != nil {
			undecided = append(undecided, f)
			delete(findings, id)
		}
	}
	return undecided, err
}

// messageID is the Nats-Msg-Id of a report.
func messageID(r *clickv1.Report) string {
	if d := r.GetDecision(); d != nil {
		return d.GetFinding() + ".decision"
	}
	return r.GetFinding().GetId()
}

// finding publishes a finding; false when it was published before.
func (r *reports) finding(ctx context.Context, f *clickv1.Finding) (bool, error) {
	return r.publish(ctx, clickstream.FindingSubject(f.GetDetector()), &clickv1.Report{Report: &clickv1.Report_Finding{Finding: f}})
}

// decision publishes a decision.
func (r *reports) decision(ctx context.Context, d *clickv1.Decision) error {
	isNew, err := r.publish(ctx, clickstream.DecisionSubject(d.GetDetector()), &clickv1.Report{Report: &clickv1.Report_Decision{Decision: d}})
	if isNew {
		r.metrics.decisions.WithLabelValues(verdictName(d.GetVerdict())).Inc()
	}
	return err
}

// publish repeats until the stream has the report, or the lease is lost.
func (r *reports) publish(ctx context.Context, subject string, report *clickv1.Report) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := messageID(report)
	data, err := proto.Marshal(report)
	if err != nil {
		return false, err
	}
	pause := 50 * time.Millisecond
	for {
		switch {
		case r.known[id]:
			return false, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		case !r.lease.valid():
			return false, errLease
		}
		once, cancel := context.WithTimeout(ctx, 5*time.Second)
		ack, err := r.js.Publish(once, subject, data, jetstream.WithMsgID(id), jetstream.WithExpectLastSequence(r.last), jetstream.WithRetryAttempts(0))
		cancel()
		switch {
		case err == nil && !ack.Duplicate:
			r.last, r.known[id] = ack.Sequence, true
			return true, nil
		case err == nil:
			r.known[id] = true
			return false, nil
		}
		if isWrongLast(err) {
			err = nil
		}
		if syncErr := r.resync(ctx); syncErr != nil && err == nil {
			err = syncErr
		}
		if err == nil {
			continue
		}
		r.metrics.errors.WithLabelValues("publish").Inc()
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
	}
}

func isWrongLast(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence
}

// resync learns what the stream has got behind the last that is known: a report
// of our own whose acknowledgement was lost, or another one's.
func (r *reports) resync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stream, err := r.js.Stream(ctx, clickstream.FindingsStreamName)
	if err != nil {
		return fmt.Errorf("read findings: %w", err)
	}
	after := r.last
	if last := stream.CachedInfo().State.LastSeq; last < after { // it was made anew
		after, r.last = 0, last
	}
	return clickstream.Reports(ctx, r.js, clickstream.ReportOptions{After: after, Malformed: func(n uint64, _ error) { r.last = max(r.last, n) }},
		func(report *clickstream.Report) error {
			r.last = max(r.last, report.Sequence)
			r.known[messageID(report.Report)] = true
			return nil
		})
}

// trim forgets ids that cannot come again: those from before a checkpoint. Which
// they are is not kept; the stream drops what is repeated within its window.
func (r *reports) trim() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.known) > maxKnown {
		r.known = make(map[string]bool)
	}
}

// maxKnown bounds the ids that are kept.
const maxKnown = 200_000
