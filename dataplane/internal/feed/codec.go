package feed

import (
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// rawFrame is a serialized SubscribeResponse. It is valid until the next one is
// received into it.
type rawFrame []byte

// codec is gRPC's own for protobuf, and hands a rawFrame over as it came: large
// frames are read in place.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name)} }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	raw, ok := v.(*rawFrame)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	n := data.Len()
	if cap(*raw) < n || cap(*raw) > 4<<20 && n < cap(*raw)/4 {
		*raw = make([]byte, n)
	}
	*raw = (*raw)[:n]
	data.CopyTo(*raw)
	return nil
}
