package controlplane

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
)

// rawMessage is a serialized message. It is sent as it is and must not be
// changed after.
type rawMessage []byte

// maxNodeMessage bounds what a node may say at once, in bytes: what it says is
// small.
const maxNodeMessage = 64 << 10

// codec is gRPC's own for protobuf, and passes a rawMessage through: what many
// streams send is serialized once.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name)} }

// Marshal implements encoding.CodecV2. The buffer of a rawMessage has no pool to
// go back to: it is shared.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if raw, ok := v.(rawMessage); ok {
		return mem.BufferSlice{mem.SliceBuffer(raw)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2. A request keeps its own error.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch v := v.(type) {
	case *rawMessage:
		return fmt.Errorf("unmarshal: a raw message is only sent")
	case *request:
		if said, node := v.message.(*feedv1.SubscribeRequest); node {
			if data.Len() > maxNodeMessage {
				v.err = fmt.Errorf("a node's message has %d bytes, and at most %d are allowed", data.Len(), maxNodeMessage)
				return nil
			}
			if len(data) == 1 && readApplied(data[0].ReadOnlyData(), said) {
				return nil
			}
		}
		v.err = c.CodecV2.Unmarshal(data, v.message)
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}
