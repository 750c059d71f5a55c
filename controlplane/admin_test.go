package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/controlplane/internal/store"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

const testEpoch = 0xaff

// adminRig is a LinkService on a loopback address, over its own etcd.
type adminRig struct {
	adminv1.LinkServiceClient
	conn *grpc.ClientConn
	etcd *etcdtest.Server
}

func startAdmin(t *testing.T) *adminRig {
	t.Helper()
	return startAdminOf(t, etcdtest.New(t), 0)
}

// startAdminOf is startAdmin over an etcd, with a limit to what one resource takes.
func startAdminOf(t *testing.T, etcd *etcdtest.Server, entryBytes int) *adminRig {
	t.Helper()
	rig := &adminRig{etcd: etcd}
	server := grpc.NewServer()
	resources := store.New(rig.etcd.Client())
	resources.LimitEntries(entryBytes)
	adminv1.RegisterLinkServiceServer(server, newAdmin(resources, func(context.Context) (uint64, error) { return testEpoch, nil }, nil))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() { server.Stop(); <-served })
	rig.conn, err = grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rig.conn.Close() })
	rig.LinkServiceClient = adminv1.NewLinkServiceClient(rig.conn)
	return rig
}

func adminLink(path, destination string) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: "go.example.com", Path: path, Destination: destination}}}
}

func adminAffiliate(id string) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Affiliate{Affiliate: &linkv1.Affiliate{Id: id}}}
}

func adminDomain(host string) *linkv1.Resource {
	return &linkv1.Resource{Kind: &linkv1.Resource_Domain{Domain: &linkv1.Domain{Host: host}}}
}

func (r *adminRig) mustCreate(t *testing.T, resource *linkv1.Resource) *adminv1.CreateResponse {
	t.Helper()
	done, err := r.Create(t.Context(), &adminv1.CreateRequest{Resource: resource})
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	return done
}

// details takes a status apart.
func details(t *testing.T, err error, code codes.Code) (*errdetails.ErrorInfo, *errdetails.BadRequest) {
	t.Helper()
	if status.Code(err) != code {
		t.Fatalf("got %v, want %v", err, code)
	}
	var info *errdetails.ErrorInfo
	var fields *errdetails.BadRequest
	for _, d := range status.Convert(err).Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.BadRequest:
			fields = d
		}
	}
	if info.GetDomain() != "affleet" || info.GetReason() == "" {
		t.Fatalf("error info is %v", info)
	}
	return info, fields
}

func TestAdminWritesAndReadsEveryKindByTheSameVerbs(t *testing.T) {
	rig := startAdmin(t)
	for name, resource := range map[string]*linkv1.Resource{
		"links/go.example.com/a": adminLink("/a", "https://store.example/"),
		"domains/go.example.com": adminDomain("go.example.com"),
		"affiliates/aff_01":      adminAffiliate("aff_01"),
	} {
		created := rig.mustCreate(t, resource)
		if created.GetVersion().GetEpoch() != testEpoch || created.GetEtag() == "" {
			t.Fatalf("%s: created as %v", name, created)
		}
		got, err := rig.Get(t.Context(), &adminv1.GetRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got.GetResource(), created.GetResource()) || got.GetEtag() != created.GetEtag() {
			t.Fatalf("%s: got %v, created %v", name, got, created)
		}
		updated, err := rig.Update(t.Context(), &adminv1.UpdateRequest{
			Resource: labeled(resource), Etag: got.GetEtag(),
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if updated.GetVersion().GetRevision() <= created.GetVersion().GetRevision() || updated.GetEtag() == got.GetEtag() {
			t.Fatalf("%s: updated as %v", name, updated)
		}
		deleted, err := rig.Delete(t.Context(), &adminv1.DeleteRequest{Name: name, Etag: updated.GetEtag()})
		if err != nil {
			t.Fatal(err)
		}
		if deleted.GetVersion().GetRevision() <= updated.GetVersion().GetRevision() {
			t.Fatalf("%s: deleted as %v", name, deleted)
		}
		_, err = rig.Get(t.Context(), &adminv1.GetRequest{Name: name})
		if info, _ := details(t, err, codes.NotFound); info.GetMetadata()["resource"] != name {
			t.Fatalf("error info is %v", info)
		}
	}
}

// labeled gives a copy with a label.
func labeled(r *linkv1.Resource) *linkv1.Resource {
	r, labels := proto.CloneOf(r), map[string]string{"team": "eu"}
	switch k := r.GetKind().(type) {
	case *linkv1.Resource_Link:
		k.Link.Labels = labels
	case *linkv1.Resource_Domain:
		k.Domain.Labels = labels
	case *linkv1.Resource_Affiliate:
		k.Affiliate.Labels = labels
	}
	return r
}

func TestAdminRecordsWhoWrites(t *testing.T) {
	rig := startAdmin(t)
	if got := rig.mustCreate(t, adminLink("/a", "https://store.example/")).GetResource().GetLink().GetUpdatedBy(); got != "127.0.0.1" {
		t.Errorf("written by %q", got)
	}
	for user, want := range map[string]string{"ann@example.com": "ann@example.com", strings.Repeat("x", 500): strings.Repeat("x", 128)} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "aff-user", user)
		done, err := rig.Update(ctx, &adminv1.UpdateRequest{Resource: adminLink("/a", "https://store.example/"+user)})
		if err != nil {
			t.Fatal(err)
		}
		if got := done.GetResource().GetLink().GetUpdatedBy(); got != want {
			t.Errorf("written by %q, want %q", got, want)
		}
	}
}

