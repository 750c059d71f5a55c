// Package replica lets the replicas of a control plane find each other: each
// keeps its address in etcd under a lease, and watches the others'.
//
// It is for asking the others something, not for electing one: a replica that
// died is listed until its lease ends.
//
// Concurrency: Run is called once; the other methods may be called from any
// goroutine.
package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/affleet/affleet/controlplane/internal/store"
)

// prefix is where replicas are in etcd: the rest of the key is the id, the
// value the address.
const prefix = store.Replicas

// Config says who this replica is.
type Config struct {
	// Unique among the replicas. Required.
	ID string
	// Where the others reach its gRPC services: "host:port". Required.
	Address string
	// How long it is listed after it died; whole seconds. Default: 10 s.
	TTL time.Duration
	// Time between attempts while etcd does not answer. Default: 1 s.
	Retry time.Duration
	// Default: slog.Default().
	Logger *slog.Logger
}

// Peer is another replica.
type Peer struct {
	ID, Address string
}

// Directory is what a replica knows of the others.
type Directory struct {
	client *clientv3.Client
	cfg    Config

	listed     chan struct{} // closed when the others can find this one
	listedOnce sync.Once

	mu       sync.Mutex
	peers    []Peer // by id; replaced, never changed
	left     []Peer // the last ones that were among peers; replaced, never changed
	revision int64  // of etcd, that peers are from
	changed  chan struct{}
}

// New makes an empty directory.
func New(client *clientv3.Client, cfg Config) (*Directory, error) {
	if cfg.ID == "" || strings.Contains(cfg.ID, "/") {
		return nil, fmt.Errorf("replica id %q: it is empty or has a slash", cfg.ID)
	}
	if cfg.Address == "" {
		return nil, errors.New("replica without an address")
	}
	if cfg.TTL < time.Second {
		cfg.TTL = 10 * time.Second
	}
	if cfg.Retry <= 0 {
		cfg.Retry = time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Directory{client: client, cfg: cfg, listed: make(chan struct{}), changed: make(chan struct{})}, nil
}

// Peers are the other replicas, by id. The slice must not be changed.
func (d *Directory) Peers() []Peer {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.peers
}

// maxLeft bounds the replicas that are remembered and not listed.
const maxLeft = 8

// PeersAndLeft are Peers, and beside them the last replicas that were listed and are
// not any more: they have stopped, or live and do not reach etcd.
func (d *Directory) PeersAndLeft() (peers, left []Peer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.peers, d.left
}

// Forget takes a replica off those that have left.
func (d *Directory) Forget(p Peer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = slices.DeleteFunc(slices.Clone(d.left), func(q Peer) bool { return q == p })
}

// Revision is one of etcd up to which Peers lacks none.
func (d *Directory) Revision() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.revision
}

// Changed is closed when Peers differs from now.
func (d *Directory) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

// Listed is closed once this replica is in the list that the others read.
func (d *Directory) Listed() <-chan struct{} { return d.listed }

// Refresh reads the list, so that Peers has every replica that was listed before
// the call: a watch may be told of a new one with a delay.
func (d *Directory) Refresh(ctx context.Context) error {
	list, revision, err := d.read(ctx)
	if err != nil {
		return err
	}
	d.set(list, revision)
	return nil
}

// Run keeps this replica listed, and the list up to date, until ctx ends; then
// it takes the replica off the list and returns nil.
func (d *Directory) Run(ctx context.Context) error {
	var running sync.WaitGroup
	running.Go(func() { d.repeat(ctx, "this replica is not listed for the others", d.register) })
	running.Go(func() { d.repeat(ctx, "other replicas are not followed", d.watch) })
	running.Wait()
	return nil
}

// tellEvery is how often an outage is logged that goes on.
const tellEvery = time.Minute

