package controlplane

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

func adminBlock(id string, ttl time.Duration) *linkv1.Resource {
	b := &linkv1.Block{Id: id, Match: &linkv1.Block_Prefix{Prefix: "192.0.2.0/24"}, Reason: "812 clicks in 60 s", Finding: "flood.1"}
	if ttl > 0 {
		b.Ttl = durationpb.New(ttl)
	}
	return &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: b}}
}

func adminPolicy(scope string) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{
		Scope: scope, Labels: []*linkv1.LabelPolicy{{Label: "rate", Action: linkv1.BlockAction_BLOCK_ACTION_REFUSE}},
	}}}
}

func TestAdminKeepsWhoMadeABlockForWhichFinding(t *testing.T) {
	rig := startAdmin(t)
	ctx := metadata.AppendToOutgoingContext(t.Context(), userHeader, "affguard")
	created, err := rig.Create(ctx, &adminv1.CreateRequest{Resource: adminBlock("guard-1", time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	got, err := rig.Get(t.Context(), &adminv1.GetRequest{Name: "blocks/guard-1"})
	if err != nil {
		t.Fatal(err)
	}
	b := got.GetResource().GetBlock()
	if b.GetUpdatedBy() != "affguard" || b.GetFinding() != "flood.1" || b.GetRevision() != created.GetVersion().GetRevision() {
		t.Errorf("got %v", b)
	}
	if left := time.Until(b.GetExpireTime().AsTime()); left < 59*time.Minute || left > time.Hour+2*time.Second {
		t.Errorf("it ends in %v", left)
	}
	if _, err := rig.Create(ctx, &adminv1.CreateRequest{Resource: adminBlock("guard-1", time.Hour)}); err == nil {
		t.Error("it is made twice")
	} else {
		details(t, err, codes.AlreadyExists)
	}
}

func TestAdminExportsBlocksAndPoliciesLastAndWatchesTheirEnd(t *testing.T) {
	rig := startAdmin(t)
	rig.mustCreate(t, adminPolicy("*"))
	rig.mustCreate(t, adminLink("/a", "https://store.example/"))
	rig.mustCreate(t, adminBlock("stands", 0))
	rig.mustCreate(t, adminPolicy("domains/go.example.com"))
	watch, err := rig.Watch(t.Context(), &adminv1.WatchRequest{Filters: []*adminv1.Filter{{Kind: adminv1.Kind_KIND_BLOCK}, {Kind: adminv1.Kind_KIND_POLICY}}, FromRevision: 1})
	if err != nil {
		t.Fatal(err)
	}
	export, err := rig.Export(t.Context(), &adminv1.ExportRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for {
		m, err := export.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range m.GetResources() {
			name, err := link.Name(r)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		}
	}
	if got := fmt.Sprint(names); got != "[links/go.example.com/a blocks/stands policies/* policies/domains/go.example.com]" {
		t.Errorf("exported %s", got)
	}
	short := rig.mustCreate(t, adminBlock("short", time.Second))
	if _, err := rig.Delete(t.Context(), &adminv1.DeleteRequest{Name: "policies/*"}); err != nil {
		t.Fatal(err)
	}
	var seen []string
	var last int64
	for len(seen) < 6 {
		m, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range m.GetChanges() {
			seen = append(seen, fmt.Sprint(c.GetName(), " ", c.GetResource() != nil))
			last = m.GetVersion().GetRevision()
		}
	}
	want := "[policies/* true blocks/stands true policies/domains/go.example.com true blocks/short true policies/* false blocks/short false]"
	if fmt.Sprint(seen) != want || last <= short.GetVersion().GetRevision() {
		t.Errorf("watched %v until revision %d, want %s", seen, last, want)
	}
	list, err := rig.List(t.Context(), &adminv1.ListRequest{Filter: &adminv1.Filter{Kind: adminv1.Kind_KIND_POLICY}})
	if err != nil || len(list.GetResources()) != 1 || list.GetResources()[0].GetPolicy().GetScope() != "domains/go.example.com" {
		t.Errorf("listed %v, %v", list, err)
	}
	_, err = rig.List(t.Context(), &adminv1.ListRequest{Filter: &adminv1.Filter{Kind: adminv1.Kind_KIND_POLICY, Labels: map[string]string{"a": "b"}}})
	if info, fields := details(t, err, codes.InvalidArgument); info == nil || fields.GetFieldViolations()[0].GetField() != "filter.labels" {
		t.Errorf("got %v", err)
	}
}
