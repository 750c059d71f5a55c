package store

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"strings"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/proto"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// Filter chooses resources of one kind. What is not set matches everything.
type Filter struct {
	Kind       link.Kind         // required
	Domain     string            // links and domains: the host, byte for byte
	PathPrefix string            // links; needs a domain
	Affiliate  string            // links and blocks
	Labels     map[string]string // not for blocks and policies; an empty value matches any
}

// Check says what is wrong with a filter.
func (f Filter) Check() error {
	bad := func(field, message string) error {
		return &link.Error{Kind: link.Invalid, Field: "filter." + field, Message: message}
	}
	switch {
	case f.Kind < link.Links || f.Kind > link.Policies:
		return bad("kind", "is not a kind of resource")
	case f.Domain != "" && f.Kind != link.Links && f.Kind != link.Domains:
		return bad("domain", f.Kind.Plural()+" have no domain")
	case strings.Contains(f.Domain, "/"):
		return bad("domain", "is a host, without a path")
	case f.PathPrefix != "" && f.Kind != link.Links:
		return bad("path_prefix", f.Kind.Plural()+" have no path")
	case f.PathPrefix != "" && f.Domain == "":
		return bad("path_prefix", "needs a domain")
	case f.PathPrefix != "" && f.PathPrefix[0] != '/':
		return bad("path_prefix", "does not start with a slash")
	case f.Affiliate != "" && f.Kind != link.Links && f.Kind != link.Blocks:
		return bad("affiliate", f.Kind.Plural()+" have no affiliate")
	case len(f.Labels) > 0 && (f.Kind == link.Blocks || f.Kind == link.Policies):
		return bad("labels", f.Kind.Plural()+" have no labels of their own")
	}
	return nil
}

// prefix is what all names that may match start with.
func (f Filter) prefix() (string, error) {
	if err := f.Check(); err != nil {
		return "", err
	}
	switch {
	case f.Domain == "":
		return f.Kind.Prefix(), nil
	case f.Kind == link.Domains:
		return f.Kind.Prefix() + f.Domain, nil
	case f.PathPrefix == "":
		return f.Kind.Prefix() + f.Domain + "/", nil
	}
	return f.Kind.Prefix() + f.Domain + f.PathPrefix, nil
}

// MatchName says whether a resource of that name can match.
func (f Filter) MatchName(name string) bool {
	id, ok := strings.CutPrefix(name, f.Kind.Prefix())
	switch {
	case !ok || f.Domain == "":
		return ok
	case f.Kind == link.Domains:
		return id == f.Domain
	}
	path, ok := strings.CutPrefix(id, f.Domain)
	return ok && strings.HasPrefix(path, "/") && strings.HasPrefix(path, f.PathPrefix)
}

// Match says whether an object matches.
func (f Filter) Match(o *Object) bool {
	if !f.MatchName(o.Name) {
		return false
	}
	if f.Affiliate != "" && f.Kind == link.Links && !bytes.Equal(linkAffiliate(o.Value), []byte(f.Affiliate)) {
		return false
	}
	if len(f.Labels) == 0 && (f.Affiliate == "" || f.Kind == link.Links) {
		return true
	}
	r := new(linkv1.Resource)
	if err := proto.Unmarshal(o.Value, r); err != nil {
		return false
	}
	if f.Kind == link.Blocks && r.GetBlock().GetAffiliate() != f.Affiliate {
		return false
	}
	have := labels(r)
	for key, want := range f.Labels {
		if got, ok := have[key]; !ok || want != "" && got != want {
			return false
		}
	}
	return true
}

// labels gives the labels of a resource of any kind.
func labels(r *linkv1.Resource) map[string]string {
	if labeled, ok := inner(r).Interface().(interface{ GetLabels() map[string]string }); ok {
		return labeled.GetLabels()
	}
	return nil
}

