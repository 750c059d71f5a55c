// Package local runs a whole fleet in one process: etcd, a NATS server with
// JetStream, a control plane and nodes, all of them the real ones, on loopback.
// It is for trying things out and for tests; in production each part is a
// process of its own.
//
// Start and Close may be called from any goroutine; a Fleet's fields do not
// change.
package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/affleet/affleet/controlplane"
	"github.com/affleet/affleet/dataplane"
	"github.com/affleet/affleet/deploy/service"
)

// Options says how the fleet is laid out. Addresses are "host:port"; port 0
// picks a free one. The zero value is a fleet of three nodes on free ports of
// loopback, in a temporary folder, without samples.
type Options struct {
	Nodes   int          // default: 3
	HTTP    string       // redirects of the first node; the next nodes take the next ports
	Control string       // gRPC of the control plane
	Etcd    string       // clients of etcd
	NATS    string       // clients of NATS
	Admin   string       // health and metrics of the control plane; the nodes' are on the next ports
	DataDir string       // kept, and found again at the next start; default: a temporary folder that Close removes
	Samples bool         // write samples.yaml when the store is empty
	Log     *slog.Logger // default: nothing is logged
	Regions []string     // the nodes' regions, in turn; default: local
	Guard   bool         // run a fraud detector too
}

// Fleet is a fleet that runs.
type Fleet struct {
	Control string   // host:port of the control plane
	Etcd    string   // URL
	NATS    string   // URL
	HTTP    []string // host:port of each node's redirects
	Admin   []string // host:port: the control plane's, then each node's, then the fraud detector's
	DataDir string

	temporary      bool
	control, nodes tier
	failed         context.Context // ends when a part does
	backends       []io.Closer     // closed in this order, after everything else has stopped
	lock           io.Closer       // of DataDir; nil until it is held
}

// tier is parts that stop together.
type tier struct {
	ctx   context.Context // ends when a part fails, and by stop
	stop  context.CancelFunc
	parts *errgroup.Group
}

func newTier(ctx context.Context) (t tier) {
	ctx, t.stop = context.WithCancel(context.WithoutCancel(ctx))
	t.parts, t.ctx = errgroup.WithContext(ctx)
	return t
}

