package controlplane

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	"github.com/affleet/affleet/controlplane/internal/store"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// rawRequest is m with bytes in it that are not UTF-8, which Go's own clients
// refuse to send.
func rawRequest(t *testing.T, m proto.Message) rawMessage {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	broken := bytes.Replace(b, []byte("BAD"), []byte("a\xff\xfe"), 1)
	if bytes.Equal(b, broken) {
		t.Fatal("nothing to break")
	}
	return broken
}

func TestRequestThatIsNotUTF8IsTheCallersMistake(t *testing.T) {
	server := grpc.NewServer(feedServerOptions(feedConfig{})...)
	resources := store.New(etcdtest.Start(t))
	server.RegisterService(receiving(adminv1.LinkService_ServiceDesc), newAdmin(resources, resources.Epoch, nil))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() { server.Stop(); <-served })
	conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	check := func(err error) {
		t.Helper()
		if st := status.Convert(err); st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), "invalid UTF-8") ||
			!strings.HasPrefix(st.Message(), "the request cannot be read: ") || strings.Contains(st.Message(), "proto:") {
			t.Errorf("got %v", err)
		}
	}

	create := rawRequest(t, &adminv1.CreateRequest{Resource: adminLink("/BAD", "https://store.example/")})
	check(conn.Invoke(t.Context(), adminv1.LinkService_Create_FullMethodName, create, new(adminv1.CreateResponse)))

	call := func(method string, m rawMessage) error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
		if err != nil {
			return err
		}
		if err := errors.Join(stream.SendMsg(m), stream.CloseSend()); err != nil {
			return err
		}
		return stream.RecvMsg(new(adminv1.ImportResponse))
	}
	check(call(adminv1.LinkService_Import_FullMethodName, rawRequest(t, &adminv1.ImportRequest{Resources: []*linkv1.Resource{adminLink("/BAD", "https://store.example/")}})))
	check(call(adminv1.LinkService_Export_FullMethodName, rawRequest(t, &adminv1.ExportRequest{
		Filters: []*adminv1.Filter{{Kind: adminv1.Kind_KIND_LINK, Domain: "BAD"}},
	})))

	good := new(adminv1.CreateResponse)
	if err := conn.Invoke(t.Context(), adminv1.LinkService_Create_FullMethodName,
		&adminv1.CreateRequest{Resource: adminLink("/good", "https://store.example/")}, good); err != nil || good.GetEtag() == "" {
		t.Errorf("a good request gave %v, %v", good, err)
	}
}
