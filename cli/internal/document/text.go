package document

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

const (
	timestampName protoreflect.FullName = "google.protobuf.Timestamp"
	durationName  protoreflect.FullName = "google.protobuf.Duration"
)

// wellKnown says whether a message is written as one scalar.
func wellKnown(name protoreflect.FullName) bool { return name == timestampName || name == durationName }

// want says for people what a field takes.
func want(fd protoreflect.FieldDescriptor) string {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return "true or false"
	case protoreflect.StringKind, protoreflect.BytesKind:
		return "a string"
	case protoreflect.DoubleKind:
		return "a number"
	case protoreflect.EnumKind:
		return "one of " + strings.Join(enumNames(fd.Enum()), ", ")
	case protoreflect.MessageKind:
		switch fd.Message().FullName() {
		case timestampName:
			return "a time such as 2026-12-24T18:00:00Z"
		case durationName:
			return "a duration such as 90s or 12h"
		}
		return "JSON"
	}
	return "a whole number"
}

// SetText sets a field from text as people write it in flags and cells: maps,
// lists and messages as JSON, labels also as k=v,k=v. Empty text clears the
// field. The error continues a sentence that starts with the field's name.
func SetText(m protoreflect.Message, fd protoreflect.FieldDescriptor, text string) error {
	if text == "" {
		m.Clear(fd)
		return nil
	}
	if fd.IsMap() || fd.IsList() || fd.Message() != nil {
		return setMessage(m, fd, text)
	}
	v, err := scalarValue(fd, text)
	if err != nil {
		return err
	}
	m.Set(fd, v)
	return nil
}

func setMessage(m protoreflect.Message, fd protoreflect.FieldDescriptor, text string) error {
	switch {
	case !fd.IsMap() && !fd.IsList() && fd.Message().FullName() == timestampName:
		t, err := ParseTime(text)
		if err != nil {
			return err
		}
		m.Set(fd, protoreflect.ValueOfMessage(timestamppb.New(t).ProtoReflect()))
		return nil
	case !fd.IsMap() && !fd.IsList() && fd.Message().FullName() == durationName:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("must be %s, not %q", want(fd), text)
		}
		m.Set(fd, protoreflect.ValueOfMessage(durationpb.New(d).ProtoReflect()))
		return nil
	case fd.IsMap() && !strings.HasPrefix(text, "{"):
		return setPairs(m.Mutable(fd).Map(), text)
	}
	one := m.New()
	wrapped := `{"` + string(fd.Name()) + `":` + text + `}`
	if err := protojson.Unmarshal([]byte(wrapped), one.Interface()); err != nil {
		return fmt.Errorf("is not the JSON of this field: %s", strings.TrimPrefix(cleanProtoError(err), "syntax error "))
	}
	if one.Has(fd) {
		m.Set(fd, one.Get(fd))
	} else {
		m.Clear(fd)
	}
	return nil
}

// cleanProtoError removes the marker that protobuf errors start with, whose
// space differs from build to build on purpose.
func cleanProtoError(err error) string {
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	return strings.TrimPrefix(text, "proto: ")
}

// setPairs sets "k=v,k=v".
func setPairs(into protoreflect.Map, text string) error {
	for pair := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return fmt.Errorf("must be key=value, not %q", pair)
		}
		into.Set(protoreflect.ValueOfString(strings.TrimSpace(key)).MapKey(), protoreflect.ValueOfString(value))
	}
	return nil
}

