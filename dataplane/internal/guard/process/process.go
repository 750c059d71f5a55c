// Package process runs the fraud detector: it consumes the stream of clicks,
// publishes what the engine finds, decides under the policy, and makes blocks
// through the admin API.
//
// Any number of processes may run; one leads, by a lease in a NATS KV bucket, and
// the others wait. The leader keeps checkpoints of its engine, with the place in
// the stream that they are of, in a NATS object store; whoever leads next goes on
// from there, finds what it would have found, and says nothing twice: ids of
// findings come from the clicks, and what was said since the checkpoint is read
// from the stream of findings first.
//
// What happens to a finding, in order: it is published, then decided, then its
// block is made, then the decision is published. A checkpoint waits until all that
// was found before it is published. A finding without a decision is decided by the
// next leader.
//
// Nothing waits for this: nodes label by themselves, and clicks stay in their
// stream until they are read.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/guard"
)

// Config says what a process is.
type Config struct {
	Name    string   // of this process, for people; unique
	Control []string // control planes, "host:port" each; at least one
	NATS    string   // URLs, separated by commas
	Engine  guard.Settings

	// Lease is how long another process waits until it leads, when the leader
	// says nothing. Default: 5 s; at least 1 s.
	Lease time.Duration
	// Checkpoint is the time between two checkpoints, and about the longest part
	// of the stream that is read again. Default: 5 min.
	Checkpoint time.Duration
	// Rebuild is how much of the past is read without a checkpoint. Default: 25 h,
	// the longest window and an hour.
	Rebuild time.Duration

	Dial       []grpc.DialOption // required
	Options    []nats.Option
	Log        *slog.Logger          // default: slog.Default()
	Registerer prometheus.Registerer // default: none
}

// Process is one fraud detector.
type Process struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	control *control
	nc      atomic.Pointer[nats.Conn]
	leading atomic.Bool
}

// New checks the configuration. Nothing is connected before Run.
func New(cfg Config) (*Process, error) {
	if cfg.Name == "" {
		return nil, errors.New("guard: it has no name")
	}
	if strings.TrimSpace(cfg.NATS) == "" {
		return nil, errors.New("guard: no NATS URL")
	}
	if err := clickstream.ValidateURLs(cfg.NATS); err != nil {
		return nil, fmt.Errorf("guard: %w", err)
	}
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{{&cfg.Lease, 5 * time.Second}, {&cfg.Checkpoint, 5 * time.Minute}, {&cfg.Rebuild, 25 * time.Hour}} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	if cfg.Lease < time.Second || cfg.Checkpoint < 0 || cfg.Rebuild < 0 {
		return nil, errors.New("guard: a lease is at least 1s, and times are positive")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if _, err := guard.NewEngine(cfg.Engine, nil); err != nil {
		return nil, err
	}
	control, err := newControl(cfg.Control, cfg.Dial, cfg.Log)
	if err != nil {
		return nil, err
	}
	p := &Process{cfg: cfg, log: cfg.Log, control: control, metrics: newMetrics()}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(p.metrics); err != nil {
			return nil, errors.Join(err, control.Close())
		}
	}
	return p, nil
}

// Close is for a process that is not run.
func (p *Process) Close() error { return p.control.Close() }

// Healthy says why it can do nothing, or nil: that it leads, or waits.
func (p *Process) Healthy() error {
	if nc := p.nc.Load(); nc == nil || !nc.IsConnected() {
		return errors.New("not connected to NATS")
	}
	return nil
}

// Leading says whether this process is the one that works.
func (p *Process) Leading() bool { return p.leading.Load() }

// Run leads when nobody else does, until ctx ends.
func (p *Process) Run(ctx context.Context) error {
	defer func() { _ = p.control.Close() }() // nothing is under way any more
	nc, err := nats.Connect(p.cfg.NATS, append([]nats.Option{
		nats.Name("affleet guard " + p.cfg.Name),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.ReconnectBufSize(-1),
		nats.ReconnectWait(500 * time.Millisecond),
		nats.Timeout(2 * time.Second),
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
	}, p.cfg.Options...)...)
	if err != nil {
		return fmt.Errorf("guard: connect to NATS: %w", err)
	}
	defer nc.Close()
	p.nc.Store(nc)
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	lease := &lease{js: js, name: p.cfg.Name, ttl: p.cfg.Lease, log: p.log}
	for pause := time.Duration(0); ; pause = min(max(2*pause, 250*time.Millisecond), 5*time.Second) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		if err := lease.acquire(ctx); err != nil {
			return err
		}
		began := time.Now()
		err := p.lead(ctx, js, lease)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.log.Warn("the guard does not lead any more", "error", err)
		if time.Since(began) > time.Minute {
			pause = 0
		}
	}
}

// lead works while the lease holds.
func (p *Process) lead(ctx context.Context, js jetstream.JetStream, lease *lease) error {
	held, stop := context.WithCancelCause(ctx)
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		stop(lease.hold(held))
	}()
	p.leading.Store(true)
	p.metrics.leader.Set(1)
	p.log.Info("this guard leads")
	err := newLeader(p, js, lease).run(held)
	if cause := context.Cause(held); cause != nil && ctx.Err() == nil {
		err = cause
	}
	stop(nil)
	<-renewed
	p.leading.Store(false)
	p.metrics.leader.Set(0)
	lease.release()
	return err
}
