package snapshot

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func value(t *testing.T, r *linkv1.Resource) string {
	t.Helper()
	b, err := link.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func linkValue(t *testing.T, path string, disabled bool) string {
	return value(t, &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: "a", Path: path, Destination: "https://shop.test/", Disabled: disabled}}})
}

func affiliateValue(t *testing.T, state linkv1.AffiliateState) string {
	return value(t, &linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{Id: "x", State: state}}})
}

// decoded gives the names that a take-down has, and whether each has a value.
func decoded(t *testing.T, d *TakeDown) map[string]bool {
	t.Helper()
	var m feedv1.SubscribeResponse
	if err := proto.Unmarshal(d.Message, &m); err != nil {
		t.Fatal(err)
	}
	if m.GetTakeDown().GetVersion().GetRevision() != d.Revision || m.GetTakeDown().GetVersion().GetEpoch() != 7 {
		t.Fatalf("a take-down of revision %d says %v", d.Revision, m.GetTakeDown().GetVersion())
	}
	names := make(map[string]bool)
	for _, e := range m.GetTakeDown().GetEntries() {
		names[e.GetKey()] = len(e.GetValue()) > 0
	}
	return names
}

func TestWhatIsTakenDownIsOnlyThat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(map[string]string{
			"links/a/on": linkValue(t, "/on", false), "links/a/off": linkValue(t, "/off", true), "links/a/gone": linkValue(t, "/gone", false),
			"affiliates/x": affiliateValue(t, linkv1.AffiliateState_AFFILIATE_STATE_ACTIVE), "domains/a": "1",
		})
		l := start(t, src, Config{})
		for _, step := range []struct {
			changes map[string]string
			want    string
		}{
			{map[string]string{"links/a/new": linkValue(t, "/new", true), "domains/a": ""}, "map[]"},
			{map[string]string{"links/a/gone": "", "links/a/new": linkValue(t, "/new", false)}, "map[links/a/gone:false]"},
			{map[string]string{"links/a/on": linkValue(t, "/on", true), "links/a/off": linkValue(t, "/off2", true)}, "map[links/a/on:true]"},
			{map[string]string{"affiliates/x": affiliateValue(t, linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED)}, "map[affiliates/x:true]"},
			{map[string]string{"affiliates/x": affiliateValue(t, linkv1.AffiliateState_AFFILIATE_STATE_ACTIVE)}, "map[]"},
			{map[string]string{"links/a/new": "damaged \xff"}, "map[]"},
		} {
			downed := l.View().Downed()
			at := src.write(step.changes)
			synctest.Wait()
			got := "map[]"
			if downs := l.View().TakeDowns(at - 1); len(downs) > 0 {
				got = fmt.Sprint(decoded(t, downs[0]))
			}
			if got != step.want {
				t.Errorf("%v takes down %s, want %s", step.changes, got, step.want)
			}
			select {
			case <-downed:
				if step.want == "map[]" {
					t.Error("streams were woken for nothing")
				}
			default:
				if step.want != "map[]" {
					t.Error("streams were not woken")
				}
			}
			if wholly := l.View().IsTakeDown(at); wholly != (len(step.changes) == 1 && step.want != "map[]") {
				t.Errorf("%v is wholly a take-down: %v", step.changes, wholly)
			}
		}
	})
}

func blockValue(t *testing.T, reason string, end time.Time) string {
	b := &linkv1.Block{Id: "b", Match: &linkv1.Block_Prefix{Prefix: "192.0.2.1"}, Reason: reason}
	if !end.IsZero() {
		b.Ttl, b.ExpireTime = durationpb.New(time.Hour), timestamppb.New(end)
	}
	return value(t, &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: b}})
}

func TestEveryWriteOfABlockOrPolicyOvertakesButNotTheEndOfABlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.write(map[string]string{"blocks/mistake": blockValue(t, "r", time.Time{}), "policies/*": "1"})
		l := start(t, src, Config{})
		now := time.Now()
		for _, step := range []struct {
			changes map[string]string
			want    string
		}{
			{map[string]string{"policies/*": "off"}, "map[policies/*:true]"},
			{map[string]string{"blocks/mistake": "", "domains/a": "1"}, "map[blocks/mistake:false]"},
			{map[string]string{"blocks/ends": blockValue(t, "r", now.Add(time.Hour)), "blocks/stands": blockValue(t, "r", time.Time{})}, "map[blocks/ends:true blocks/stands:true]"},
			{map[string]string{"blocks/ends": blockValue(t, "other", now.Add(time.Minute))}, "map[blocks/ends:true]"},
			{map[string]string{"blocks/ended": blockValue(t, "r", now.Add(time.Second))}, "map[blocks/ended:true]"},
			{map[string]string{"blocks/ended": ""}, "map[]"}, // by its lease
			{map[string]string{"blocks/ends": "", "policies/*": ""}, "map[blocks/ends:false policies/*:false]"},
			{map[string]string{"blocks/stands": ""}, "map[blocks/stands:false]"},
		} {
			at := src.write(step.changes)
			synctest.Wait()
			got := "map[]"
			if downs := l.View().TakeDowns(at - 1); len(downs) > 0 {
				got = fmt.Sprint(decoded(t, downs[0]))
			}
			if got != step.want {
				t.Errorf("%v overtakes as %s, want %s", slices.Sorted(maps.Keys(step.changes)), got, step.want)
			}
		}
	})
}

