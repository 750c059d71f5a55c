package controlplane

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/controlplane/internal/snapshot"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

func TestCodecSendsSerializedBytesWithoutACopy(t *testing.T) {
	m := &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Behind{Behind: &feedv1.Behind{Reason: "x"}}}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	c := newCodec()
	raw, err := c.Marshal(rawMessage(b))
	if err != nil || len(raw) != 1 || &raw[0].ReadOnlyData()[0] != &b[0] {
		t.Fatalf("the bytes were copied: %v, %v", raw, err)
	}
	plain, err := c.Marshal(m)
	if err != nil || string(plain.Materialize()) != string(b) {
		t.Fatalf("a message became %v, %v", plain, err)
	}
	var got feedv1.SubscribeResponse
	if err := c.Unmarshal(raw, &got); err != nil || !proto.Equal(m, &got) {
		t.Fatalf("received: %v, %v", &got, err)
	}
	if err := c.Unmarshal(raw, new(rawMessage)); err == nil {
		t.Error("a raw message was received")
	}
}

// BenchmarkFrameToManyStreams is what one write costs before gRPC has it, for
// 2,000 streams: shared, as the feed does it, and as if each stream marshalled
// for itself.
func BenchmarkFrameToManyStreams(b *testing.B) {
	const streams = 2000
	written := newTimeline(1)
	log := snapshot.New(&source{timeline: written}, snapshot.Config{Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), AuditInterval: -1})
	ctx, stop := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = log.Run(ctx) })
	defer running.Wait()
	defer stop()
	<-log.Ready()
	held := log.Head()
	hash, _ := log.View().HashAt(held)
	cursor, err := log.Resume(held, hash)
	if err != nil {
		b.Fatal(err)
	}
	changed := log.Changed()
	written.write(false)
	<-changed
	c := newCodec()
	frame, err := log.Next(ctx, cursor)
	if err != nil {
		b.Fatal(err)
	}
	first := &frame.Messages[0][0]
	var message feedv1.SubscribeResponse
	if err := proto.Unmarshal(frame.Messages[0], &message); err != nil {
		b.Fatal(err)
	}
	b.Run("shared", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for range streams {
				f, err := log.Next(ctx, cursor)
				if err != nil {
					b.Fatal(err)
				}
				sent, err := c.Marshal(rawMessage(f.Messages[0]))
				if err != nil || &sent[0].ReadOnlyData()[0] != first {
					b.Fatalf("a stream has bytes of its own, or none: %v", err)
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/streams, "ns/stream")
	})
	b.Run("marshalled per stream", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for range streams {
				if _, err := c.Marshal(&message); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/streams, "ns/stream")
	})
}
