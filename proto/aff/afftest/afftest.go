// Package afftest makes messages as another release would, for the tests of both planes.
package afftest

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Unknown are fields that only a later release has, one of each wire type.
func Unknown() (b []byte) {
	b = protowire.AppendVarint(protowire.AppendTag(b, 900, protowire.VarintType), 1<<40)
	b = protowire.AppendFixed64(protowire.AppendTag(b, 901, protowire.Fixed64Type), 2)
	b = protowire.AppendBytes(protowire.AppendTag(b, 902, protowire.BytesType), []byte("later"))
	return protowire.AppendFixed32(protowire.AppendTag(b, 903, protowire.Fixed32Type), 3)
}

// Grow adds such fields to a message and to all that is in it.
func Grow(m protoreflect.Message) {
	m.SetUnknown(Unknown())
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case field.IsMap() || field.Message() == nil:
		case field.IsList():
			for i := range v.List().Len() {
				Grow(v.List().Get(i).Message())
			}
		default:
			Grow(v.Message())
		}
		return true
	})
}