// Query asks for one page of a list.
type Query struct {
	Filter
	PageSize  int    // at most; default 100, no more than 1000
	PageToken string // Page.Next of the page before, with the same filter
}

// Page is a part of a list. It may be shorter than was asked for, or empty,
// and still have a next one.
type Page struct {
	Objects  []Object // in order of their names
	Next     string   // empty on the last page
	Revision int64    // what all pages show
}

const (
	defaultPageSize = 100
	maxPageSize     = 1000
	maxScanned      = 10000   // keys that one call of List reads
	maxPageBytes    = 2 << 20 // of the objects of a page, so that it fits a gRPC message
)

// List reads one page, in order of the names. The first page decides the
// revision of all. It looks at no more than 10,000 keys.
func (s *Store) List(ctx context.Context, q Query) (Page, error) {
	prefix, err := q.prefix()
	if err != nil {
		return Page{}, err
	}
	size, err := q.size()
	if err != nil {
		return Page{}, err
	}
	c := s.scan(resources+prefix, 0)
	if q.PageToken != "" {
		revision, last, err := q.readToken(prefix, q.PageToken)
		if err != nil {
			return Page{}, err
		}
		c.revision, c.from = revision, resources+last+"\x00"
	}
	filtered := q.Affiliate != "" || len(q.Labels) > 0
	page, scanned, bytes := Page{}, 0, 0
	for !c.done {
		if c.limit = int64(size-len(page.Objects)) + 1; filtered {
			c.limit = maxPageSize
		}
		kvs, err := c.next(ctx)
		if err != nil {
			return Page{}, err
		}
		for i, kv := range kvs {
			o := object(kv)
			scanned++
			if o.Value != nil && q.Match(&o) {
				page.Objects = append(page.Objects, o)
				bytes += len(o.Value)
			}
			full := len(page.Objects) >= size || bytes >= maxPageBytes || scanned >= maxScanned
			if full && (i+1 < len(kvs) || !c.done) {
				page.Next, page.Revision = q.token(c.revision, o.Name), c.revision
				return page, nil
			}
		}
	}
	page.Revision = c.revision
	return page, nil
}

func (q Query) size() (int, error) {
	switch {
	case q.PageSize < 0:
		return 0, &link.Error{Kind: link.Invalid, Field: "page_size", Message: "is negative"}
	case q.PageSize == 0:
		return defaultPageSize, nil
	}
	return min(q.PageSize, maxPageSize), nil
}

var tokenEncoding = base64.RawURLEncoding.Strict()

// token encodes where the next page starts: the revision, the last name that
// was looked at, and a hash of both and of the filter.
func (f Filter) token(revision int64, last string) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(revision))
	b = append(b, last...)
	return tokenEncoding.EncodeToString(binary.BigEndian.AppendUint64(b, f.hash(b)))
}

func (f Filter) readToken(prefix, token string) (revision int64, last string, err error) {
	b, err := tokenEncoding.DecodeString(token)
	if err == nil && len(b) > 16 {
		body, sum := b[:len(b)-8], binary.BigEndian.Uint64(b[len(b)-8:])
		revision, last = int64(binary.BigEndian.Uint64(body)), string(body[8:])
		if sum == f.hash(body) && revision > 0 && strings.HasPrefix(last, prefix) {
			return revision, last, nil
		}
	}
	return 0, "", &link.Error{
		Kind: link.Invalid, Field: "page_token", Message: "is not the token of a page of this list",
		Hint: "give next_page_token as it came, with the same filter",
	}
}

// hash binds a token to the filter.
func (f Filter) hash(body []byte) uint64 {
	b := binary.AppendUvarint(nil, uint64(f.Kind))
	text := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	text(f.Domain)
	text(f.PathPrefix)
	text(f.Affiliate)
	for _, key := range sortedKeys(f.Labels) {
		text(key)
		text(f.Labels[key])
	}
	return xxh3.Hash(append(b, body...))
}
