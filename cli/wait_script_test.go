package cli_test

import (
	"context"
	"net"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// silentReplica is "silent": a replica "quiet" of the control plane is listed in
// etcd that is connected to and never answers; and "! silent": it is not listed
// any more.
func silentReplica(ts *testscript.TestScript, neg bool, _ []string) {
	const key = "/aff/v1/replicas/quiet"
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{ts.Getenv("ETCD")}, Logger: zap.NewNop()})
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if neg {
		_, err = etcd.Delete(ctx, key)
	} else {
		ln, failed := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(failed)
		ts.Defer(func() { _ = ln.Close() })
		_, err = etcd.Put(ctx, key, ln.Addr().String())
	}
	ts.Check(err)
	ts.Check(etcd.Close())
}

// slowNode is "slow NODE REGION": a node connects that acknowledges nothing.
func slowNode(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: slow NODE REGION")
	}
	conn, err := grpc.NewClient(ts.Getenv("AFFCTL_SERVER"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	ts.Defer(func() { cancel(); _ = conn.Close() })
	stream, err := feedv1.NewFeedServiceClient(conn).Subscribe(ctx)
	ts.Check(err)
	ts.Check(stream.Send(&feedv1.SubscribeRequest{Message: &feedv1.SubscribeRequest_Hello{Hello: &feedv1.Hello{Node: args[0], Region: args[1]}}}))
	_, err = stream.Recv() // it is connected
	ts.Check(err)
}
