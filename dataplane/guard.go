package dataplane

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/dataplane/internal/guard/process"
)

// GuardConfig says how a fraud detector runs. The zero value lacks names: Name,
// Control and NATS are required.
type GuardConfig struct {
	Name    string   // unique among the detectors of a fleet
	Control []string // control planes, "host:port" each
	NATS    string   // URLs, separated by commas
	// Lease is how long another detector waits until it leads, when the one that
	// leads says nothing. Default: 5 s.
	Lease time.Duration
	// Checkpoint is the time between two checkpoints. Default: 5 min.
	Checkpoint time.Duration
	// Rebuild is how much of the past is read without a checkpoint. Default: 25 h.
	Rebuild time.Duration

	Registerer prometheus.Registerer // default: none
	Log        *slog.Logger          // default: slog.Default()
}

// Guard is a fraud detector: one of any number, of which one works.
type Guard struct{ process *process.Process }

// NewGuard checks the configuration. Nothing is connected before Run.
func NewGuard(cfg GuardConfig) (*Guard, error) {
	p, err := process.New(process.Config{
		Name: cfg.Name, Control: cfg.Control, NATS: cfg.NATS, Lease: cfg.Lease, Checkpoint: cfg.Checkpoint, Rebuild: cfg.Rebuild,
		Dial: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		Log:  cfg.Log, Registerer: cfg.Registerer,
	})
	if err != nil {
		return nil, err
	}
	return &Guard{p}, nil
}

// Run works until ctx ends, whenever no other detector does.
func (g *Guard) Run(ctx context.Context) error { return g.process.Run(ctx) }

// Healthy says why it can do nothing, or nil.
func (g *Guard) Healthy() error { return g.process.Healthy() }

// Close is for a detector that is not run.
func (g *Guard) Close() error { return g.process.Close() }
