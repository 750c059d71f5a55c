// Package natstest runs a real NATS server with JetStream inside a test. It is
// for tests and benchmarks only, and not for concurrent use by several
// goroutines.
package natstest

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Server is an embedded server that can be stopped and started again on the
// same port and with the same store.
type Server struct {
	t       testing.TB
	options server.Options
	server  *server.Server
}

// Start runs a server on a free port, with its store in a folder of the test.
// Each change is applied to its options first. The server stops with the test.
func Start(t testing.TB, change ...func(*server.Options)) *Server {
	t.Helper()
	s := &Server{t: t, options: server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: t.TempDir(),
	}}
	for _, c := range change {
		c(&s.options)
	}
	s.Restart()
	t.Cleanup(s.Stop)
	return s
}

// Restart starts the server after Stop, on the same port.
func (s *Server) Restart() {
	s.t.Helper()
	options := s.options
	running, err := server.NewServer(&options)
	if err != nil {
		s.t.Fatalf("start NATS server: %v", err)
	}
	go running.Start()
	if !running.ReadyForConnections(patience) {
		s.t.Fatalf("NATS server is not ready after %v", patience)
	}
	s.server = running
	s.options.Port = options.Port
}

// Stop ends the server and waits until it has. It may be called twice.
func (s *Server) Stop() {
	if s.server != nil {
		s.server.Shutdown()
		s.server.WaitForShutdown()
		s.server = nil
	}
}

// URL is where clients connect; it stays the same over a restart.
func (s *Server) URL() string {
	s.t.Helper()
	if s.server == nil {
		s.t.Fatal("NATS server is stopped")
	}
	return s.server.ClientURL()
}

// JetStream is a client of the server that closes with the test.
func (s *Server) JetStream() jetstream.JetStream {
	s.t.Helper()
	return client(s.t, s.URL())
}

// storeFailed is the server's code where a stream's files cannot be made.
const storeFailed jetstream.ErrorCode = 10049

// CreateStream makes a stream. Where one of its name has only just been deleted, the
// server may be removing the files of that one still, and refuses for a moment.
func CreateStream(t testing.TB, js jetstream.JetStream, config jetstream.StreamConfig) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		_, err := js.CreateStream(t.Context(), config)
		var refused *jetstream.APIError
		switch {
		case err == nil:
			return
		case !errors.As(err, &refused), refused.ErrorCode != storeFailed, time.Now().After(deadline):
			t.Fatalf("create stream: %v", err)
		}
	}
}

// patience is how long a busy machine may take to connect or to answer.
const patience = 20 * time.Second

// client is one that closes with the test.
func client(t testing.TB, url string) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(url, nats.Timeout(patience), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatalf("connect to NATS: %v", err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn, jetstream.WithDefaultTimeout(patience))
	if err != nil {
		t.Fatalf("open JetStream: %v", err)
	}
	return js
}
