package link

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// Limits, in bytes unless they say otherwise.
const (
	AnyHost        = "*" // the domain of links and the host of the domain that serve every host
	MaxHost        = 253
	MaxPath        = 8192
	MaxDestination = 8192
	MaxIdentifier  = 128
	MaxText        = 256 // campaigns, reasons, display names, label values
	MaxLabelKey    = 63
	MaxLabels      = 64    // labels of one resource
	MaxValue       = 65535 // a serialized resource

	MaxRobots         = 32 << 10 // a robots.txt
	MaxParameters     = 32       // default parameters of an affiliate
	MaxParameterValue = 2048
	MaxNames          = 64  // names in a list of a query policy
	MaxSplits         = 64  // variants of a split
	MaxWeight         = 1e6 // of a variant
	MaxName           = 64  // of a rule or a variant

	MaxUserAgent = 1024 // of a block
	MaxAllowed   = 256  // entries of a list of what the guard never blocks
)

// Marshal gives the bytes that are stored, distributed and hashed: without the
// read-only fields, and always the same for the same content.
func Marshal(r *linkv1.Resource) ([]byte, error) {
	bare := r
	if hasReadOnly(r) {
		bare = proto.CloneOf(r)
		SetReadOnly(bare, 0, nil)
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(bare)
	if err != nil {
		return nil, &Error{Kind: Invalid, Message: "is not valid UTF-8 somewhere", Err: err}
	}
	if len(value) > MaxValue {
		return nil, invalid("", "", "takes %d bytes, and at most %d are allowed", len(value), MaxValue)
	}
	return value, nil
}

// Unmarshal reads a stored value and checks that it belongs to the name.
func Unmarshal(name string, value []byte) (*linkv1.Resource, error) {
	r := new(linkv1.Resource)
	if err := proto.Unmarshal(value, r); err != nil {
		return nil, fmt.Errorf("decode %s: %w", name, err)
	}
	if k, id, err := identify(r); err != nil || k.Prefix()+id != name {
		return nil, fmt.Errorf("decode %s: holds another resource", name)
	}
	return r, nil
}

// SetReadOnly sets the read-only fields of a resource from its revision and
// its record; a nil record clears them.
func SetReadOnly(r *linkv1.Resource, revision int64, record *linkv1.Record) {
	created, updated, by := record.GetCreateTime(), record.GetUpdateTime(), record.GetUpdatedBy()
	switch k := r.GetKind().(type) {
	case *linkv1.Resource_Link:
		setReadOnly(&k.Link.Revision, &k.Link.CreateTime, &k.Link.UpdateTime, &k.Link.UpdatedBy, revision, created, updated, by)
	case *linkv1.Resource_Domain:
		setReadOnly(&k.Domain.Revision, &k.Domain.CreateTime, &k.Domain.UpdateTime, &k.Domain.UpdatedBy, revision, created, updated, by)
	case *linkv1.Resource_Affiliate:
		setReadOnly(&k.Affiliate.Revision, &k.Affiliate.CreateTime, &k.Affiliate.UpdateTime, &k.Affiliate.UpdatedBy, revision, created, updated, by)
	case *linkv1.Resource_Block:
		setReadOnly(&k.Block.Revision, &k.Block.CreateTime, &k.Block.UpdateTime, &k.Block.UpdatedBy, revision, created, updated, by)
	case *linkv1.Resource_Policy:
		setReadOnly(&k.Policy.Revision, &k.Policy.CreateTime, &k.Policy.UpdateTime, &k.Policy.UpdatedBy, revision, created, updated, by)
	}
}

// readOnly is what all kinds have for people only.
type readOnly interface {
	GetRevision() int64
	GetCreateTime() *timestamppb.Timestamp
	GetUpdateTime() *timestamppb.Timestamp
	GetUpdatedBy() string
}

// hasReadOnly says whether a resource has a read-only field, so that it must be
// copied before it is stored.
func hasReadOnly(r *linkv1.Resource) bool {
	var of readOnly
	switch k := r.GetKind().(type) {
	case *linkv1.Resource_Link:
		of = k.Link
	case *linkv1.Resource_Domain:
		of = k.Domain
	case *linkv1.Resource_Affiliate:
		of = k.Affiliate
	case *linkv1.Resource_Block:
		of = k.Block
	case *linkv1.Resource_Policy:
		of = k.Policy
	default:
		return false
	}
	return of.GetRevision() != 0 || of.GetCreateTime() != nil || of.GetUpdateTime() != nil || of.GetUpdatedBy() != ""
}

func setReadOnly(rev *int64, create, update **timestamppb.Timestamp, by *string,
	revision int64, created, updated *timestamppb.Timestamp, who string,
) {
	*rev, *create, *update, *by = revision, created, updated, who
}
