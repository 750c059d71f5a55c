package process

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/affleet/affleet/dataplane/internal/guard/policy"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// decider decides findings one after the other, makes their blocks, and publishes
// the decisions. While the control plane is away it waits; findings are published
// meanwhile.
type decider struct {
	leader *leader
	judge  policy.Judge
	queue  chan *clickv1.Finding
}

// maxQueue bounds the findings that wait for a decision. What does not fit stays
// without one until another process leads.
const maxQueue = 10_000

func newDecider(l *leader) *decider {
	return &decider{leader: l, queue: make(chan *clickv1.Finding, maxQueue)}
}

func (d *decider) add(f *clickv1.Finding) {
	select {
	case d.queue <- f:
	default:
		d.leader.p.metrics.errors.WithLabelValues("queue").Inc()
	}
	d.leader.p.metrics.waiting.Set(float64(len(d.queue)))
}

func (d *decider) run(ctx context.Context, undecided []*clickv1.Finding) error {
	for _, f := range undecided {
		if err := d.decide(ctx, f); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case f := <-d.queue:
			if err := d.decide(ctx, f); err != nil {
				return err
			}
			d.leader.p.metrics.waiting.Set(float64(len(d.queue)))
		}
	}
}

// decide decides until it is done: each attempt under the policy of its moment.
func (d *decider) decide(ctx context.Context, f *clickv1.Finding) error {
	l := d.leader
	pause := 100 * time.Millisecond
	for {
		rules, err := l.p.control.policy(ctx)
		if err != nil {
			return err
		}
		v := d.judge.Decide(rules, f, time.Now())
		if v.Block == nil {
			return l.reports.decision(ctx, v.Decision)
		}
		if !l.lease.valid() {
			return errLease
		}
		err = l.p.control.block(ctx, v.Block)
		if err == nil {
			v.Decision.Time = timestamppb.Now()
			return l.reports.decision(ctx, v.Decision)
		}
		d.judge.Undo(v.Decision)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.p.metrics.errors.WithLabelValues("block").Inc()
		if isRefused(err) {
			v.Decision.Verdict, v.Decision.ExpireTime = clickv1.Verdict_VERDICT_FAILED, nil
			v.Decision.Reason = "the control plane did not take the block: " + err.Error()
			return l.reports.decision(ctx, v.Decision)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 5*time.Second)
	}
}
