// Package etcdtest runs a real etcd inside a test process, on a free port and
// in a temporary folder. It is for tests only: it does not sync its files to
// disk. A Server may be used from one goroutine at a time; clients from any
// number.
package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// startTimeout bounds how long a server may take to be ready.
const startTimeout = 30 * time.Second

// Start runs an empty etcd until the test ends and gives a client of it.
func Start(t testing.TB) *clientv3.Client {
	t.Helper()
	return New(t).Client()
}

// Server is an etcd that can be stopped and started again with its data, at
// the same address.
type Server struct {
	t        testing.TB
	cfg      *embed.Config
	etcd     *embed.Etcd
	endpoint string
}

// Option changes how a server is configured.
type Option func(*embed.Config)

// WithFsync makes the server sync its files as it does in earnest: for
// benchmarks.
func WithFsync(cfg *embed.Config) { cfg.UnsafeNoFsync = false }

// New runs an empty etcd until the test ends.
func New(t testing.TB, options ...Option) *Server {
	t.Helper()
	free := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{free}, []url.URL{free}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{free}, []url.URL{free}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.LogLevel = "panic"
	cfg.UnsafeNoFsync = true
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.QuotaBackendBytes = 8 << 30
	cfg.WatchProgressNotifyInterval = 100 * time.Millisecond
	for _, o := range options {
		o(cfg)
	}
	s := &Server{t: t, cfg: cfg}
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

// Endpoint is the host and port that clients use, the same after a restart.
func (s *Server) Endpoint() string { return s.endpoint }

// Start starts a stopped server and waits until it answers.
func (s *Server) Start() {
	s.t.Helper()
	if err := s.start(); err != nil {
		s.t.Fatalf("start etcd: %v", err)
	}
}

func (s *Server) start() error {
	etcd, err := embed.StartEtcd(s.cfg)
	if err != nil {
		return err
	}
	select {
	case <-etcd.Server.ReadyNotify():
	case err := <-etcd.Err():
		etcd.Close()
		return err
	case <-time.After(startTimeout):
		etcd.Close()
		return errors.New("is not ready in time")
	}
	addr := etcd.Clients[0].Addr().String()
	at, err := url.Parse("http://" + addr)
	if err != nil {
		etcd.Close()
		return fmt.Errorf("parse listen address: %w", err)
	}
	s.etcd, s.endpoint = etcd, addr
	s.cfg.ListenClientUrls, s.cfg.AdvertiseClientUrls = []url.URL{*at}, []url.URL{*at}
	return nil
}

// Stop stops the server and keeps its data. Stopping a stopped server does
// nothing.
func (s *Server) Stop() {
	if s.etcd != nil {
		s.etcd.Close()
		s.etcd = nil
	}
}

// Backup keeps the data as it is now, and gives what puts it back: both stop the
// server and start it again.
func (s *Server) Backup() (restore func()) {
	s.t.Helper()
	kept := s.t.TempDir()
	s.Stop()
	if err := os.CopyFS(filepath.Join(kept, "data"), os.DirFS(s.cfg.Dir)); err != nil {
		s.t.Fatalf("back etcd up: %v", err)
	}
	s.Start()
	return func() {
		s.t.Helper()
		s.Stop()
		s.cfg.Dir = filepath.Join(kept, "data")
		s.Start()
	}
}

// Client gives a client of the server, closed when the test ends.
func (s *Server) Client() *clientv3.Client {
	s.t.Helper()
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{s.endpoint},
		DialTimeout: startTimeout,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: 500 * time.Millisecond}, MinConnectTimeout: time.Second,
		})},
		Logger: zap.NewNop(),
	})
	if err != nil {
		s.t.Fatalf("dial etcd: %v", err)
	}
	s.t.Cleanup(func() { _ = client.Close() })
	return client
}

// Compact forgets everything before the current revision, which it gives.
func (s *Server) Compact(client *clientv3.Client) int64 {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	got, err := client.Get(ctx, "compact")
	if err == nil {
		_, err = client.Compact(ctx, got.Header.Revision, clientv3.WithCompactPhysical())
	}
	if err != nil {
		s.t.Fatalf("compact etcd: %v", err)
	}
	return got.Header.Revision
}
