package cli_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"
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

// lose is "lose SEQUENCE": a message of the stream is deleted. Nodes would fill the
// hole within half a minute, but not in a stream that itself deletes messages of
// theirs.
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
		config := s.CachedInfo().Config
		config.MaxMsgsPerSubject = 1 << 40
		if _, err := js.UpdateStream(ctx, config); err != nil {
			return err
		}
		return s.DeleteMsg(ctx, sequence)
	})
}

// publishing is a batch of clicks in a script.
type publishing struct {
	Node     string
	Boot     uint64
	First    uint64
	Recorded uint64            // of the ledger; without it, all so far
	Dropped  map[string]uint64 // "spool_full"
	Final    bool
	Clicks   []struct{ Time, Link, Affiliate, Address, Agent, Country, Label string }
}

// publish is "publish FILE": batches are published as nodes publish theirs, each
// a line of JSON.
func publish(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: publish FILE")
	}
	lines := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	lines.DisallowUnknownFields()
	for lines.More() {
		var p publishing
		ts.Check(lines.Decode(&p))
		data, err := proto.Marshal(p.batch(ts))
		ts.Check(err)
		withStream(ts, func(ctx context.Context, js jetstream.JetStream) error {
			_, err := js.Publish(ctx, clickstream.Subject("eu", p.Node), data)
			return err
		})
	}
}

func (p *publishing) batch(ts *testscript.TestScript) *clickv1.Batch {
	b := &clickv1.Batch{
		Node: p.Node, Region: "eu", Boot: p.Boot << 32, FirstSequence: p.First, Strings: [][]byte{nil},
		AddressForm: clickv1.AddressForm_ADDRESS_FORM_TRUNCATED, Ledger: &clickv1.Ledger{Recorded: p.Recorded, Final: p.Final},
	}
	if p.Recorded == 0 {
		b.Ledger.Recorded = p.First + uint64(len(p.Clicks)) - 1
	}
	b.Ledger.Answered = b.Ledger.Recorded
	for reason, clicks := range p.Dropped {
		number, ok := clickv1.DropReason_value["DROP_REASON_"+strings.ToUpper(reason)]
		if !ok {
			ts.Fatalf("there is no reason %q", reason)
		}
		b.Ledger.Dropped = append(b.Ledger.Dropped, &clickv1.Drop{Reason: clickv1.DropReason(number), Clicks: clicks})
		b.Ledger.Answered += clicks
	}
	text := func(s string) uint32 {
		b.Strings = append(b.Strings, []byte(s))
		return uint32(len(b.Strings) - 1)
	}
	for _, from := range p.Clicks {
		at, err := time.Parse(time.RFC3339, from.Time)
		ts.Check(err)
		c := &clickv1.Click{TimeUs: at.UnixMicro(), Link: text(from.Link), Affiliate: text(from.Affiliate), UserAgent: text(from.Agent), Country: text(from.Country)}
		if from.Address != "" {
			c.Address = netip.MustParseAddr(from.Address).AsSlice()
		}
		if from.Label != "" {
			c.Labels = []uint32{text(from.Label), text("test 1")}
		}
		b.Clicks = append(b.Clicks, c)
	}
	return b
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
