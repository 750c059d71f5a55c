package caps

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	"github.com/affleet/affleet/proto/link"
)

// hanging is a control plane that answers for a while, and from then on holds
// its connections and says nothing.
type hanging struct {
	*ledger
	from time.Time
}

func (h hanging) Lease(ctx context.Context, req *feedv1.LeaseRequest) (*feedv1.LeaseResponse, error) {
	if time.Now().Before(h.from) {
		return h.ledger.Lease(ctx, req)
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// serveFates serves the ledger at the control planes "good" and "hangs", which
// hangs from then on, and gives who dials these, "silent", which accepts and says
// nothing, and "gone".
func (l *ledger) serveFates(t *testing.T, from time.Time) grpc.DialOption {
	t.Helper()
	served := map[string]*bufconn.Listener{}
	for fate, service := range map[string]feedv1.CapServiceServer{"good": l, "hangs": hanging{l, from}} {
		ln, server := bufconn.Listen(1<<16), grpc.NewServer()
		feedv1.RegisterCapServiceServer(server, service)
		go func() { _ = server.Serve(ln) }()
		t.Cleanup(server.Stop)
		served[fate] = ln
	}
	return grpc.WithContextDialer(func(ctx context.Context, fate string) (net.Conn, error) {
		switch fate {
		case "gone":
			return nil, errors.New("refused")
		case "silent":
			conn, _ := net.Pipe()
			return conn, nil
		}
		return served[fate].DialContext(ctx)
	})
}

// TestANodeEndsWithinASecondWhateverControlPlanesDo, and gives back to the one
// that answers, if it does not find out too late.
func TestANodeEndsWithinASecondWhateverControlPlanesDo(t *testing.T) {
	const links = 3000 // some calls' worth
	limit := link.Cap{Clicks: 1000, Period: link.PerLife}
	for _, c := range []struct {
		targets     []string
		hangs, ends time.Duration
		settled     bool
	}{
		{targets: []string{"good"}, settled: true},
		{targets: []string{"gone", "gone", "good"}, settled: true},
		{targets: []string{"hangs", "good"}, settled: true},
		{targets: []string{"silent", "good"}, settled: true},
		{targets: []string{"gone"}},
		{targets: []string{"hangs"}},
		{targets: []string{"silent", "silent", "silent"}},
		{targets: []string{"hangs"}, hangs: time.Second / 2, ends: time.Second / 2},                    // no call is under way
		{targets: []string{"hangs"}, hangs: 5 * time.Second / 2, ends: 3*time.Second + time.Second/10}, // idle accounts give back
	} {
		t.Run(fmt.Sprint(c.targets, " hangs after ", c.hangs), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &ledger{limit: limit.Clicks, used: map[string]uint64{}}
				cfg := Config{Node: "n", Dial: []grpc.DialOption{
					grpc.WithTransportCredentials(insecure.NewCredentials()), l.serveFates(t, time.Now().Add(c.hangs)),
				}}
				for _, fate := range c.targets {
					cfg.Targets = append(cfg.Targets, "passthrough:///"+fate)
				}
				node, err := New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- node.Run(ctx) }()
				for i := range links {
					if !node.Take(host, fmt.Appendf(nil, "/%d", i), limit, now(), true) {
						t.Fatal("refused")
					}
				}
				time.Sleep(max(c.ends, 10*time.Millisecond))
				cancel()
				stopped := time.Now()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if took := time.Since(stopped); took > time.Second {
					t.Errorf("it took %v to end", took)
				}
				if got := l.total(); c.settled && got != links {
					t.Errorf("the ledger says %d, and %d were sent on", got, links)
				}
			})
		})
	}
}
