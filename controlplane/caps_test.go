package controlplane

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/controlplane/internal/store"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// TestLeasesOfALinkMadeAnewAreToldFromThoseOfTheOneBefore goes through the whole
// control plane: a link is deleted, made anew, and the first one's leases come back.
func TestLeasesOfALinkMadeAnewAreToldFromThoseOfTheOneBefore(t *testing.T) {
	conn := dialServer(t, startServer(t, Config{}))
	admin, service := adminv1.NewLinkServiceClient(conn), feedv1.NewCapServiceClient(conn)
	create := func() {
		t.Helper()
		if _, err := admin.Create(t.Context(), &adminv1.CreateRequest{Resource: cappedLink("/a", 8)}); err != nil {
			t.Fatal(err)
		}
	}
	claim := &feedv1.CapClaim{Link: "go.test/a", Period: linkv1.CapPeriod_CAP_PERIOD_TOTAL, Wanted: 8}
	lease := func() *feedv1.CapGrant {
		t.Helper()
		resp, err := service.Lease(t.Context(), &feedv1.LeaseRequest{Node: "n", Claims: []*feedv1.CapClaim{claim}})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetGrants()[0]
	}
	create()
	old := lease()
	if _, err := admin.Delete(t.Context(), &adminv1.DeleteRequest{Name: "links/go.test/a"}); err != nil {
		t.Fatal(err)
	}
	create()
	leased := uint64(0)
	for g := lease(); g.GetGranted() > 0; g = lease() {
		leased += g.GetGranted()
	}
	claim.Creation, claim.Returned = old.GetCreation(), old.GetGranted()
	last := lease()
	if leased += last.GetGranted(); leased != 8 || old.GetGranted() != 2 {
		t.Errorf("%d clicks were leased of the first link and %d of the second, want 2 and 8", old.GetGranted(), leased)
	}
	if old.GetCreation() == 0 || last.GetCreation() <= old.GetCreation() {
		t.Errorf("the creations are %d and %d", old.GetCreation(), last.GetCreation())
	}
}

