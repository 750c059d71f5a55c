package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// importAll sends rows in messages of a hundred and collects all that comes
// back: the errors, the last message, and how the stream ended (nil: well).
func importAll(t *testing.T, rig *adminRig, opts *adminv1.ImportOptions, rows ...*linkv1.Resource) ([]*adminv1.RowError, *adminv1.ImportResponse, error) {
	t.Helper()
	stream, err := rig.Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = stream.Send(&adminv1.ImportRequest{Options: opts})
		for some := range slices.Chunk(rows, 100) {
			if stream.Send(&adminv1.ImportRequest{Resources: some}) != nil {
				break
			}
		}
		_ = stream.CloseSend()
	}()
	var all []*adminv1.RowError
	var last *adminv1.ImportResponse
	for {
		got, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, last, nil
		}
		if err != nil {
			return all, last, err
		}
		if last.GetDone() {
			t.Fatalf("%v comes after the last message", got)
		}
		all, last = append(all, got.GetErrors()...), got
	}
}

func TestAdminImportAnswersForEachRow(t *testing.T) {
	rig := startAdmin(t)
	rig.mustCreate(t, adminLink("/1", "https://store.example/1"))
	rig.mustCreate(t, adminLink("/2", "https://store.example/old"))
	var rows []*linkv1.Resource
	for i := range 2500 {
		rows = append(rows, adminLink(fmt.Sprintf("/%d", i), fmt.Sprintf("https://store.example/%d", i)))
	}
	rows[700] = adminLink("/700", "relative")
	rows[1900] = adminLink("/1900", "https://store.example/")
	rows[1900].GetLink().Affiliate = "nobody"
	failed, last, err := importAll(t, rig, nil, rows...)
	if err != nil || !last.GetDone() {
		t.Fatalf("import ended with %v, %v", last, err)
	}
	p := last.GetProgress()
	if p.GetRows() != 2500 || p.GetCreated() != 2496 || p.GetUpdated() != 1 || p.GetUnchanged() != 1 || p.GetFailed() != 2 {
		t.Fatalf("progress is %v", p)
	}
	slices.SortFunc(failed, func(a, b *adminv1.RowError) int { return int(a.GetRow() - b.GetRow()) })
	if len(failed) != 2 || failed[0].GetRow() != 700 || failed[0].GetField() != "destination" || failed[0].GetName() != "links/go.example.com/700" ||
		failed[0].GetCode() != int32(codes.InvalidArgument) || failed[0].GetMessage() == "" {
		t.Fatalf("errors are %v", failed)
	}
	if failed[1].GetRow() != 1900 || failed[1].GetCode() != int32(codes.FailedPrecondition) || failed[1].GetHint() != "affctl affiliate create nobody" {
		t.Fatalf("errors are %v", failed)
	}
	got, err := rig.Get(t.Context(), &adminv1.GetRequest{Name: "links/go.example.com/2499"})
	if err != nil || got.GetResource().GetLink().GetRevision() > p.GetVersion().GetRevision() || p.GetVersion().GetEpoch() != testEpoch {
		t.Fatalf("got %v, progress was %v: %v", got, p, err)
	}
}

func TestAdminImportOfNothingIsDone(t *testing.T) {
	rig := startAdmin(t)
	_, last, err := importAll(t, rig, nil)
	if err != nil || !last.GetDone() || last.GetProgress().GetRows() != 0 {
		t.Fatalf("got %v, %v", last, err)
	}
}

func TestAdminImportStopsOnErrorAndSaysWhere(t *testing.T) {
	rig := startAdmin(t)
	var rows []*linkv1.Resource
	for i := range 1000 {
		rows = append(rows, adminLink(fmt.Sprintf("/%d", i), "https://store.example/"))
	}
	rows[345] = adminLink("/345", "relative")
	failed, last, err := importAll(t, rig, &adminv1.ImportOptions{StopOnError: true}, rows...)
	details(t, err, codes.InvalidArgument)
	if last.GetDone() || last.GetProgress().GetRows() != 346 || len(failed) != 1 || failed[0].GetRow() != 345 {
		t.Fatalf("last message is %v, errors are %v", last, failed)
	}
}

func TestAdminImportOptions(t *testing.T) {
	rig := startAdmin(t)
	row := adminLink("/a", "https://store.example/")
	_, last, err := importAll(t, rig, &adminv1.ImportOptions{ValidateOnly: true}, row)
	if err != nil || last.GetProgress().GetCreated() != 1 {
		t.Fatalf("got %v, %v", last, err)
	}
	rig.mustCreate(t, row) // it was not written
	failed, _, err := importAll(t, rig, &adminv1.ImportOptions{CreateOnly: true}, row)
	if err != nil || len(failed) != 1 || failed[0].GetCode() != int32(codes.AlreadyExists) {
		t.Fatalf("got %v, %v", failed, err)
	}
}

func TestAdminImportWithManyErrorsTellsAllOfThem(t *testing.T) {
	rig := startAdmin(t)
	rows := make([]*linkv1.Resource, 3500)
	for i := range rows {
		rows[i] = adminLink(fmt.Sprintf("/%d", i), "relative")
	}
	failed, last, err := importAll(t, rig, nil, rows...)
	if err != nil || len(failed) != len(rows) || last.GetProgress().GetFailed() != int64(len(rows)) {
		t.Fatalf("%d errors, %v, %v", len(failed), last, err)
	}
}

func TestAdminImportErrorsOfLongNamesFitAMessageOfAnyClient(t *testing.T) {
	rig := startAdmin(t) // its client takes the 4 MiB that gRPC takes by default
	rows := make([]*linkv1.Resource, 1000)
	for i := range rows {
		rows[i] = adminLink("/"+strings.Repeat("a", 8000)+fmt.Sprint(i), "relative")
	}
	failed, _, err := importAll(t, rig, nil, rows...)
	if err != nil || len(failed) != len(rows) {
		t.Fatalf("%d errors, and %.200v", len(failed), err)
	}
}

