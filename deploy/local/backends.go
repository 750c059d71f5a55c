package local

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.etcd.io/etcd/server/v3/embed"
)

// etcdQuota is the size that etcd's database may reach, in bytes: some ten
// million links.
const etcdQuota = 8 << 30

// acquire makes sure that no other fleet uses a folder: etcd would wait for it, and
// say nothing.
func acquire(dir string) (io.Closer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = fmt.Errorf("another fleet uses the folder %s", dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Fleet) startBackends(opts *Options) error {
	etcd, err := startEtcd(opts.Etcd, filepath.Join(f.DataDir, "etcd"))
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	f.backends = append(f.backends, closer(func() error { etcd.Close(); return nil }))
	f.Etcd = "http://" + etcd.Clients[0].Addr().String()

	nats, err := startNATS(opts.NATS, filepath.Join(f.DataDir, "nats"))
	if err != nil {
		return fmt.Errorf("nats: %w", err)
	}
	f.backends = append(f.backends, closer(func() error { nats.Shutdown(); nats.WaitForShutdown(); return nil }))
	f.NATS = nats.ClientURL()
	return nil
}

type closer func() error

func (c closer) Close() error { return c() }

var _ io.Closer = closer(nil)

// startEtcd starts a single member that syncs every write, as a real one does.
func startEtcd(addr, dir string) (*embed.Etcd, error) {
	// The port of peers is of no use to a single member, and stays the same in
	// its configuration over restarts because nobody asks for the one it got.
	peers := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	clients := url.URL{Scheme: "http", Host: addr}
	cfg := embed.NewConfig()
	cfg.Name = "local"
	cfg.Dir = dir
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{clients}, []url.URL{clients}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.QuotaBackendBytes = etcdQuota
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, "1h"
	cfg.LogLevel = "fatal"
	cfg.LogOutputs = []string{"/dev/null"}
	etcd, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return etcd, nil
	case err := <-etcd.Err():
		etcd.Close()
		return nil, err
	case <-time.After(startTimeout):
		etcd.Close()
		return nil, errors.New("not ready in time")
	}
}

func startNATS(addr, dir string) (*server.Server, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("address %s: the port is no number", addr)
	}
	if n == 0 {
		n = server.RANDOM_PORT
	}
	nats, err := server.NewServer(&server.Options{
		ServerName: "local",
		Host:       host,
		Port:       n,
		JetStream:  true,
		StoreDir:   dir,
		NoSigs:     true,
		NoLog:      true,
	})
	if err != nil {
		return nil, err
	}
	// The server ends the process when it cannot listen: find out before.
	if n > 0 {
		probe, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, err
		}
		_ = probe.Close()
	}
	go nats.Start()
	if !nats.ReadyForConnections(startTimeout) {
		nats.Shutdown()
		return nil, errors.New("not ready in time")
	}
	return nats, nil
}
