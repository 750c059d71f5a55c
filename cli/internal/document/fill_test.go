package document_test

import (
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// fill sets every field of m to something, messages to one level.
func fill(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch {
		case fd.IsMap():
			m.Mutable(fd).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString("v,=x"))
		case fd.IsList() && fd.Message() == nil:
			m.Mutable(fd).List().Append(protoreflect.ValueOfString("x"))
		case fd.IsList():
			list := m.Mutable(fd).List()
			v := list.NewElement()
			fill(v.Message())
			list.Append(v)
		case fd.Message() != nil:
			v := m.NewField(fd)
			switch t := v.Message().Interface().(type) {
			case *timestamppb.Timestamp:
				t.Seconds, t.Nanos = 1_800_000_000, 5
			case *durationpb.Duration:
				t.Seconds = 90
			default:
				fill(v.Message())
			}
			m.Set(fd, v)
		default:
			m.Set(fd, scalar(fd))
		}
	}
}

func scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(-7)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1 << 60)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(7)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1 << 60)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(0.25)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	}
	return protoreflect.ValueOfString("text, with = and \"quotes\"")
}
