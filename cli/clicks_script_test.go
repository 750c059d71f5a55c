package cli_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/clickstream"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// startNATS is "nats [bad]": a NATS server of its own, whose monitoring is at
// $MONITOR, with a stream as a node makes it, or a bad one. There is no control
// plane.
func startNATS(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(fmt.Sprint("nats", time.Now().UnixNano()))
	options := &server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, HTTPHost: "127.0.0.1", HTTPPort: -1, NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: dir,
	}
	stream := jetstream.StreamConfig{
		Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}, Discard: jetstream.DiscardNew,
		MaxBytes: 1 << 30, Duplicates: 2 * time.Minute,
	}
	if len(args) > 0 {
		options.SyncInterval = time.Hour
		stream.Discard, stream.MaxBytes, stream.Storage = jetstream.DiscardOld, -1, jetstream.MemoryStorage
	}
	s, err := server.NewServer(options)
	ts.Check(err)
	go s.Start()
	ts.Defer(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		ts.Fatalf("NATS server is not ready after 20 s")
	}
	ts.Setenv("AFFCTL_NATS", s.ClientURL())
	ts.Setenv("AFFCTL_SERVER", "127.0.0.1:1")
	ts.Setenv("MONITOR", "http://"+s.MonitorAddr().String())
	withStream(ts, func(ctx context.Context, js jetstream.JetStream) error {
		_, err := js.CreateStream(ctx, stream)
		return err
	})
}

// guardReports is "guard FILE": affguard reports what the lines of the file say, in
// JSON.
func guardReports(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: guard FILE")
	}
	withStream(ts, func(ctx context.Context, js jetstream.JetStream) error {
		if _, err := js.CreateStream(ctx, clickstream.FindingsConfig(1)); err != nil {
			return err
		}
		for line := range strings.Lines(ts.ReadFile(args[0])) {
			r := new(clickv1.Report)
			if err := protojson.Unmarshal([]byte(line), r); err != nil {
				return err
			}
			subject := clickstream.FindingSubject(r.GetFinding().GetDetector())
			if r.GetDecision() != nil {
				subject = clickstream.DecisionSubject(r.GetDecision().GetDetector())
			}
			data, err := proto.Marshal(r)
			if err != nil {
				return err
			}
			if _, err := js.Publish(ctx, subject, data); err != nil {
				return err
			}
		}
		return nil
	})
}

// lose is "lose SEQUENCE": a message of the stream is deleted.
func lose(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: lose SEQUENCE")
	}
	sequence, err := strconv.ParseUint(args[0], 10, 64)
	ts.Check(err)
	withStream(ts, func(ctx context.Context, js jetstream.JetStream) error {
		s, err := js.Stream(ctx, clickstream.StreamName)
		if err != nil {
			return err
		}
		return s.DeleteMsg(ctx, sequence)
	})
}

func withStream(ts *testscript.TestScript, do func(context.Context, jetstream.JetStream) error) {
	conn, err := nats.Connect(ts.Getenv("AFFCTL_NATS"))
	ts.Check(err)
	defer conn.Close()
	js, err := jetstream.New(conn)
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ts.Check(do(ctx, js))
}
