package footprint

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/klauspost/compress/s2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/affleet/affleet/deploy/bench/feedserver"
	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/statefile"
)

const (
	// chunkBytes is what affcontrol puts into a chunk before it compresses it.
	chunkBytes = 1 << 20
	beatEvery  = time.Second
)

// plane is a control plane that gives its node one snapshot, of the entries of a
// state file: one with etcd takes minutes to get them. The epoch is another than
// the file's, as after a restore, so that a node that holds the same takes it.
type plane struct {
	feedv1.UnimplementedFeedServiceServer
	state   *state
	began   chan time.Time // holds one: when the node's stream began
	applied chan error     // holds one: what became of the snapshot
}

func newPlane(s *state) *plane {
	return &plane{state: s, began: make(chan time.Time, 1), applied: make(chan error, 1)}
}

// serve serves at an address until it is stopped.
func (p *plane) serve(addr string) (stop func(), err error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return feedserver.Start(ln, p), nil
}

// Subscribe serves the node's stream.
func (p *plane) Subscribe(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]) error {
	p.began <- time.Now()
	err := p.give(stream)
	p.applied <- err
	if err != nil {
		return err
	}
	for { // the node stays, and nothing changes
		if err := p.beat(stream); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-time.After(beatEvery):
		}
	}
}

func (p *plane) version() *linkv1.Version { return &linkv1.Version{Epoch: epoch + 1, Revision: 1} }

func (p *plane) beat(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]) error {
	return stream.Send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_Heartbeat{
		Heartbeat: &feedv1.Heartbeat{Head: p.version(), Interval: durationpb.New(beatEvery)},
	}})
}

// give sends the snapshot, and waits until the node serves it.
func (p *plane) give(stream grpc.BidiStreamingServer[feedv1.SubscribeRequest, feedv1.SubscribeResponse]) error {
	if m, err := stream.Recv(); err != nil || m.GetHello() == nil {
		return errors.Join(err, errors.New("a stream does not begin with a Hello"))
	}
	if err := p.beat(stream); err != nil {
		return err
	}
	if err := p.snapshot(stream.Send); err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		switch {
		case err != nil:
			return err
		case m.GetApplied() != nil:
			return nil
		case m.GetRejected() != nil:
			return fmt.Errorf("the node rejects the snapshot: %s", m.GetRejected().GetReason())
		}
	}
}

func (p *plane) snapshot(send func(*feedv1.SubscribeResponse) error) error {
	f, err := os.Open(p.state.path)
	if err != nil {
		return err
	}
	defer f.Close()
	blocks, err := statefile.NewReader(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return err
	}
	if err := send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_SnapshotBegin{
		SnapshotBegin: &feedv1.SnapshotBegin{Version: p.version(), Entries: p.state.entries, Bytes: p.state.bytes},
	}}); err != nil {
		return err
	}
	var plain []byte
	for more := true; more; {
		plain = plain[:0]
		for more && len(plain) < chunkBytes {
			if plain, err = blocks.AppendBlock(plain); errors.Is(err, io.EOF) {
				more = false
			} else if err != nil {
				return err
			}
		}
		if err := send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_SnapshotChunk{
			SnapshotChunk: &feedv1.SnapshotChunk{Compressed: s2.Encode(nil, plain), Compression: feedv1.Compression_COMPRESSION_S2},
		}}); err != nil {
			return err
		}
	}
	return send(&feedv1.SubscribeResponse{Frame: &feedv1.SubscribeResponse_SnapshotEnd{
		SnapshotEnd: &feedv1.SnapshotEnd{
			Version: p.version(), Entries: p.state.entries, SetHash: &feedv1.SetHash{Hi: p.state.hash.Hi, Lo: p.state.hash.Lo},
		},
	}})
}
