package controlplane

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/controlplane/internal/etcdtest"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// startServer starts a whole control plane.
func startServer(t *testing.T, cfg Config) *Server {
	t.Helper()
	cfg.Etcd = []string{"http://" + etcdtest.New(t).Client().Endpoints()[0]}
	cfg.Listen, cfg.Log = "127.0.0.1:0", slog.New(slog.DiscardHandler)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	<-s.Ready()
	return s
}

func dialServer(t *testing.T, s *Server) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestControlPlaneBoundsWhatOneMessageMayBe(t *testing.T) {
	admin := adminv1.NewLinkServiceClient(dialServer(t, startServer(t, Config{})))
	for size, want := range map[int]codes.Code{16 << 20: codes.NotFound, 16<<20 + 1: codes.ResourceExhausted} {
		req := &adminv1.GetRequest{Name: "links/go.test/none"}
		const head = 6 // the tag and the length of a field that nobody knows
		b := protowire.AppendTag(nil, 900, protowire.BytesType)
		req.ProtoReflect().SetUnknown(protowire.AppendBytes(b, make([]byte, size-head-proto.Size(req))))
		if n := proto.Size(req); n != size {
			t.Fatalf("a request has %d bytes, not %d", n, size)
		}
		if _, err := admin.Get(t.Context(), req); status.Code(err) != want {
			t.Errorf("a request of %d bytes: %v", size, err)
		}
	}
}

func TestControlPlaneBoundsTheCallsOfAConnection(t *testing.T) {
	conn, err := net.DialTimeout("tcp", startServer(t, Config{}).Addr().String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	framer := http2.NewFramer(conn, conn)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if settings, ok := frame.(*http2.SettingsFrame); ok {
			if most, ok := settings.Value(http2.SettingMaxConcurrentStreams); !ok || most != maxCalls {
				t.Errorf("a connection may have %d calls: %v", most, ok)
			}
			return
		}
	}
}

func TestControlPlaneBoundsStreams(t *testing.T) {
	for name, cfg := range map[string]Config{"in all": {MaxStreams: 1}, "of one address": {MaxStreamsPerAddress: 1}} {
		s := startServer(t, cfg)
		subscribe := func(node string) *feedv1.SubscribeResponse {
			t.Helper()
			stream, err := feedv1.NewFeedServiceClient(dialServer(t, s)).Subscribe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			hello := &feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: &feedv1.Hello{Node: node, Region: "eu"}}}
			if err := stream.Send(hello); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			m, err := stream.Recv()
			if err != nil {
				t.Fatalf("%s: node %s: %v", name, node, err)
			}
			return m
		}
		if m := subscribe("a"); m.GetHeartbeat() == nil {
			t.Errorf("%s: the first node is sent %v", name, m)
		}
		if m := subscribe("b"); m.GetRetryLater() == nil {
			t.Errorf("%s: the second node is sent %v", name, m)
		}
	}
}

func TestControlPlaneBoundsConnectionsOfAnAddress(t *testing.T) {
	s := startServer(t, Config{MaxStreamsPerAddress: 1})
	closed := func() bool {
		conn, err := net.DialTimeout("tcp", s.Addr().String(), patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		_, err = conn.Read(make([]byte, 1)) // what gRPC begins with
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		return err != nil
	}
	for i := range 1 + othersEach {
		if closed() {
			t.Fatalf("there is room for %d connections", i)
		}
	}
	if !closed() {
		t.Errorf("connection %d is not closed", 1+othersEach+1)
	}
}