func TestAdminBatchWriteIsOneVersion(t *testing.T) {
	rig := startAdmin(t)
	rig.mustCreate(t, adminLink("/old", "https://store.example/"))
	create := func(r *linkv1.Resource) *adminv1.Write {
		return &adminv1.Write{Verb: &adminv1.Write_Create{Create: &adminv1.CreateRequest{Resource: r}}}
	}
	remove := &adminv1.Write{Verb: &adminv1.Write_Delete{Delete: &adminv1.DeleteRequest{Name: "links/go.example.com/old"}}}
	upsert := &adminv1.Write{Verb: &adminv1.Write_Update{Update: &adminv1.UpdateRequest{Resource: adminDomain("*"), AllowMissing: true}}}
	writes := []*adminv1.Write{create(adminAffiliate("aff_01")), remove, upsert}
	if _, err := rig.BatchWrite(t.Context(), &adminv1.BatchWriteRequest{Writes: writes, ValidateOnly: true}); err != nil {
		t.Fatal(err)
	}
	done, err := rig.BatchWrite(t.Context(), &adminv1.BatchWriteRequest{Writes: writes})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(done.GetResults()); n != 3 || done.GetResults()[1].GetResource() != nil {
		t.Fatalf("got %v", done)
	}
	if got := done.GetResults()[0].GetResource().GetAffiliate().GetRevision(); got != done.GetVersion().GetRevision() {
		t.Fatalf("written at %d, the batch at %v", got, done.GetVersion())
	}
	_, err = rig.BatchWrite(t.Context(), &adminv1.BatchWriteRequest{Writes: []*adminv1.Write{create(adminDomain("new.example.com")), create(adminAffiliate("aff_01"))}})
	details(t, err, codes.AlreadyExists)
	_, err = rig.Get(t.Context(), &adminv1.GetRequest{Name: "domains/new.example.com"})
	details(t, err, codes.NotFound)
	_, err = rig.BatchWrite(t.Context(), &adminv1.BatchWriteRequest{Writes: []*adminv1.Write{upsert, {}}})
	if _, fields := details(t, err, codes.InvalidArgument); fields.GetFieldViolations()[0].GetField() != "writes[1].verb" {
		t.Fatalf("fields are %v", fields)
	}
}

