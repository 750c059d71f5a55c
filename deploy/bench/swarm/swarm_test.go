package swarm

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"google.golang.org/grpc"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// plane is a control plane whose streams run as a test says.
type plane struct {
	feedv1.UnimplementedFeedServiceServer
	serve func(*feedv1.Hello, feedv1.FeedService_SubscribeServer) error
}

func (p *plane) Subscribe(stream feedv1.FeedService_SubscribeServer) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	return p.serve(m.GetHello(), stream)
}

func start(t *testing.T, serve func(*feedv1.Hello, feedv1.FeedService_SubscribeServer) error) *Swarm {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	feedv1.RegisterFeedServiceServer(server, &plane{serve: serve})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ln) })
	s := New(ln.Addr().String())
	t.Cleanup(func() { s.Close(); server.Stop(); serving.Wait() })
	return s
}

func version(revision int64) *linkv1.Version { return &linkv1.Version{Epoch: 7, Revision: revision} }

func hashOf(entries map[string]string) *feedv1.SetHash {
	var h link.SetHash
	for k, v := range entries {
		h = h.Add(link.HashEntry([]byte(k), []byte(v)))
	}
	return &feedv1.SetHash{Hi: h.Hi, Lo: h.Lo}
}

// greet sends a snapshot to a node that holds nothing, and a heartbeat.
func greet(hello *feedv1.Hello, stream feedv1.FeedService_SubscribeServer, entries map[string]string) error {
	frames := []*feedv1.SubscribeResponse{{Frame: &feedv1.SubscribeResponse_Heartbeat{Heartbeat: &feedv1.Heartbeat{Head: version(1)}}}}
	if hello.GetVersion() == nil {
		var plain feedv1.SnapshotChunk
		for k, v := range entries {
			plain.Entries = append(plain.Entries, &feedv1.Entry{Key: k, Value: []byte(v)})
		}
		frames = append(frames,
			&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_SnapshotBegin{SnapshotBegin: &feedv1.SnapshotBegin{Version: version(1), Entries: int64(len(entries))}}},
			&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_SnapshotChunk{SnapshotChunk: &feedv1.SnapshotChunk{
				Compressed: s2.Encode(nil, mustMarshal(&plain)), Compression: feedv1.Compression_COMPRESSION_S2,
			}}},
			&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_SnapshotEnd{SnapshotEnd: &feedv1.SnapshotEnd{Version: version(1), Entries: int64(len(entries)), SetHash: hashOf(entries)}}})
	}
	for _, f := range frames {
		if err := stream.Send(f); err != nil {
			return err
		}
	}
	return nil
}

func delta(from, to int64, put map[string]string, after map[string]string, deletes ...string) *feedv1.SubscribeResponse {
	d := &feedv1.Delta{From: version(from), To: version(to), Deletes: deletes, SetHash: hashOf(after), Entries: int64(len(after))}
	for k, v := range put {
		d.Puts = append(d.Puts, &feedv1.Entry{Key: k, Value: []byte(v)})
	}
	return &feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Delta{Delta: d}}
}

