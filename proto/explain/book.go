package explain

import (
	"net/netip"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// Book is a link.Rulebook of the blocks and policies that were added to it. It
// looks at each block; a node's table does not.
type Book struct {
	blocks   []*link.Block
	policies map[string]*link.LabelPolicies
}

// Add adds a block or a policy; another resource is passed over.
func (b *Book) Add(r *linkv1.Resource) error {
	if r.GetBlock() == nil && r.GetPolicy() == nil {
		return nil
	}
	value, err := link.Marshal(r)
	if err != nil {
		return err
	}
	if r.GetBlock() != nil {
		block, err := link.CompileBlock(value)
		if err != nil {
			return err
		}
		b.blocks = append(b.blocks, block)
		return nil
	}
	policy, err := link.CompilePolicy(value)
	if err != nil {
		return err
	}
	if b.policies == nil {
		b.policies = map[string]*link.LabelPolicies{}
	}
	b.policies[policy.Scope] = policy
	return nil
}

// AppendBlocks appends the blocks that match.
func (b *Book) AppendBlocks(dst []*link.Block, addr netip.Addr, userAgent, affiliate []byte) []*link.Block {
	for _, block := range b.blocks {
		if block.Prefix.IsValid() && block.Prefix.Contains(addr) ||
			block.UserAgent != "" && block.UserAgent == string(userAgent) ||
			block.Affiliate != "" && block.Affiliate == string(affiliate) {
			dst = append(dst, block)
		}
	}
	return dst
}

// Policies gives what holds for a host and an affiliate.
func (b *Book) Policies(host, affiliate []byte) link.InForce {
	in := link.InForce{
		Any: b.policies[link.AnyHost], Domain: b.policies[link.Domains.Prefix()+string(host)],
		Affiliate: b.policies[link.Affiliates.Prefix()+string(affiliate)],
	}
	if in.Domain == nil {
		in.Domain = b.policies[link.Domains.Prefix()+link.AnyHost]
	}
	return in
}