// repeat calls f, which returns only when it failed, until ctx ends.
func (d *Directory) repeat(ctx context.Context, what string, f func(context.Context) error) {
	var told time.Time
	for ctx.Err() == nil {
		err := f(ctx)
		if ctx.Err() != nil {
			return
		}
		level := slog.LevelDebug
		if time.Since(told) > tellEvery {
			level, told = slog.LevelWarn, time.Now()
		}
		d.cfg.Logger.Log(ctx, level, what, "err", err, "retry_in", d.cfg.Retry)
		select {
		case <-ctx.Done():
		case <-time.After(d.cfg.Retry):
		}
	}
}

// register puts this replica under a lease and keeps that alive.
func (d *Directory) register(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, d.cfg.TTL)
	defer cancel()
	lease, err := d.client.Grant(call, int64(d.cfg.TTL/time.Second))
	if err != nil {
		return fmt.Errorf("grant lease: %w", err)
	}
	defer func() {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		// Best effort: without it, the lease ends by itself.
		_, _ = d.client.Revoke(bye, lease.ID)
	}()
	if _, err := d.client.Put(call, prefix+d.cfg.ID, d.cfg.Address, clientv3.WithLease(lease.ID)); err != nil {
		return fmt.Errorf("put address: %w", err)
	}
	d.listedOnce.Do(func() { close(d.listed) })
	alive, err := d.client.KeepAlive(ctx, lease.ID)
	if err != nil {
		return fmt.Errorf("keep lease: %w", err)
	}
	for range alive {
	}
	return errors.New("the lease ended")
}

// read reads the list: addresses by key.
func (d *Directory) read(ctx context.Context) (list map[string]string, revision int64, err error) {
	got, err := d.client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, fmt.Errorf("read replicas: %w", err)
	}
	list = make(map[string]string)
	for _, kv := range got.Kvs {
		list[string(kv.Key)] = string(kv.Value)
	}
	return list, got.Header.Revision, nil
}

// watch reads the list and follows it.
func (d *Directory) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	call, stop := context.WithTimeout(ctx, d.cfg.TTL)
	defer stop()
	known := d.Revision()
	list, revision, err := d.read(call)
	if err != nil {
		return err
	}
	if revision < known {
		d.restart(list, revision)
	} else {
		d.set(list, revision) // unless Refresh has read a later one meanwhile
	}
	events := d.client.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	for answer := range events {
		if err := answer.Err(); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		for _, e := range answer.Events {
			if e.Type == clientv3.EventTypeDelete {
				delete(list, string(e.Kv.Key))
			} else {
				list[string(e.Kv.Key)] = string(e.Kv.Value)
			}
			revision = e.Kv.ModRevision
		}
		d.set(list, revision)
	}
	return errors.New("watch: ended")
}

// restart makes list the peers when etcd has gone back.
func (d *Directory) restart(list map[string]string, revision int64) {
	d.mu.Lock()
	d.revision = 0
	d.mu.Unlock()
	d.set(list, revision)
}

// set makes list, without this replica, the peers, unless a later one is known.
// Only one can be at an address: others there were before it, and have died or
// come from a backup of etcd. To ask each would count the nodes of one twice.
func (d *Directory) set(list map[string]string, revision int64) {
	var peers []Peer
	at := map[string]bool{d.cfg.Address: true}
	for _, key := range slices.Sorted(maps.Keys(list)) {
		id, address := strings.TrimPrefix(key, prefix), list[key]
		if id != d.cfg.ID && !at[address] {
			at[address] = true
			peers = append(peers, Peer{ID: id, Address: address})
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if revision < d.revision {
		return
	}
	d.revision = revision
	if !slices.Equal(peers, d.peers) {
		isBack := func(p Peer) bool {
			return at[p.Address] || slices.ContainsFunc(peers, func(q Peer) bool { return q.ID == p.ID })
		}
		left := slices.DeleteFunc(slices.Concat(d.left, d.peers), isBack)
		d.left = left[max(0, len(left)-maxLeft):]
		d.peers = peers
		close(d.changed)
		d.changed = make(chan struct{})
	}
}
