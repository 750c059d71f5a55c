package store

import "testing"

// TestWhatIsLeasedOfADeletedLinkIsNotOfTheOneMadeAnew: what comes back of the
// first neither makes room in the cap of the second nor takes any.
func TestWhatIsLeasedOfADeletedLinkIsNotOfTheOneMadeAnew(t *testing.T) {
	s := start(t)
	claim := CapClaim{Link: capped("/a"), Period: perLife, Wanted: 8}
	lease := func() CapGrant {
		t.Helper()
		granted, err := s.LeaseCaps(t.Context(), []CapClaim{claim})
		if err != nil {
			t.Fatal(err)
		}
		return granted[0]
	}
	s.putCapped(t, "/a", 8, perLife)
	old := lease()
	s.mustWrite(t, Write{Verb: Delete, Name: "links/" + capped("/a")})
	if g := lease(); g != (CapGrant{}) {
		t.Errorf("a deleted link has a grant: %+v", g)
	}
	s.putCapped(t, "/a", 8, perLife)
	anew := lease()
	if anew.Clicks != old.Clicks || anew.Creation <= old.Creation {
		t.Errorf("the new link has the grant %+v, and the old one had %+v", anew, old)
	}
	s.putCapped(t, "/a", 9, perLife)
	s.putCapped(t, "/a", 8, perLife)
	total := anew.Clicks
	lend := func() {
		t.Helper()
		for {
			g := lease()
			if g.Creation != anew.Creation {
				t.Fatalf("the link was edited, not made anew, and has the grant %+v after %+v", g, anew)
			}
			if claim.Owed, claim.Returned = 0, 0; g.Clicks == 0 {
				return
			}
			total += g.Clicks
		}
	}
	claim.Owed, claim.Creation = 3, old.Creation
	lend()
	if total != 8 {
		t.Errorf("%d clicks were leased, and the cap is 8: what is owed of the old link counts", total)
	}
	claim.Returned = old.Clicks
	lend()
	if total != 8 {
		t.Errorf("%d clicks were leased, and the cap is 8: what was given back of the old link counts", total)
	}
	for _, creation := range []int64{anew.Creation, 0} { // 0 as a node of an earlier release
		claim.Creation, claim.Returned, total = creation, 2, 0
		lend()
		if total != 2 {
			t.Errorf("creation %d: 2 clicks were given back, and %d leased", creation, total)
		}
	}
}
