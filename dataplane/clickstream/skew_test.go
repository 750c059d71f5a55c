package clickstream

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// A node that is newer than this consumer adds fields of every kind and
// numbers to every enumeration, at every level.
func TestClicksOfNewerNodesAreRead(t *testing.T) {
	unknown := func(data []byte) []byte {
		data = protowire.AppendVarint(protowire.AppendTag(data, 900, protowire.VarintType), 1<<60)
		data = protowire.AppendFixed64(protowire.AppendTag(data, 901, protowire.Fixed64Type), 7)
		data = protowire.AppendFixed32(protowire.AppendTag(data, 902, protowire.Fixed32Type), 7)
		return protowire.AppendBytes(protowire.AppendTag(data, 903, protowire.BytesType), []byte("later"))
	}
	extend := func(m proto.Message) { m.ProtoReflect().SetUnknown(unknown(nil)) }
	data := message(t, "n", 1, 1, 2, func(b *clickv1.Batch) {
		b.AddressForm = 77
		b.Strings = append(b.Strings, []byte("a/b"))
		b.Ledger.Dropped = []*clickv1.Drop{{Reason: 44, Clicks: 3}}
		for _, c := range b.Clicks {
			c.Link, c.Method, c.Outcome, c.Address = 1, 5, 300, []byte{1, 2, 3, 4}
			extend(c)
		}
		extend(b.Ledger)
		extend(b.Ledger.Dropped[0])
		extend(b)
	})
	b, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	c := b.Clicks[1]
	if len(b.Clicks) != 2 || b.Ledger.Dropped["reason_44"] != 3 || c.Link != "a/b" || c.Sequence != 2 ||
		c.Method != "method_5" || c.Outcome.String() != "outcome_255" || c.Address.String() != "01020304" {
		t.Fatalf("%+v", b)
	}
	if _, ok := c.Address.Prefix(); ok {
		t.Fatal("an address of an unknown form is taken for one in full")
	}
}