func TestAdminListPagesAndFilters(t *testing.T) {
	rig := startAdmin(t)
	var last *linkv1.Version
	for i := range 5 {
		last = rig.mustCreate(t, adminLink(fmt.Sprintf("/%d", i), "https://store.example/")).GetVersion()
	}
	req := &adminv1.ListRequest{PageSize: 2, Filter: &adminv1.Filter{Domain: "go.example.com", PathPrefix: "/"}}
	var paths []string
	for {
		page, err := rig.List(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(page.GetVersion(), last) {
			t.Fatalf("page shows %v, want %v", page.GetVersion(), last)
		}
		for _, r := range page.GetResources() {
			paths = append(paths, r.GetLink().GetPath())
		}
		if req.PageToken = page.GetNextPageToken(); req.GetPageToken() == "" {
			break
		}
	}
	if !slices.Equal(paths, []string{"/0", "/1", "/2", "/3", "/4"}) {
		t.Fatalf("got %v", paths)
	}
	_, err := rig.List(t.Context(), &adminv1.ListRequest{Filter: &adminv1.Filter{Kind: 77}})
	details(t, err, codes.InvalidArgument)
	_, err = rig.List(t.Context(), &adminv1.ListRequest{PageToken: "garbled"})
	details(t, err, codes.InvalidArgument)
}

func TestAdminRefusesBadInputAndNamesTheField(t *testing.T) {
	rig := startAdmin(t)
	long := strings.Repeat("x", link.MaxPath+1)
	for name, c := range map[string]struct {
		resource *linkv1.Resource
		code     codes.Code
		field    string
	}{
		"no resource":              {nil, codes.InvalidArgument, "resource"},
		"no kind":                  {&linkv1.Resource{}, codes.InvalidArgument, "resource"},
		"unparsable destination":   {adminLink("/a", "https://store.example/%zz:\x7f"), codes.InvalidArgument, "destination"},
		"relative destination":     {adminLink("/a", "/p/1"), codes.InvalidArgument, "destination"},
		"no destination":           {adminLink("/a", ""), codes.InvalidArgument, "destination"},
		"destination not http":     {adminLink("/a", "javascript:alert(1)"), codes.InvalidArgument, "destination"},
		"destination with user":    {adminLink("/a", "https://me:secret@store.example/"), codes.InvalidArgument, "destination"},
		"destination with newline": {adminLink("/a", "https://store.example/\r\nSet-Cookie: a=b"), codes.InvalidArgument, "destination"},
		"over-long destination":    {adminLink("/a", "https://store.example/"+long), codes.InvalidArgument, "destination"},
		"empty path":               {adminLink("", "https://store.example/"), codes.InvalidArgument, "path"},
		"over-long path":           {adminLink("/"+long, "https://store.example/"), codes.InvalidArgument, "path"},
		"path that is not decoded": {adminLink("/%41", "https://store.example/"), codes.InvalidArgument, "path"},
		"path without slash":       {adminLink("a", "https://store.example/"), codes.InvalidArgument, "path"},
		"host in capitals":         {adminDomain("GO.example.com"), codes.InvalidArgument, "host"},
		"empty host":               {adminDomain(""), codes.InvalidArgument, "host"},
		"empty affiliate":          {adminAffiliate(""), codes.InvalidArgument, "id"},
		"affiliate with a slash":   {adminAffiliate("a/b"), codes.InvalidArgument, "id"},
		"template":                 {adminLink("/a", "https://store.example/{sub11}"), codes.InvalidArgument, "destination"},
		"affiliate does not exist": {&linkv1.Resource{Kind: &linkv1.Resource_Link{Link: &linkv1.Link{Domain: "*", Path: "/a", Destination: "https://store.example/", Affiliate: "nobody"}}}, codes.FailedPrecondition, "affiliate"},
		"block of everybody":       {&linkv1.Resource{Kind: &linkv1.Resource_Block{Block: &linkv1.Block{Id: "b", Reason: "r", Match: &linkv1.Block_Prefix{Prefix: "0.0.0.0/0"}}}}, codes.InvalidArgument, "prefix"},
		"policy of nothing":        {&linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{Scope: "links/a"}}}, codes.InvalidArgument, "scope"},
		"kill switch of a domain":  {&linkv1.Resource{Kind: &linkv1.Resource_Policy{Policy: &linkv1.Policy{Scope: "domains/a.com", Off: true}}}, codes.InvalidArgument, "off"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rig.Create(t.Context(), &adminv1.CreateRequest{Resource: c.resource})
			_, fields := details(t, err, c.code)
			if fields == nil || !slices.ContainsFunc(fields.GetFieldViolations(), func(v *errdetails.BadRequest_FieldViolation) bool {
				return v.GetField() == c.field && v.GetDescription() != ""
			}) {
				t.Fatalf("violations are %v, want field %s (%v)", fields, c.field, err)
			}
		})
	}
}

func TestAdminTellsEveryFieldAtFault(t *testing.T) {
	rig := startAdmin(t)
	bad := adminLink("/A%", "ftp://store.example/")
	bad.GetLink().StatusCode = 999
	_, err := rig.Create(t.Context(), &adminv1.CreateRequest{Resource: bad})
	_, fields := details(t, err, codes.InvalidArgument)
	var names []string
	for _, v := range fields.GetFieldViolations() {
		names = append(names, v.GetField())
	}
	if want := []string{"path", "destination", "status_code"}; !slices.Equal(names, want) {
		t.Fatalf("fields are %v, want %v", names, want)
	}
}

