package cli_test

import (
	"context"
	"net"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
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