// TestKillSwitchOvertakesALongListOfBlocks writes a list faster than the lane takes
// it, and lets it end; a policy is written into each.
func TestKillSwitchOvertakesALongListOfBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.forgets = true
		src.write(map[string]string{"domains/a": "1"})
		l := start(t, src, Config{})
		end := time.Now().Add(time.Minute)
		written := func(text string) {
			t.Helper()
			at := src.write(map[string]string{"policies/*": text})
			synctest.Wait()
			downs := l.View().TakeDowns(0)
			total := 0
			for _, d := range downs {
				total += d.entries
			}
			if last := downs[len(downs)-1]; last.Revision != at || total > maxDowns {
				t.Fatalf("the last of %d take-downs of %d resources is of revision %d, want %d", len(downs), total, last.Revision, at)
			}
		}
		for i := range 200 {
			part := make(map[string]string)
			for j := range 100 {
				part[fmt.Sprintf("blocks/%d", i*100+j)] = blockValue(t, "r", end)
			}
			src.write(part)
		}
		written("on")
		if l.metrics.downsSkipped.Load() == 0 {
			t.Fatal("all of the list went by the lane")
		}
		time.Sleep(time.Minute)
		before := len(l.View().TakeDowns(0))
		for i := range 12_000 {
			src.write(map[string]string{fmt.Sprintf("blocks/%d", i): ""})
		}
		written("off")
		if n := len(l.View().TakeDowns(0)); n != before+1 {
			t.Fatalf("%d take-downs after the blocks have ended, want %d", n, before+1)
		}
		if v := l.View(); v.hold != nil || v.Head().Revision != v.seen {
			t.Fatalf("blocks that end are held back: %+v", v.hold)
		}
	})
}

func TestTakeDownIsToldWhileItsVersionIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, l, n := guarded(t, Config{})
		src.write(links(1000, ""))
		at := src.write(map[string]string{"links/a/1999": ""})
		serves(t, l, n, 2000)
		downs := l.View().TakeDowns(n.held.Revision)
		if len(downs) != 1 || downs[0].Revision != at {
			t.Fatalf("%d take-downs: what is held back because it deletes too much must not be one", len(downs))
		}
	})
}

func TestDeletingByMistakeDoesNotGoRoundTheGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.forgets = true
		src.write(links(9000, "1"))
		l := start(t, src, Config{})
		n := &replicaNode{entries: map[string]string{}}
		next(t, l, n)
		for i := range 8000 {
			src.write(map[string]string{fmt.Sprintf("links/a/%04d", i): ""})
		}
		serves(t, l, n, 7200)
		if got := len(l.View().TakeDowns(n.held.Revision)); got > maxHeldDeletes+1 {
			t.Fatalf("%d links were taken down while the version is held back", got)
		}
	})
}

func TestMassDeleteDoesNotFillTheLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		all := make(map[string]string)
		for i := range 100_000 {
			all[fmt.Sprintf("links/a/%d", i)] = "1"
		}
		src.forgets = true
		src.write(all)
		l := start(t, src, Config{})
		for i := range 190 {
			part := make(map[string]string)
			for j := range 100 {
				part[fmt.Sprintf("links/a/%d", i*100+j)] = ""
			}
			src.write(part)
		}
		at := src.write(map[string]string{"links/a/99999": ""})
		synctest.Wait()
		downs := l.View().TakeDowns(0)
		total := 0
		for _, d := range downs {
			total += d.entries
		}
		if last := downs[len(downs)-1]; last.Revision != at || total > maxDowns || l.metrics.downsSkipped.Load() == 0 {
			t.Fatalf("the last of %d take-downs of %d links is of revision %d, want %d", len(downs), total, last.Revision, at)
		}
	})
}

// TestNoTakeDownIsForgottenWhileAVersionIsHeldBack suspends an affiliate, and has a
// program disable more links than the lane takes.
func TestNoTakeDownIsForgottenWhileAVersionIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScript()
		src.forgets = true
		all := map[string]string{"affiliates/x": affiliateValue(t, linkv1.AffiliateState_AFFILIATE_STATE_ACTIVE)}
		for i := range 20_000 {
			all[fmt.Sprintf("links/a/%05d", i)] = linkValue(t, fmt.Sprint(i), false)
		}
		src.write(all)
		l := start(t, src, Config{})
		gone := make(map[string]string)
		for i := range 5000 {
			gone[fmt.Sprintf("links/a/%05d", i)] = ""
		}
		src.write(gone)
		suspended := src.write(map[string]string{"affiliates/x": affiliateValue(t, linkv1.AffiliateState_AFFILIATE_STATE_SUSPENDED)})
		for i := 5000; i < 16_000; i += 100 {
			part := make(map[string]string)
			for j := range 100 {
				part[fmt.Sprintf("links/a/%05d", i+j)] = linkValue(t, fmt.Sprint(i+j), true)
			}
			src.write(part)
			synctest.Wait()
			time.Sleep(time.Second)
		}
		last := src.write(map[string]string{"links/a/19999": linkValue(t, "19999", true)})
		synctest.Wait()
		v := l.View()
		if v.Hold() == nil || l.metrics.downsSkipped.Load() == 0 {
			t.Fatalf("held back is %+v, %d did not fit", v.Hold(), l.metrics.downsSkipped.Load())
		}
		downs := v.TakeDowns(l.Head().Revision) // as a node that connects is told
		if downs[0].Revision != suspended || downs[len(downs)-1].Revision != last {
			t.Errorf("of %d take-downs the first is of revision %d, the last of %d, want %d and %d",
				len(downs), downs[0].Revision, downs[len(downs)-1].Revision, suspended, last)
		}
	})
}
