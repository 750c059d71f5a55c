package cli

import (
	"context"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/affleet/affleet/proto/aff/admin/v1"
	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/explain"
	"github.com/affleet/affleet/proto/link"
)

// remote reads from the control plane.
type remote struct {
	*app
	explanation *explain.Explanation
}

// stored reads one resource, nil if there is none.
func (r *remote) stored(ctx context.Context, name string) (*linkv1.Resource, error) {
	// A path that no link can have is looked up in vain by nodes, and refused
	// as a name by the control plane.
	if _, _, err := link.ParseName(name); err != nil {
		return nil, nil //nolint:nilnil,nilerr // there is none
	}
	service, err := r.links()
	if err != nil {
		return nil, err
	}
	resp, err := service.Get(ctx, &adminv1.GetRequest{Name: name})
	if status.Code(err) == codes.NotFound {
		return nil, nil //nolint:nilnil // there is none
	}
	if err != nil {
		return nil, err
	}
	r.explanation.Version = max(r.explanation.Version, resp.GetVersion().GetRevision())
	return resp.GetResource(), nil
}

// same reads the link that the name of a candidate stands for under a policy,
// nil if there is none.
func (r *remote) same(ctx context.Context, name string, policy link.Policy) (*linkv1.Resource, error) {
	found, err := r.stored(ctx, name)
	if found != nil || err != nil || policy == 0 {
		return found, err
	}
	domain, path := link.SplitLinkID(strings.TrimPrefix(name, link.Links.Prefix()))
	s := search{remote: r, domain: domain, path: path, policy: policy}
	if err := s.below(ctx, "/"); err != nil || s.best == nil {
		return nil, err
	}
	return &linkv1.Resource{Kind: &linkv1.Resource_Link{Link: s.best}}, nil
}

// search looks for the links of a domain whose paths are the same as a path,
// without reading all links of the domain: those that begin in the same way, and
// where they are many, those of them whose next letter is small, then those
// where it is a capital one.
type search struct {
	*remote
	domain, path string
	policy       link.Policy
	best         *linkv1.Link
}

// below looks among the paths that begin with head, which is as the path begins
// but for the case of its letters.
func (s *search) below(ctx context.Context, head string) error {
	service, err := s.links()
	if err != nil {
		return err
	}
	resp, err := service.List(ctx, &adminv1.ListRequest{PageSize: 100, Filter: &adminv1.Filter{
		Kind: adminv1.Kind_KIND_LINK, Domain: s.domain, PathPrefix: head,
	}})
	if err != nil {
		return err
	}
	s.explanation.Version = max(s.explanation.Version, resp.GetVersion().GetRevision())
	if resp.GetNextPageToken() == "" {
		for _, r := range resp.GetResources() {
			s.consider(r.GetLink())
		}
		return nil
	}
	i := len(head)
	for ; i < len(s.path); i++ {
		if c := s.path[i] | 0x20; 'a' <= c && c <= 'z' && s.policy&link.IgnoreCase != 0 {
			head += s.path[len(head):i]
			if err := s.below(ctx, head+string(c)); err != nil {
				return err
			}
			return s.below(ctx, head+string(c&^0x20))
		}
	}
	// There is no letter left: only the slash at the end.
	head = strings.TrimSuffix(head+s.path[min(len(head), i):], "/")
	for _, path := range []string{head, head + "/"} {
		r, err := s.stored(ctx, link.LinkName(s.domain, path))
		if err != nil {
			return err
		}
		s.consider(r.GetLink())
	}
	return nil
}

// consider keeps the link if it is the same, and the first of those.
func (s *search) consider(l *linkv1.Link) {
	if l != nil && s.policy.Same([]byte(l.GetPath()), []byte(s.path)) && (s.best == nil || l.GetPath() < s.best.GetPath()) {
		s.best = l
	}
}

// book reads the policies that hold for the request, and all blocks, if there is
// anything that one could match: which do, only their texts say.
func (r *remote) book(ctx context.Context, e *explain.Explanation, m *link.Match, req *explain.Request) (*explain.Book, error) {
	b := new(explain.Book)
	scopes := []string{link.AnyHost, link.Domains.Prefix() + e.Host, link.Domains.Prefix() + link.AnyHost}
	affiliate := ""
	if m.Value != nil {
		if affiliate = string(m.Link.Affiliate(m.Value)); affiliate != "" {
			scopes = append(scopes, link.Affiliates.Prefix()+affiliate)
		}
	}
	for _, scope := range scopes {
		policy, err := r.stored(ctx, link.Policies.Prefix()+scope)
		if err == nil && policy != nil {
			err = b.Add(policy)
		}
		if err != nil {
			return nil, err
		}
	}
	if !req.Address.IsValid() && len(req.Headers["User-Agent"]) == 0 && affiliate == "" {
		return b, nil
	}
	return b, r.list(ctx, &adminv1.Filter{Kind: adminv1.Kind_KIND_BLOCK}, 0, b.Add)
}
