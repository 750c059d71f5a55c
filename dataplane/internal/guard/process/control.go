package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/dataplane/internal/guard/policy"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// policyName is the policy that the detector heeds.
const policyName = "policies/*"

// control is the admin API of the control planes, one at a time. Methods may be
// called by any goroutine.
type control struct {
	conns []*grpc.ClientConn
	at    atomic.Uint32 // which one is used
	log   *slog.Logger

	mu    sync.Mutex
	rules *policy.Policy
	known chan struct{} // closed when rules is set
}

func newControl(targets []string, dial []grpc.DialOption, log *slog.Logger) (*control, error) {
	if len(targets) == 0 {
		return nil, errors.New("guard: no control plane to connect to")
	}
	c := &control{log: log, known: make(chan struct{})}
	for _, target := range targets {
		conn, err := grpc.NewClient(target, dial...) // connects to nothing yet
		if err != nil {
			return nil, errors.Join(fmt.Errorf("guard: control plane %q: %w", target, err), c.Close())
		}
		c.conns = append(c.conns, conn)
	}
	return c, nil
}

func (c *control) Close() (err error) {
	for _, conn := range c.conns {
		err = errors.Join(err, conn.Close())
	}
	return err
}

func (c *control) client() adminv1.LinkServiceClient {
	return adminv1.NewLinkServiceClient(c.conns[int(c.at.Load())%len(c.conns)])
}

// policy waits until the policy is known: under an unknown one nothing is
// decided, for the kill switch may be on.
func (c *control) policy(ctx context.Context) (*policy.Policy, error) {
	select {
	case <-c.known:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rules, nil
}

func (c *control) set(p *linkv1.Policy) error {
	rules, err := policy.New(p)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rules == nil {
		close(c.known)
	}
	c.rules = rules
	return nil
}

// watch keeps the policy up to date until ctx ends.
func (c *control) watch(ctx context.Context) error {
	pause := 100 * time.Millisecond
	told := false
	for {
		began := time.Now()
		err := c.follow(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(began) > 10*time.Second {
			pause, told = 100*time.Millisecond, false
		}
		if !told {
			c.log.Warn("the policy is not heard from: the last one that is known holds", "error", err)
			told = true
		}
		c.at.Add(1)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// follow reads the policy, and then its changes.
func (c *control) follow(ctx context.Context) error {
	client := c.client()
	once, cancel := context.WithTimeout(ctx, 5*time.Second)
	got, err := client.Get(once, &adminv1.GetRequest{Name: policyName})
	cancel()
	revision := got.GetVersion().GetRevision()
	switch status.Code(err) {
	case codes.OK:
		if err := c.set(got.GetResource().GetPolicy()); err != nil {
			return fmt.Errorf("the policy is not valid: %w", err)
		}
	case codes.NotFound:
		if err := c.set(nil); err != nil {
			return err
		}
	default:
		return err
	}
	stream, err := client.Watch(ctx, &adminv1.WatchRequest{Filters: []*adminv1.Filter{{Kind: adminv1.Kind_KIND_POLICY}}, FromRevision: revision})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, change := range m.GetChanges() {
			if change.GetName() != policyName {
				continue
			}
			if err := c.set(change.GetResource().GetPolicy()); err != nil {
				c.log.Error("the policy is not valid: the last one holds", "error", err)
			}
		}
	}
}

// block makes a block, or makes it anew.
func (c *control) block(ctx context.Context, b *linkv1.Block) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := c.client().Update(ctx, &adminv1.UpdateRequest{
		Resource: &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: b}}, AllowMissing: true,
	})
	if err != nil && !isRefused(err) {
		c.at.Add(1)
	}
	return err
}

// isRefused is true for what trying again does not mend.
func isRefused(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented, codes.NotFound, codes.AlreadyExists, codes.OutOfRange:
		return true
	}
	return false
}