// TestCallsThatNobodyWaitsForAnyMoreTakeNothing: while etcd does not answer, nodes
// give up and ask again, and all their calls wait. What comes back in them counts.
func TestCallsThatNobodyWaitsForAnyMoreTakeNothing(t *testing.T) {
	resources := store.New(etcdtest.Start(t))
	if _, _, err := resources.Write(t.Context(), "", []store.Write{{Verb: store.Create, Resource: cappedLink("/a", 80)}}, false); err != nil {
		t.Fatal(err)
	}
	service := newCaps(resources, slog.New(slog.DiscardHandler))
	lease := func(ctx context.Context, claim *feedv1.CapClaim) (uint64, error) {
		claim.Link, claim.Period = "go.test/a", linkv1.CapPeriod_CAP_PERIOD_TOTAL
		resp, err := service.Lease(ctx, &feedv1.LeaseRequest{Node: "n", Claims: []*feedv1.CapClaim{claim}})
		if err != nil {
			return 0, err
		}
		return resp.GetGrants()[0].GetGranted(), nil
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	run := func() { ended <- service.run(ctx) }
	go run()
	if g, err := lease(t.Context(), &feedv1.CapClaim{Wanted: 20}); g != 20 || err != nil {
		t.Fatalf("%d clicks were leased: %v", g, err)
	}
	stop()
	<-ended // etcd does not answer

	gone, giveUp := context.WithCancel(t.Context())
	giveUp()
	for range 20 {
		if _, err := lease(gone, &feedv1.CapClaim{Owed: 3, Wanted: 20}); status.Code(err) != codes.Canceled {
			t.Fatalf("a call that was given up: %v", err)
		}
	}
	if _, err := lease(gone, &feedv1.CapClaim{Returned: 20}); status.Code(err) != codes.Canceled {
		t.Fatalf("a call that was given up: %v", err)
	}
	ctx, stop = context.WithCancel(t.Context())
	go run()
	if g, err := lease(t.Context(), &feedv1.CapClaim{Wanted: 80}); g != 20 || err != nil {
		t.Errorf("%d clicks were leased, want a quarter of all 80: %v", g, err)
	}
	stop()
	<-ended
}

// TestACallThatNobodyWaitsForAnyMoreIsRefused: what it owes has not been counted,
// and its node, which may read the answer yet, has to say so again. One that wants
// nothing may be a node's last.
func TestACallThatNobodyWaitsForAnyMoreIsRefused(t *testing.T) {
	resources := store.New(etcdtest.Start(t))
	if _, _, err := resources.Write(t.Context(), "", []store.Write{{Verb: store.Create, Resource: cappedLink("/a", 80)}}, false); err != nil {
		t.Fatal(err)
	}
	service := newCaps(resources, slog.New(slog.DiscardHandler))
	ask := func(ctx context.Context, claim store.CapClaim) capAnswer {
		claim.Link, claim.Period = "go.test/a", linkv1.CapPeriod_CAP_PERIOD_TOTAL
		call := &capCall{ctx: ctx, claims: []store.CapClaim{claim}, answer: make(chan capAnswer, 1)}
		service.answer(t.Context(), []*capCall{call})
		return <-call.answer
	}
	gone, giveUp := context.WithCancel(t.Context())
	giveUp()
	for _, claim := range []store.CapClaim{{Owed: 3, Wanted: 20}, {Owed: 40}} {
		if a := ask(gone, claim); !errors.Is(a.err, context.Canceled) {
			t.Errorf("%+v: the answer is %+v", claim, a)
		}
	}
	if a := ask(t.Context(), store.CapClaim{Wanted: 80}); a.err != nil || a.granted[0].Clicks != 10 {
		t.Errorf("leased is %+v, want a quarter of the 40 that are left", a)
	}
}

// TestAControlPlaneThatStopsAnswersTheCallsForLeasesThatWait: what they give back
// would be lost with them.
func TestAControlPlaneThatStopsAnswersTheCallsForLeasesThatWait(t *testing.T) {
	between := startNetwork(t, etcdtest.New(t).Endpoint())
	metrics := prometheus.NewRegistry()
	s, err := New(Config{
		Etcd: []string{"http://" + between.ln.Addr().String()}, Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler), Registerer: metrics,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.grace = patience
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	conn := dialServer(t, s)
	<-s.Ready()
	if _, err := adminv1.NewLinkServiceClient(conn).Create(t.Context(), &adminv1.CreateRequest{Resource: cappedLink("/a", 8)}); err != nil {
		t.Fatal(err)
	}
	between.slow.Lock()
	const calls = 10
	answers := make(chan error, calls)
	for range calls {
		go func() {
			claim := &feedv1.CapClaim{Link: "go.test/a", Period: linkv1.CapPeriod_CAP_PERIOD_TOTAL, Wanted: 1}
			_, err := feedv1.NewCapServiceClient(conn).Lease(t.Context(), &feedv1.LeaseRequest{Node: "n", Claims: []*feedv1.CapClaim{claim}})
			answers <- err
		}()
	}
	for deadline := time.Now().Add(patience); started(t, metrics, "Lease") < calls; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("the calls for leases do not come")
			break
		}
	}
	stop()
	between.slow.Unlock()
	for range calls {
		if err := <-answers; err != nil {
			t.Errorf("a call for leases while the control plane stops: %v", err)
		}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// started is how many calls of a method have come.
func started(t *testing.T, metrics prometheus.Gatherer, method string) (n float64) {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "grpc_server_started_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetName() == "grpc_method" && label.GetValue() == method {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}

// cappedLink is a link of which that many clicks in all are sent on.
func cappedLink(path string, clicks uint64) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
		Domain: "go.test", Path: path, Destination: "https://store.example/", Fallback: "https://store.example/later",
		Cap: &linkv1.Cap{Clicks: clicks},
	}}}
}
