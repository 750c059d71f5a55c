package controlplane

import (
	"testing"

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

// cappedLink is a link of which that many clicks in all are sent on.
func cappedLink(path string, clicks uint64) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{
		Domain: "go.test", Path: path, Destination: "https://store.example/", Fallback: "https://store.example/later",
		Cap: &linkv1.Cap{Clicks: clicks},
	}}}
}
