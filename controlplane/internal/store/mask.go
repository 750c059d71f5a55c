package store

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// Fields that no mask may name, of whatever kind of resource.
var (
	readOnlyFields = []protoreflect.Name{"revision", "create_time", "update_time", "updated_by"}
	keyFields      = map[link.Kind][]protoreflect.Name{
		link.Links: {"domain", "path"}, link.Domains: {"host"}, link.Affiliates: {"id"}, link.Blocks: {"id"},
		link.Policies: {"scope"},
	}
)

// merge gives a copy of old in which the fields that the mask names are as in
// update: set, or cleared where update does not set them. A mask of "*" names
// all. Both are of the kind.
func merge(kind link.Kind, old, update *linkv1.Resource, mask []string) (*linkv1.Resource, error) {
	if len(mask) == 1 && mask[0] == "*" {
		return proto.CloneOf(update), nil
	}
	merged := proto.CloneOf(old)
	for _, path := range mask {
		if err := copyField(kind, inner(merged), inner(update), path); err != nil {
			return nil, err
		}
	}
	if b := merged.GetBlock(); b != nil && slices.ContainsFunc(mask, namesTTL) {
		b.ExpireTime = nil // it counts anew
	}
	return merged, nil
}

func namesTTL(path string) bool { return path == "ttl" || strings.HasPrefix(path, "ttl.") }

// inner is the message inside a resource, of whatever kind.
func inner(r *linkv1.Resource) protoreflect.Message {
	m := r.ProtoReflect()
	return m.Get(m.WhichOneof(m.Descriptor().Oneofs().ByName("kind"))).Message()
}

// copyField copies what a dotted path names from src to dst.
func copyField(kind link.Kind, dst, src protoreflect.Message, path string) error {
	for depth, rest := 0, path; ; depth++ {
		name, deeper, nested := strings.Cut(rest, ".")
		fd := dst.Descriptor().Fields().ByName(protoreflect.Name(name))
		switch {
		case fd == nil:
			return maskError(fmt.Sprintf("%s has no field %q", kind, path))
		case depth == 0 && slices.Contains(readOnlyFields, fd.Name()):
			return maskError(fmt.Sprintf("%s is read-only", path))
		case depth == 0 && kind == link.Blocks && fd.Name() == "expire_time":
			return maskError(path + " is worked out from ttl")
		case depth == 0 && slices.Contains(keyFields[kind], fd.Name()):
			return maskError(fmt.Sprintf("%s is part of the name, which cannot change", path))
		case !nested && src.Has(fd):
			dst.Set(fd, src.Get(fd))
			return nil
		case !nested:
			dst.Clear(fd)
			return nil
		case fd.Message() == nil || fd.IsMap() || fd.IsList():
			return maskError(fmt.Sprintf("%s has no fields of its own", strings.TrimSuffix(path, "."+deeper)))
		case !src.Has(fd) && !dst.Has(fd):
			// Nothing to clear: only see that the rest of the path exists.
			dst, src = dst.Get(fd).Message().New(), src.Get(fd).Message()
		default:
			dst, src = dst.Mutable(fd).Message(), src.Get(fd).Message()
		}
		rest = deeper
	}
}

func maskError(message string) error {
	return &link.Error{
		Kind: link.Invalid, Field: "update_mask", Message: message,
		Hint: "a mask names fields as the proto does: destination, status_code, query.mode",
	}
}