// answer gives the next answer that is not a status.
func answer(stream feedv1.FeedService_SubscribeServer) (*feedv1.SubscribeRequest, error) {
	for {
		m, err := stream.Recv()
		if err != nil || m.GetStatus() == nil {
			return m, err
		}
	}
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestNodesVerifyAndAcknowledgeDeltas(t *testing.T) {
	first := map[string]string{"a": "1", "b": "2", "large": strings.Repeat("x", 300_000)}
	second := map[string]string{"a": "3", "large": first["large"], "c": "4"}
	s := start(t, func(hello *feedv1.Hello, stream feedv1.FeedService_SubscribeServer) error {
		if err := greet(hello, stream, first); err != nil {
			return err
		}
		if hello.GetVersion() == nil {
			if m, err := answer(stream); err != nil || m.GetApplied().GetVersion().GetRevision() != 1 {
				t.Errorf("the snapshot was answered with %v, %v", m, err)
			}
		}
		if err := stream.Send(delta(1, 5, map[string]string{"a": "3", "c": "4"}, second, "b")); err != nil {
			return err
		}
		m, err := answer(stream)
		if a := m.GetApplied(); err == nil && (a.GetVersion().GetRevision() != 5 || a.GetSetHash().GetLo() != hashOf(second).GetLo()) {
			t.Errorf("the delta was answered with %v", m)
		}
		<-stream.Context().Done()
		return nil
	})
	if err := s.Grow(soon(t), 20); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(soon(t), 5); err != nil {
		t.Fatal(err)
	}
	if c := s.Counts(); c.Snapshots != 1 || c.Deltas != 20 || c.Bytes < 1000 {
		t.Errorf("the swarm has counted %+v", c)
	}
}

func TestDeltaThatDoesNotVerifyIsFoundOut(t *testing.T) {
	first := map[string]string{"a": "1"}
	for name, bad := range map[string]*feedv1.SubscribeResponse{
		"a change that is lost": delta(1, 5, nil, map[string]string{"a": "2"}),
		"another base":          delta(2, 5, map[string]string{"a": "2"}, map[string]string{"a": "2"}),
		"the way back":          delta(1, 1, map[string]string{"a": "2"}, map[string]string{"a": "2"}),
	} {
		s := start(t, func(hello *feedv1.Hello, stream feedv1.FeedService_SubscribeServer) error {
			if err := greet(hello, stream, first); err != nil {
				return err
			}
			if _, err := answer(stream); err != nil {
				return err
			}
			return stream.Send(bad)
		})
		if err := s.Grow(soon(t), 1); err == nil {
			_, err = s.Wait(soon(t), 5)
			if err == nil || soon(t).Err() != nil {
				t.Errorf("%s: the node took it", name)
			}
		}
		if s.Err() == nil {
			t.Errorf("%s: there is no error", name)
		}
	}
}

func TestStalledNodeFillsItsWindowAndLaterCatchesUp(t *testing.T) {
	first := map[string]string{"a": "1"}
	second := map[string]string{"a": strings.Repeat("x", 8<<20)}
	stalled, sent := make(chan struct{}), make(chan struct{})
	s := start(t, func(hello *feedv1.Hello, stream feedv1.FeedService_SubscribeServer) error {
		if err := greet(hello, stream, first); err != nil {
			return err
		}
		<-stalled
		for range 2 { // the first one may still go into buffers
			if err := stream.Send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Heartbeat{Heartbeat: &feedv1.Heartbeat{}}}); err != nil {
				return err
			}
		}
		err := stream.Send(delta(1, 5, second, second))
		if err == nil {
			err = stream.Send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Heartbeat{Heartbeat: &feedv1.Heartbeat{}}})
		}
		close(sent)
		<-stream.Context().Done()
		return err
	})
	if err := s.Grow(soon(t), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(soon(t), 1); err != nil {
		t.Fatal(err)
	}
	s.Stall(1)
	close(stalled)
	select {
	case <-sent:
		t.Fatal("8 MB went to a node that does not read")
	case <-time.After(200 * time.Millisecond): // what should not happen has had its time
	}
	if _, err := s.Wait(soon(t), 5); err != nil {
		t.Fatalf("a stalled node is waited for: %v", err)
	}
	s.Resume(1)
	if _, err := s.Wait(soon(t), 5); err != nil {
		t.Fatal(err)
	}
}

func TestNodeThatReconnectsNamesWhatItHolds(t *testing.T) {
	first := map[string]string{"a": "1"}
	helloes := make(chan *feedv1.Hello, 10)
	s := start(t, func(hello *feedv1.Hello, stream feedv1.FeedService_SubscribeServer) error {
		helloes <- hello
		err := greet(hello, stream, first)
		<-stream.Context().Done()
		return err
	})
	if err := s.Grow(soon(t), 1); err != nil {
		t.Fatal(err)
	}
	s.Disconnect(1)
	if err := s.Reconnect(soon(t), 1); err != nil {
		t.Fatal(err)
	}
	<-helloes
	if h := <-helloes; h.GetVersion().GetRevision() != 1 || h.GetSetHash().GetLo() != hashOf(first).GetLo() || h.GetNode() != "sim-0" {
		t.Errorf("the second time it said %v", h)
	}
}
