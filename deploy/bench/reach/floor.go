package reach

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func (s *stage) etcd() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{"http://" + s.EtcdAddr}, Logger: zap.NewNop()})
}

// floors notes what etcd alone takes, now: a put, and its event at a watcher.
func (r *runner) floors(ctx context.Context, s *stage) error {
	client, err := s.etcd()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	puts := r.some(300, 50)
	events := client.Watch(ctx, "floor", clientv3.WithCreatedNotify())
	<-events
	arrived := make(chan time.Time, puts) // one event per put
	go func() {
		for range events {
			arrived <- time.Now()
		}
	}()
	var put, seen []time.Duration
	for range puts {
		begin := time.Now()
		if _, err := client.Put(ctx, "floor", "value"); err != nil {
			return err
		}
		put = append(put, time.Since(begin))
		seen = append(seen, (<-arrived).Sub(begin))
	}
	r.add("floor: put in etcd, p50", "ms", 0, ms(percentile(put, 50)))
	r.add("floor: put in etcd, p99", "ms", 0, ms(percentile(put, 99)))
	r.add("floor: put in etcd to its event at a watcher, p50", "ms", 0, ms(percentile(seen, 50)))
	r.add("floor: put in etcd to its event at a watcher, p99", "ms", 0, ms(percentile(seen, 99)))
	return nil
}

// put puts a key into etcd every 100 ms until ctx ends: what each took.
func (s *stage) put(ctx context.Context) (took []time.Duration, err error) {
	client, err := s.etcd()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return took, nil
		case <-tick.C:
		}
		begin := time.Now()
		_, err := client.Put(ctx, "floor", "value")
		if ctx.Err() != nil {
			return took, nil // that is how it ends
		}
		if err != nil {
			return nil, fmt.Errorf("put: %w", err)
		}
		took = append(took, time.Since(begin))
	}
}
