package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/guard"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// leader is the work of the process that leads, from the lease to its loss.
type leader struct {
	p       *Process
	js      jetstream.JetStream
	lease   *lease
	log     *slog.Logger
	engine  *guard.Engine
	reports *reports
	decider *decider
	state   *state
	found   []*clickv1.Finding // in the batch that is looked at
	// What was stored up to here another one has spoken of: without a checkpoint, the
	// past until then is read only to know what is usual. It is the time of clicks and
	// not that of findings, since who was killed may have been far behind.
	quiet time.Time
}

func newLeader(p *Process, js jetstream.JetStream, lease *lease) *leader {
	return &leader{p: p, js: js, lease: lease, log: p.log}
}

func (l *leader) run(ctx context.Context) error {
	if err := ensureFindings(ctx, l.js); err != nil {
		return err
	}
	var err error
	if l.engine, err = l.newEngine(); err != nil {
		return err
	}
	l.state = &state{leader: l, every: l.p.cfg.Checkpoint}
	if err := l.state.open(ctx); err != nil {
		return err
	}
	l.reports = newReports(l.js, l.lease, l.p.metrics)
	l.decider = newDecider(l)
	since := time.Now().Add(-lookBack)
	if s := l.state.begin.Stored; !s.IsZero() && s.Before(since) {
		since = s
	}
	undecided, err := l.reports.load(ctx, since.Add(-time.Minute), &l.decider.judge)
	if err != nil {
		return err
	}
	if l.state.begin.Next == 0 {
		l.quiet = l.reports.latest
	}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return l.p.control.watch(ctx) })
	all.Go(func() error { return l.decider.run(ctx, undecided) })
	all.Go(func() error { return l.consume(ctx) })
	return all.Wait()
}

// lookBack is how far back decisions are read: their blocks may still stand, and
// those of the last hour count.
const lookBack = 25 * time.Hour

func (l *leader) newEngine() (*guard.Engine, error) {
	return guard.NewEngine(l.p.cfg.Engine, func(f *clickv1.Finding) { l.found = append(l.found, f) })
}

func (l *leader) consume(ctx context.Context) error {
	err := clickstream.Consume(ctx, l.js, clickstream.Options{
		Store:     l.state,
		Start:     clickstream.At(time.Now().Add(-l.p.cfg.Rebuild)),
		SaveEvery: min(time.Second, l.p.cfg.Checkpoint),
		Malformed: func(m clickstream.Malformed) {
			l.p.metrics.malformed.Inc()
			l.log.Warn("a message in the stream of clicks is none of ours", "sequence", m.Sequence, "error", m.Err)
		},
		Progress: l.progress,
		Log:      l.log,
	}, l.batch)
	if err == nil {
		return errors.New("the stream of clicks has ended")
	}
	return fmt.Errorf("consume clicks: %w", err)
}

// batch looks at a batch, and publishes what was found.
func (l *leader) batch(ctx context.Context, b *clickstream.Batch) error {
	l.engine.Add(b)
	found := l.found
	l.found = l.found[:0]
	if b.Stored.Before(l.quiet) {
		return nil
	}
	for _, f := range found {
		isNew, err := l.reports.finding(ctx, f)
		if err != nil {
			return err
		}
		if isNew {
			l.decider.add(f)
		}
	}
	return nil
}

// progress is told of each batch that was read.
func (l *leader) progress(b *clickstream.Batch) {
	l.p.metrics.batch(b, l.engine)
}

// ensureFindings finds the stream of findings or makes it.
func ensureFindings(ctx context.Context, js jetstream.JetStream) error {
	_, err := js.Stream(ctx, clickstream.FindingsStreamName)
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	config := clickstream.FindingsConfig(replicas(ctx, js))
	for {
		_, err = js.CreateStream(ctx, config)
		api, refused := errors.AsType[*jetstream.APIError](err)
		if !refused || api.ErrorCode != codeNoStorage && api.ErrorCode != codeNoResources || config.MaxBytes <= 16<<20 {
			break
		}
		config.MaxBytes /= 2 // the server has less room
	}
	if err == nil || errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return nil
	}
	return fmt.Errorf("create stream %s: %w", clickstream.FindingsStreamName, err)
}

const (
	codeNoStorage   jetstream.ErrorCode = 10047 // insufficient storage resources available
	codeNoResources jetstream.ErrorCode = 10023 // insufficient resources
)

// replicas is how many the stream of clicks has: what belongs to it is as safe.
func replicas(ctx context.Context, js jetstream.JetStream) int {
	if stream, err := js.Stream(ctx, clickstream.StreamName); err == nil {
		return max(1, stream.CachedInfo().Config.Replicas)
	}
	return 1
}