func TestAdminTellsEtagConflictsWithTheCurrentEtag(t *testing.T) {
	rig := startAdmin(t)
	first := rig.mustCreate(t, adminLink("/a", "https://store.example/1"))
	second, err := rig.Update(t.Context(), &adminv1.UpdateRequest{Resource: adminLink("/a", "https://store.example/2")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = rig.Update(t.Context(), &adminv1.UpdateRequest{Resource: adminLink("/a", "https://store.example/3"), Etag: first.GetEtag()})
	info, _ := details(t, err, codes.Aborted)
	if info.GetMetadata()["etag"] != second.GetEtag() || info.GetMetadata()["hint"] == "" || !strings.Contains(err.Error(), second.GetEtag()) {
		t.Fatalf("error is %v with %v", err, info)
	}
}

func TestAdminSecondCreateAndMissingAffiliateHaveHints(t *testing.T) {
	rig := startAdmin(t)
	rig.mustCreate(t, adminLink("/a", "https://store.example/"))
	_, err := rig.Create(t.Context(), &adminv1.CreateRequest{Resource: adminLink("/a", "https://store.example/")})
	if info, _ := details(t, err, codes.AlreadyExists); info.GetMetadata()["hint"] == "" {
		t.Fatalf("no hint: %v", info)
	}
	in := adminLink("/b", "https://store.example/")
	in.GetLink().Affiliate = "aff_01"
	_, err = rig.Create(t.Context(), &adminv1.CreateRequest{Resource: in})
	if info, _ := details(t, err, codes.FailedPrecondition); info.GetMetadata()["hint"] != "affctl affiliate create aff_01" {
		t.Fatalf("hint is %v", info)
	}
	rig.mustCreate(t, adminAffiliate("aff_01"))
	rig.mustCreate(t, in)
	_, err = rig.Delete(t.Context(), &adminv1.DeleteRequest{Name: "affiliates/aff_01"})
	details(t, err, codes.FailedPrecondition)
}

// rawCodec sends bytes as they are.
type rawCodec struct{ encoding.Codec }

func (rawCodec) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { return proto.Unmarshal(data, v.(proto.Message)) }
func (rawCodec) Name() string                       { return "proto" }

func TestAdminRefusesTextThatIsNotUTF8(t *testing.T) {
	rig := startAdmin(t)
	req, err := proto.Marshal(&adminv1.CreateRequest{Resource: adminLink("/XX", "https://store.example/")})
	if err != nil {
		t.Fatal(err)
	}
	req = []byte(strings.Replace(string(req), "/XX", "/\xff\xfe", 1))
	err = rig.conn.Invoke(t.Context(), adminv1.LinkService_Create_FullMethodName, req, new(adminv1.CreateResponse), grpc.ForceCodec(rawCodec{}))
	if err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Fatalf("got %v", err)
	}
	page, err := rig.List(t.Context(), &adminv1.ListRequest{})
	if err != nil || len(page.GetResources()) > 0 {
		t.Fatalf("got %v, %v", page, err)
	}
}

func TestAdminIsUnavailableWithAHintWhileEtcdIsDown(t *testing.T) {
	rig := startAdmin(t)
	rig.mustCreate(t, adminLink("/a", "https://store.example/"))
	rig.etcd.Stop()
	began := time.Now()
	_, err := rig.Create(t.Context(), &adminv1.CreateRequest{Resource: adminLink("/b", "https://store.example/")})
	if info, _ := details(t, err, codes.Unavailable); !strings.Contains(info.GetMetadata()["hint"], "is etcd running?") {
		t.Fatalf("hint is %v", info)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Fatalf("took %v", took)
	}
	rig.etcd.Start()
	rig.mustCreate(t, adminLink("/c", "https://store.example/"))
}

func TestAdminInternalErrorsTellNothing(t *testing.T) {
	err := grpcError(fmt.Errorf("secret %w", errors.New("cause")))
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "cause") {
		t.Fatalf("got %v", err)
	}
	err = grpcError(&link.Error{Kind: link.Internal, Message: "secret"})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Fatalf("got %v", err)
	}
	for in, want := range map[error]codes.Code{
		context.Canceled: codes.Canceled, fmt.Errorf("wait: %w", context.DeadlineExceeded): codes.DeadlineExceeded,
		store.ErrCompacted: codes.OutOfRange, status.Error(codes.DataLoss, "x"): codes.DataLoss,
		&link.Error{Kind: link.Unavailable, Message: "m", Err: status.Error(codes.DataLoss, "x")}: codes.Unavailable, io.EOF: codes.Internal,
	} {
		if got := status.Code(grpcError(in)); got != want {
			t.Errorf("%v becomes %v, want %v", in, got, want)
		}
	}
	if grpcError(nil) != nil {
		t.Error("no error becomes one")
	}
}
