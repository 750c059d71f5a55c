package main

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/affleet/affleet/deploy/processes"
	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// writes per round.
const writes = 1000

var propagation = measurement{
	name: "propagation",
	method: fmt.Sprintf("One control plane, three nodes, etcd and NATS, each a process; nothing else goes on. %d times a round a link is updated "+
		"as `affctl link update --wait` does, and the time is taken from the acknowledgement of the write to the answer of WaitForVersion, "+
		"which comes with the last node's acknowledgement; a node acknowledges when it serves. The floor below is etcd alone in the same round: "+
		"from the acknowledgement of a put to its event at a watcher.", writes),
	run: measurePropagation,
}

func measurePropagation(ctx context.Context, b *bench) ([]row, error) {
	rows := []row{
		{what: "acknowledged write to served by 3 nodes, p50"},
		{what: "acknowledged write to served by 3 nodes, p99", goal: "25 ms"},
		{what: "the write itself, p50"},
		{what: "the write itself, p99"},
		{what: "floor: put in etcd, p50"},
		{what: "floor: put in etcd, p99"},
		{what: "floor: event of the put at a watcher, p99"},
	}
	for range b.rounds {
		figures, err := propagationRound(ctx, b)
		if err != nil {
			return nil, err
		}
		for i, d := range figures {
			rows[i].samples = append(rows[i].samples, d)
		}
	}
	return rows, nil
}

func propagationRound(ctx context.Context, b *bench) ([]time.Duration, error) {
	f, end, err := b.fleet()
	if err != nil {
		return nil, err
	}
	defer end()
	served, written, err := timeWrites(ctx, f)
	if err != nil {
		return nil, err
	}
	put, seen, err := timeEtcd(ctx, f)
	if err != nil {
		return nil, err
	}
	return []time.Duration{
		percentile(served, 50), percentile(served, 99), percentile(written, 50), percentile(written, 99),
		percentile(put, 50), percentile(put, 99), percentile(seen, 99),
	}, nil
}

// timeWrites gives the time of each write, and from its acknowledgement until
// all nodes serve it.
func timeWrites(ctx context.Context, f *processes.Fleet) (served, written []time.Duration, err error) {
	conn, err := grpc.NewClient(f.ControlAddr[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	links, fleet := adminv1.NewLinkServiceClient(conn), adminv1.NewFleetServiceClient(conn)
	for i := range writes {
		l := &linkv1.Link{Domain: "go.example.com", Path: "/summer", Destination: fmt.Sprintf("https://store.com/p/%d", i)}
		begin := time.Now()
		w, err := links.Update(ctx, &adminv1.UpdateRequest{Resource: &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: l}}, AllowMissing: true})
		if err != nil {
			return nil, nil, err
		}
		acknowledged := time.Now()
		if _, err := fleet.WaitForVersion(ctx, &adminv1.WaitForVersionRequest{Version: w.GetVersion(), MinNodes: int32(len(f.Nodes))}); err != nil {
			return nil, nil, err
		}
		written, served = append(written, acknowledged.Sub(begin)), append(served, time.Since(acknowledged))
	}
	return served, written, nil
}

// timeEtcd gives the same for etcd alone.
func timeEtcd(ctx context.Context, f *processes.Fleet) (put, seen []time.Duration, err error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + f.EtcdAddr}, Logger: zap.NewNop()})
	if err != nil {
		return nil, nil, err
	}
	defer client.Close()
	events := client.Watch(ctx, "floor")
	arrived := make(chan time.Time, writes) // one event per put
	go func() {
		for range events {
			arrived <- time.Now()
		}
	}()
	for range writes {
		begin := time.Now()
		if _, err := client.Put(ctx, "floor", "value"); err != nil {
			return nil, nil, err
		}
		acknowledged := time.Now()
		put = append(put, acknowledged.Sub(begin))
		seen = append(seen, max(0, (<-arrived).Sub(acknowledged)))
	}
	return put, seen, nil
}