// close stops the parts, waits for them, and gives the error of the first that
// failed.
func (t *tier) close() error {
	t.stop()
	if err := t.parts.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Start starts a fleet and returns when every node serves what the store
// holds.
func Start(ctx context.Context, opts Options) (_ *Fleet, err error) {
	opts.setDefaults()
	f := &Fleet{DataDir: opts.DataDir, control: newTier(ctx), nodes: newTier(ctx)}
	failed, fail := context.WithCancel(context.Background())
	context.AfterFunc(f.control.ctx, fail)
	context.AfterFunc(f.nodes.ctx, fail)
	f.failed = failed
	defer func() {
		if err != nil {
			_ = f.Close() // why it did not start is what matters
		}
	}()
	if f.DataDir == "" {
		f.temporary = true
		if f.DataDir, err = os.MkdirTemp("", "affleet-"); err != nil {
			return nil, err
		}
	}
	if f.lock, err = acquire(f.DataDir); err != nil {
		return nil, err
	}
	if err := f.startBackends(&opts); err != nil {
		return nil, err
	}
	if err := f.startControl(ctx, &opts); err != nil {
		return nil, err
	}
	if opts.Samples {
		if err := f.writeSamples(ctx); err != nil {
			return nil, fmt.Errorf("samples: %w", err)
		}
	}
	nodes := make([]*dataplane.Node, opts.Nodes)
	for i := range nodes {
		if nodes[i], err = f.startNode(&opts, i); err != nil {
			return nil, err
		}
	}
	for _, n := range nodes {
		if err := f.await(ctx, n.Ready()); err != nil {
			return nil, err
		}
	}
	if err := f.settle(ctx, len(nodes)); err != nil {
		return nil, fmt.Errorf("wait for the nodes: %w", err)
	}
	if opts.Guard {
		if err := f.startGuard(&opts); err != nil {
			return nil, fmt.Errorf("guard: %w", err)
		}
	}
	return f, nil
}

func (o *Options) setDefaults() {
	if o.Nodes <= 0 {
		o.Nodes = 3
	}
	for _, addr := range []*string{&o.HTTP, &o.Control, &o.Etcd, &o.NATS, &o.Admin} {
		if *addr == "" {
			*addr = "127.0.0.1:0"
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if len(o.Regions) == 0 {
		o.Regions = []string{"local"}
	}
}

// await waits for a part to become ready, and gives the reason if a part fails
// before that.
func (f *Fleet) await(ctx context.Context, ready <-chan struct{}) error {
	select {
	case <-ready:
		return nil
	case <-f.failed.Done():
		return f.cause()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Wait returns when ctx ends, or with the reason when a part of the fleet fails
// before that.
func (f *Fleet) Wait(ctx context.Context) error {
	select {
	case <-f.failed.Done():
		return f.cause()
	case <-ctx.Done():
		return nil
	}
}

// cause is why a part has failed.
func (f *Fleet) cause() error {
	if err := context.Cause(f.nodes.ctx); err != nil {
		return err
	}
	return context.Cause(f.control.ctx)
}

// Close stops the nodes, which publish their last clicks, then the control
// plane and the rest.
func (f *Fleet) Close() error {
	err := f.nodes.close()
	err = errors.Join(err, f.control.close())
	for _, b := range f.backends {
		err = errors.Join(err, b.Close())
	}
	if f.lock != nil {
		err = errors.Join(err, f.lock.Close())
	}
	if f.temporary {
		err = errors.Join(err, os.RemoveAll(f.DataDir))
	}
	return err
}

func (f *Fleet) startControl(ctx context.Context, opts *Options) error {
	metrics := service.NewRegistry()
	server, err := controlplane.New(controlplane.Config{
		Etcd:       []string{f.Etcd},
		Listen:     opts.Control,
		Build:      service.Version,
		Registerer: metrics,
		Log:        opts.Log.With("part", "control"),
	})
	if err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	f.Control = server.Addr().String()
	err = f.startPart(&f.control, service.Part{Admin: opts.Admin, Healthy: server.Healthy, Metrics: metrics, Run: server.Run, Close: server.Close})
	if err != nil {
		return err
	}
	return f.await(ctx, server.Ready())
}

func (f *Fleet) startNode(opts *Options, i int) (*dataplane.Node, error) {
	name := "node-" + strconv.Itoa(i+1)
	listen, err := nth(opts.HTTP, i)
	if err != nil {
		return nil, err
	}
	metrics := service.NewRegistry()
	node, err := dataplane.New(dataplane.Config{
		Node:       name,
		Region:     opts.Regions[i%len(opts.Regions)],
		Control:    []string{f.Control},
		NATS:       f.NATS,
		Listen:     listen,
		DataDir:    filepath.Join(f.DataDir, name),
		Build:      service.Version,
		Registerer: metrics,
		Log:        opts.Log.With("part", name),
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	f.HTTP = append(f.HTTP, node.Addr().String())
	admin, err := nth(opts.Admin, i+1)
	if err != nil {
		return nil, err
	}
	return node, f.startPart(&f.nodes, service.Part{
		Admin: admin, Healthy: node.Healthy, Metrics: metrics, Run: node.Run, Close: node.Close,
		Pages: []service.Page{{Pattern: "GET /state", Handler: node.ServeState}, {Pattern: "GET /explain", Handler: node.Explain().ServeHTTP}},
	})
}

func (f *Fleet) startGuard(opts *Options) error {
	admin, err := nth(opts.Admin, opts.Nodes+1)
	if err != nil {
		return err
	}
	metrics := service.NewRegistry()
	guard, err := dataplane.NewGuard(dataplane.GuardConfig{
		Name: "guard", Control: []string{f.Control}, NATS: f.NATS, Registerer: metrics, Log: opts.Log.With("part", "guard"),
	})
	if err != nil {
		return err
	}
	return f.startPart(&f.nodes, service.Part{Admin: admin, Healthy: guard.Healthy, Metrics: metrics, Run: guard.Run, Close: guard.Close})
}

// startPart runs a part of a tier and its admin address.
func (f *Fleet) startPart(t *tier, p service.Part) error {
	admin, err := service.ListenAdmin(p)
	if err != nil {
		return errors.Join(err, p.Close())
	}
	f.Admin = append(f.Admin, admin.Addr().String())
	t.parts.Go(func() error { return admin.Serve(t.ctx, p.Run) })
	return nil
}

// nth is the address of the i-th part: the same port for 0, and else i further.
func nth(addr string, i int) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return "", fmt.Errorf("address %s: the port is no number", addr)
	}
	if n != 0 {
		n += i
	}
	return net.JoinHostPort(host, strconv.Itoa(n)), nil
}

// startTimeout bounds the wait for a backend. They take well below a second.
const startTimeout = 30 * time.Second
