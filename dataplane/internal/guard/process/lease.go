package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// leaseBucket is the NATS KV bucket whose entries vanish when they are not
// renewed: who has written leaseKey leads.
const (
	leaseBucket = "AFF_GUARD_LEASE"
	leaseKey    = "leader"
)

// errLease ends a leader who may not be the only one any more.
var errLease = errors.New("the lease is lost")

// lease is the right to lead. Its end is known without anybody: it is over when
// it was not renewed for its time, counted from before the renewal was sent, so
// that a process that was stopped knows so when it goes on.
type lease struct {
	js   jetstream.JetStream
	name string
	ttl  time.Duration
	log  *slog.Logger

	kv       jetstream.KeyValue
	revision uint64

	mu    sync.Mutex
	until time.Time
}

// valid says whether the lease holds at this moment.
func (l *lease) valid() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Before(l.until)
}

func (l *lease) extend(sent time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = sent.Add(l.ttl - l.ttl/8) // the server's clock may be a little faster
}

// acquire waits until the lease is this process's.
func (l *lease) acquire(ctx context.Context) error {
	told := false
	for {
		err := l.try(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !told {
			told = true
			if errors.Is(err, jetstream.ErrKeyExists) {
				l.log.Info("another guard leads: this one waits")
			} else {
				l.log.Warn("the guard waits for NATS", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(l.ttl / 8):
		}
	}
}

func (l *lease) try(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, l.ttl/2)
	defer cancel()
	if l.kv == nil {
		if l.kv, err = l.bucket(ctx); err != nil {
			return err
		}
	}
	sent := time.Now()
	if l.revision, err = l.kv.Create(ctx, leaseKey, []byte(l.name)); err != nil {
		if errors.Is(err, jetstream.ErrBucketNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			l.kv = nil
		}
		return err
	}
	l.extend(sent)
	return nil
}

// bucket finds the bucket or makes it.
func (l *lease) bucket(ctx context.Context) (jetstream.KeyValue, error) {
	kv, err := l.js.KeyValue(ctx, leaseBucket)
	switch {
	case err == nil:
		// Another process may have made it, with another time.
		status, err := kv.Status(ctx)
		if err == nil && status.TTL() > 0 {
			l.ttl = min(l.ttl, status.TTL())
		}
		return kv, err
	case !errors.Is(err, jetstream.ErrBucketNotFound):
		return nil, err
	}
	return l.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: leaseBucket, Description: "Which of Affleet's fraud detectors leads", History: 1, TTL: l.ttl,
		Storage: jetstream.FileStorage, Replicas: replicas(ctx, l.js),
	})
}

// hold renews the lease until it is lost or ctx ends.
func (l *lease) hold(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(l.ttl / 4):
		}
		sent := time.Now()
		once, cancel := context.WithTimeout(ctx, l.ttl/4)
		revision, err := l.kv.Update(once, leaseKey, []byte(l.name), l.revision)
		cancel()
		switch {
		case err == nil:
			l.revision = revision
			l.extend(sent)
		case ctx.Err() != nil:
			return ctx.Err()
		case l.isMine(ctx): // only the answer was lost
		case !l.valid():
			return fmt.Errorf("%w: %w", errLease, err)
		}
	}
}

// isMine looks whether a renewal has come through whose answer did not.
func (l *lease) isMine(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, l.ttl/8)
	defer cancel()
	entry, err := l.kv.Get(ctx, leaseKey)
	if err != nil || string(entry.Value()) != l.name || !l.valid() {
		return false
	}
	l.revision = entry.Revision()
	return true
}

// release lets another one lead at once.
func (l *lease) release() {
	l.mu.Lock()
	l.until = time.Time{}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = l.kv.Delete(ctx, leaseKey, jetstream.LastRevision(l.revision)) // else it ends by itself
}
