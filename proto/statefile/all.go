package statefile

import (
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	feedv1 "github.com/affleet/affleet/proto/aff/feed/v1"
	"github.com/affleet/affleet/proto/link"
)

// All reads a whole file and verifies it: the value of each key.
func All(from io.Reader) (Header, map[string][]byte, error) {
	r, err := NewReader(from)
	if err != nil {
		return Header{}, nil, err
	}
	var hash link.SetHash
	all := make(map[string][]byte, min(r.header.Entries, 1<<20))
	for {
		block, err := r.Block()
		if err != nil {
			return Header{}, nil, err
		}
		if block == nil {
			break
		}
		var chunk feedv1.SnapshotChunk
		if err := proto.Unmarshal(block, &chunk); err != nil {
			return Header{}, nil, fmt.Errorf("a block is no list of entries: %w", err)
		}
		for _, e := range chunk.GetEntries() {
			if _, twice := all[e.GetKey()]; twice {
				return Header{}, nil, fmt.Errorf("it has %.300q twice", e.GetKey())
			}
			all[e.GetKey()] = e.GetValue()
			hash = hash.Add(link.HashEntry([]byte(e.GetKey()), e.GetValue()))
		}
		if int64(len(all)) > r.header.Entries {
			return Header{}, nil, errors.New("it has more entries than its header says")
		}
	}
	return r.header, all, r.header.Check(int64(len(all)), hash)
}