func TestAdminImportEndsUnavailableWhenEtcdGoesAway(t *testing.T) {
	rig := startAdmin(t)
	stream, err := rig.Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	last := new(adminv1.ImportResponse)
	for i := 0; ; i++ {
		if i == 1 {
			rig.etcd.Stop()
		}
		_ = stream.Send(&adminv1.ImportRequest{Resources: []*linkv1.Resource{adminLink(fmt.Sprintf("/%d", i), "https://store.example/")}})
		got, err := stream.Recv()
		if err == nil {
			last = got
			continue
		}
		details(t, err, codes.Unavailable)
		if last.GetDone() || last.GetProgress().GetRows() != 1 || !strings.Contains(err.Error(), "1 rows have their outcome") {
			t.Fatalf("ended with %v after %v", err, last)
		}
		return
	}
}

func TestAdminImportEndsWhenTheClientGoesAway(t *testing.T) {
	rig := startAdmin(t)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := rig.Import(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&adminv1.ImportRequest{Resources: []*linkv1.Resource{adminLink("/a", "https://store.example/")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel() // the rig's cleanup waits for the handler
	if _, err := stream.Recv(); err == nil {
		t.Fatal("the stream goes on")
	}
}

func TestAdminExportShowsOneVersionInTheOrderOfAnImport(t *testing.T) {
	rig := startAdmin(t)
	rows := []*linkv1.Resource{adminAffiliate("aff_01"), adminDomain("go.example.com")}
	for i := range 1200 {
		rows = append(rows, adminLink(fmt.Sprintf("/%04d", i), "https://store.example/"))
	}
	if _, _, err := importAll(t, rig, nil, rows...); err != nil {
		t.Fatal(err)
	}
	names, total, messages := export(t, rig, nil)
	if len(names) != len(rows) || total != int64(len(rows)) || messages < 3 {
		t.Fatalf("exported %d of %d in %d messages", len(names), total, messages)
	}
	for i, r := range rows {
		if want, _ := link.Name(r); names[i] != want {
			t.Fatalf("resource %d is %s, want %s", i, names[i], want)
		}
	}
	some := []*adminv1.Filter{{Domain: "go.example.com", PathPrefix: "/000"}, {Kind: adminv1.Kind_KIND_AFFILIATE}, {Domain: "go.example.com", PathPrefix: "/00"}}
	names, total, _ = export(t, rig, some)
	if len(names) != 101 || total != 111 || names[10] != "affiliates/aff_01" {
		t.Fatalf("exported %d of %d: %v", len(names), total, names)
	}
	names, total, messages = export(t, rig, []*adminv1.Filter{{Kind: adminv1.Kind_KIND_BLOCK}})
	if len(names) != 0 || total != 0 || messages != 1 {
		t.Fatalf("exported %v of %d in %d messages", names, total, messages)
	}
}

func export(t *testing.T, rig *adminRig, filters []*adminv1.Filter) (names []string, total int64, messages int) {
	t.Helper()
	stream, err := rig.Export(t.Context(), &adminv1.ExportRequest{Filters: filters})
	if err != nil {
		t.Fatal(err)
	}
	revision := int64(0)
	for {
		got, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return names, total, messages
		}
		if err != nil {
			t.Fatal(err)
		}
		if messages++; messages == 1 {
			total, revision = got.GetEstimatedTotal(), got.GetVersion().GetRevision()
		}
		if got.GetVersion().GetRevision() != revision {
			t.Fatalf("message %d shows %v, the first %d", messages, got.GetVersion(), revision)
		}
		for _, r := range got.GetResources() {
			name, err := link.Name(r)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		}
	}
}

func TestAdminWatchSendsMatchingChangesFromNowOn(t *testing.T) {
	rig := startAdmin(t)
	rig.mustCreate(t, adminLink("/before", "https://store.example/"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := rig.Watch(ctx, &adminv1.WatchRequest{Filters: []*adminv1.Filter{{Domain: "go.example.com", PathPrefix: "/w"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil { // it has begun
		t.Fatal(err)
	}
	rig.mustCreate(t, adminLink("/other", "https://store.example/"))
	created := rig.mustCreate(t, adminLink("/w", "https://store.example/"))
	deleted, err := rig.Delete(t.Context(), &adminv1.DeleteRequest{Name: "links/go.example.com/w"})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []*linkv1.Version{created.GetVersion(), deleted.GetVersion()} {
		got, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		change := got.GetChanges()[0]
		if got.GetVersion().GetRevision() != want.GetRevision() || got.GetVersion().GetEpoch() != testEpoch ||
			change.GetName() != "links/go.example.com/w" || (change.GetResource() == nil) != (i == 1) {
			t.Fatalf("message %d is %v, want version %v", i, got, want)
		}
	}
}

func TestAdminWatchFromAnOldRevision(t *testing.T) {
	rig := startAdmin(t)
	first := rig.mustCreate(t, adminLink("/a", "https://store.example/"))
	second := rig.mustCreate(t, adminDomain("*"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := rig.Watch(ctx, &adminv1.WatchRequest{FromRevision: first.GetVersion().GetRevision()})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := stream.Recv(); err != nil || got.GetVersion().GetRevision() != second.GetVersion().GetRevision() {
		t.Fatalf("got %v, %v", got, err)
	}
	rig.etcd.Compact(rig.etcd.Client())
	for _, revision := range []int64{1, 1 << 40} {
		stream, err = rig.Watch(ctx, &adminv1.WatchRequest{FromRevision: revision})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		details(t, err, codes.OutOfRange)
	}
}
