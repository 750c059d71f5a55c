package controlplane

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

func TestAdminRefusesAResourceThatIsTooLargeAndNamesTheSetting(t *testing.T) {
	long := "https://store.example/" + strings.Repeat("x", 300)
	rig := startAdminOf(t, etcdtest.New(t), 200)
	rig.mustCreate(t, adminLink("/small", "https://store.example/"))
	refused := func(what, name string, err error) {
		t.Helper()
		if status.Code(err) != codes.InvalidArgument {
			t.Fatalf("%s: %v", what, err)
		}
		for _, says := range []string{name, " bytes, and at most 200 are allowed by --max-entry-bytes"} {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%s: it does not say %q: %v", what, says, err)
			}
		}
	}
	_, err := rig.Create(t.Context(), &adminv1.CreateRequest{Resource: adminLink("/a", long)})
	refused("create", "go.example.com/a", err)
	_, err = rig.Create(t.Context(), &adminv1.CreateRequest{Resource: adminLink("/a", long), ValidateOnly: true})
	refused("a dry run", "go.example.com/a", err)
	_, err = rig.Update(t.Context(), &adminv1.UpdateRequest{
		Resource: adminLink("/small", long), UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"destination"}},
	})
	refused("update", "go.example.com/small", err)
	_, err = rig.BatchWrite(t.Context(), &adminv1.BatchWriteRequest{Writes: []*adminv1.Write{
		{Verb: &adminv1.Write_Create{Create: &adminv1.CreateRequest{Resource: adminLink("/b", "https://store.example/")}}},
		{Verb: &adminv1.Write_Create{Create: &adminv1.CreateRequest{Resource: adminLink("/c", long)}}},
	}})
	refused("batch", "go.example.com/c", err)
	agent := &linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{
		Id: "b1", Reason: "test", Match: &linkv1.Block_UserAgent{UserAgent: strings.Repeat("x", 300)}, Ttl: durationpb.New(3600e9),
	}}}
	rows, last, err := importAll(t, rig, nil, adminLink("/d", "https://store.example/"), adminLink("/e", long), agent)
	if err != nil {
		t.Fatal(err)
	}
	if p := last.GetProgress(); len(rows) != 2 || p.GetCreated() != 1 || p.GetFailed() != 2 {
		t.Fatalf("import: %v, %v", rows, p)
	}
	for _, row := range rows {
		if codes.Code(row.GetCode()) != codes.InvalidArgument || row.GetName() == "" || !strings.Contains(row.GetMessage(), "at most 200 are allowed by --max-entry-bytes") {
			t.Errorf("import: %v", row)
		}
	}
}

// A limit that came later must not keep anybody from taking down what is above it.
func TestAdminTakesDownAResourceThatIsTooLarge(t *testing.T) {
	etcd := etcdtest.New(t)
	before := startAdminOf(t, etcd, 0)
	before.mustCreate(t, adminLink("/a", "https://store.example/"+strings.Repeat("x", 300)))
	rig := startAdminOf(t, etcd, 200)
	off := adminLink("/a", "")
	off.GetLink().Disabled = true
	if _, err := rig.Update(t.Context(), &adminv1.UpdateRequest{Resource: off, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"disabled"}}}); err != nil {
		t.Errorf("disable: %v", err)
	}
	if _, err := rig.Delete(t.Context(), &adminv1.DeleteRequest{Name: "links/go.example.com/a"}); err != nil {
		t.Errorf("delete: %v", err)
	}
}

func TestLimitOfAResourceIsAtMostWhatANodeCanHold(t *testing.T) {
	for bytes, valid := range map[int]bool{0: true, 200: true, 1 << 20: true, 1<<20 + 1: false, -1: false} {
		cfg := Config{Etcd: []string{"http://127.0.0.1:2379"}, MaxEntryBytes: bytes}
		if err := cfg.Validate(); (err == nil) != valid || err != nil && !strings.Contains(err.Error(), "max-entry-bytes") {
			t.Errorf("%d bytes: %v", bytes, err)
		}
	}
}

// A whole control plane, of which the setting is all that is set.
func TestControlPlaneTakesTheLimitOfAResource(t *testing.T) {
	conn := dialServer(t, startServer(t, Config{MaxEntryBytes: 200}))
	_, err := adminv1.NewLinkServiceClient(conn).Create(t.Context(), &adminv1.CreateRequest{Resource: adminLink("/a", "https://store.example/"+strings.Repeat("x", 300))})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "--max-entry-bytes") {
		t.Errorf("it says %v", err)
	}
}

func TestErrorNamesALongNameByItsBeginning(t *testing.T) {
	rig := startAdminOf(t, etcdtest.New(t), 0)
	name := "links/go.example.com/" + strings.Repeat("x", 3<<20)
	_, err := rig.Get(t.Context(), &adminv1.GetRequest{Name: name})
	if got := status.Convert(err); got.Code() != codes.InvalidArgument || proto.Size(got.Proto()) > 4*maxSaid || !strings.Contains(got.Message(), name[:100]) {
		t.Errorf("got %d bytes: %.300q", proto.Size(got.Proto()), err)
	}
}
