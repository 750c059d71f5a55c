package clickstream

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/internal/natstest"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// slowDialer makes connections on which only so many bytes come.
type slowDialer struct {
	mu   sync.Mutex
	more *sync.Cond
	left int
}

func (d *slowDialer) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	return slowConn{c, d}, err
}

func (d *slowDialer) let(bytes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = bytes
	d.more.Broadcast()
}

type slowConn struct {
	net.Conn
	*slowDialer
}

func (c slowConn) Read(b []byte) (int, error) {
	c.mu.Lock()
	for c.left <= 0 {
		c.more.Wait()
	}
	b = b[:min(len(b), c.left, 4096)]
	c.left -= len(b)
	c.mu.Unlock()
	return c.Conn.Read(b)
}

// A consumer that has an end looks whether it is reached when nothing comes. It must
// not wait for the answer, which comes behind all that the server has sent.
func TestWhatComesSlowlyIsHandledAsItComes(t *testing.T) {
	s := natstest.Start(t)
	publish := stream(t, s.JetStream())
	const batches, size = 20, 100 << 10
	for i := range uint64(batches) {
		publish(Subject("eu", "n"), message(t, "n", 1, 1+i, 1, func(b *clickv1.Batch) { b.Strings = [][]byte{nil, make([]byte, size)} }))
	}
	d := &slowDialer{left: 5*size + size/2}
	d.more = sync.NewCond(&d.mu)
	conn, err := nats.Connect(s.URL(), nats.Timeout(20*time.Second), nats.SetCustomDialer(d))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	defer d.let(1 << 40)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	handled := make(chan uint64, batches)
	done := make(chan error, 1)
	go func() {
		done <- Consume(t.Context(), js, Options{Until: time.Now(), Log: quiet()}, func(_ context.Context, b *Batch) error {
			handled <- b.First
			return nil
		})
	}()
	next := func(want uint64) {
		t.Helper()
		select {
		case got := <-handled:
			if got != want {
				t.Fatalf("batch %d comes, want %d", got, want)
			}
		case <-time.After(20 * time.Second): // who waits for the answer waits for ever
			t.Fatalf("batch %d has come, and is not handled", want)
		}
	}
	first := uint64(1)
	for ; first <= 5; first++ {
		next(first)
	}
	time.Sleep(300 * time.Millisecond) // for a consumer to become impatient
	d.let(2 * size)
	next(first)
	d.let(1 << 40)
	for first++; first <= batches; first++ {
		next(first)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