// scalarValue reads a string, number, boolean or enum. Like SetText's, its
// error continues a sentence.
func scalarValue(fd protoreflect.FieldDescriptor, text string) (v protoreflect.Value, err error) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text), nil
	case protoreflect.BoolKind:
		var b bool
		b, err = strconv.ParseBool(text)
		v = protoreflect.ValueOfBool(b)
	case protoreflect.Int32Kind:
		var n int64
		n, err = strconv.ParseInt(text, 0, 32)
		v = protoreflect.ValueOfInt32(int32(n)) //nolint:gosec // ParseInt has checked it
	case protoreflect.Int64Kind:
		var n int64
		n, err = strconv.ParseInt(text, 0, 64)
		v = protoreflect.ValueOfInt64(n)
	case protoreflect.Uint32Kind:
		var n uint64
		n, err = strconv.ParseUint(text, 0, 32)
		v = protoreflect.ValueOfUint32(uint32(n)) //nolint:gosec // ParseUint has checked it
	case protoreflect.Uint64Kind:
		var n uint64
		n, err = strconv.ParseUint(text, 0, 64)
		v = protoreflect.ValueOfUint64(n)
	case protoreflect.DoubleKind:
		var f float64
		f, err = strconv.ParseFloat(text, 64)
		v = protoreflect.ValueOfFloat64(f)
	case protoreflect.EnumKind:
		return enumValue(fd.Enum(), text)
	default:
		return v, errors.New("cannot be written as text")
	}
	if errors.Is(err, strconv.ErrRange) {
		return v, fmt.Errorf("is out of range: %s", text)
	}
	if err != nil {
		return v, fmt.Errorf("must be %s, not %q", want(fd), text)
	}
	return v, nil
}

// enumPrefix is what the names of an enum's values share: "QUERY_MODE_".
func enumPrefix(ed protoreflect.EnumDescriptor) string {
	return strings.TrimSuffix(string(ed.Values().Get(0).Name()), "UNSPECIFIED")
}

// enumNames are the short names of an enum's values: "SUSPENDED".
func enumNames(ed protoreflect.EnumDescriptor) []string {
	var names []string
	for i := 1; i < ed.Values().Len(); i++ {
		names = append(names, strings.TrimPrefix(string(ed.Values().Get(i).Name()), enumPrefix(ed)))
	}
	return names
}

// enumValue takes a value's name, with or without prefix, in any case.
func enumValue(ed protoreflect.EnumDescriptor, text string) (protoreflect.Value, error) {
	short := strings.TrimPrefix(strings.ToUpper(text), enumPrefix(ed))
	if vd := ed.Values().ByName(protoreflect.Name(enumPrefix(ed) + short)); vd != nil {
		return protoreflect.ValueOfEnum(vd.Number()), nil
	}
	names := enumNames(ed)
	return protoreflect.Value{}, fmt.Errorf("must be one of %s, not %q%s", strings.Join(names, ", "), text, didYouMean(short, names))
}

// Text is a field as SetText reads it; "" when it is not set.
func Text(m protoreflect.Message, fd protoreflect.FieldDescriptor) string {
	if !m.Has(fd) {
		return ""
	}
	v := m.Get(fd)
	if !fd.IsMap() && !fd.IsList() {
		switch fd.Kind() {
		case protoreflect.EnumKind:
			if vd := fd.Enum().Values().ByNumber(v.Enum()); vd != nil {
				return strings.TrimPrefix(string(vd.Name()), enumPrefix(fd.Enum()))
			}
			return strconv.Itoa(int(v.Enum()))
		case protoreflect.MessageKind:
			switch t := v.Message().Interface().(type) {
			case *timestamppb.Timestamp:
				return t.AsTime().Format(time.RFC3339Nano)
			case *durationpb.Duration:
				return t.AsDuration().String()
			}
		default:
			return v.String()
		}
	}
	one := m.New()
	one.Set(fd, v)
	text, err := marshalJSON(one.Interface())
	if err != nil {
		return ""
	}
	return string(text[len(fd.Name())+len(`{"":`) : len(text)-1])
}

// ParseTime reads RFC 3339, a date (midnight, UTC) or a date and time without
// zone (UTC).
func ParseTime(text string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly, "2006-01-02 15:04", time.DateTime, "2006-01-02T15:04", "2006-01-02T15:04:05"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("must be a time such as 2026-12-24T18:00:00Z or 2026-12-24, not %q", text)
}

// Equal says whether two resources say the same, whoever wrote them when. It
// clears their read-only fields.
func Equal(a, b *linkv1.Resource) bool {
	ClearReadOnly(a)
	ClearReadOnly(b)
	return proto.Equal(a, b)
}
