package clickstream_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/clickstream"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// Counts the clicks of each affiliate, each click once, although the stream
// holds some of them twice.
func ExampleConsume() {
	js, stop := streamWithClicks()
	defer stop()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	perAffiliate := map[string]int{}
	err := clickstream.Consume(ctx, js, clickstream.Options{
		Gap: func(g clickstream.Gap) { fmt.Printf("%s: %d to %d are missing\n", g.Node, g.From, g.To) },
	}, func(_ context.Context, b *clickstream.Batch) error {
		for _, c := range b.Clicks {
			perAffiliate[c.Affiliate]++
		}
		if b.Ledger.Final { // the node has ended, and so does this example
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		fmt.Println(err)
	}
	fmt.Println(perAffiliate)
	// Output: map[aff_01:4 darian_v:2]
}

// streamWithClicks runs a server with a stream as a node leaves it.
func streamWithClicks() (js jetstream.JetStream, stop func()) {
	dir, err := os.MkdirTemp("", "clickstream")
	must(err)
	s, err := server.NewServer(&server.Options{Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true})
	must(err)
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		panic("NATS server is not ready")
	}
	conn, err := nats.Connect(s.ClientURL(), nats.Timeout(20*time.Second))
	must(err)
	js, err = jetstream.New(conn)
	must(err)
	_, err = js.CreateStream(context.Background(), jetstream.StreamConfig{
		Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}, Discard: jetstream.DiscardNew,
	})
	must(err)
	batch := func(first uint64, final bool, affiliates ...uint32) {
		b := &clickv1.Batch{
			Node: "node-1", Region: "eu", Boot: 1, FirstSequence: first, BaseTimeUs: time.Now().UnixMicro(),
			Strings: [][]byte{nil, []byte("aff_01"), []byte("darian_v")}, Ledger: &clickv1.Ledger{Answered: 6, Recorded: 6, Final: final},
		}
		for _, a := range affiliates {
			b.Clicks = append(b.Clicks, &clickv1.Click{Affiliate: a})
		}
		data, err := proto.Marshal(b)
		must(err)
		_, err = js.Publish(context.Background(), clickstream.Subject("eu", "node-1"), data)
		must(err)
	}
	batch(1, false, 1, 1, 2)
	batch(2, false, 1, 2, 1, 1) // 2 and 3 once more, 4 and 5 for the first time
	batch(6, true, 2)
	return js, func() {
		conn.Close()
		s.Shutdown()
		s.WaitForShutdown()
		must(os.RemoveAll(dir))
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
