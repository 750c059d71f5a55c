package link

import (
	"strings"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
)

// Kind is a kind of resource.
type Kind uint8

// The kinds of resources.
const (
	Links Kind = iota + 1
	Domains
	Affiliates
	Blocks
	Policies
)

// Kinds lists all kinds in the order in which they are written: what others
// refer to comes first.
var Kinds = []Kind{Affiliates, Domains, Links, Blocks, Policies}

var (
	kindPrefixes = [...]string{Links: "links/", Domains: "domains/", Affiliates: "affiliates/", Blocks: "blocks/", Policies: "policies/"}
	kindNames    = [...]string{Links: "link", Domains: "domain", Affiliates: "affiliate", Blocks: "block", Policies: "policy"}
)

// Prefix is what the names of the kind start with: "links/".
func (k Kind) Prefix() string { return kindPrefixes[k] }

// String is the kind for people: "link".
func (k Kind) String() string { return kindNames[k] }

// Plural is several of the kind for people: "links".
func (k Kind) Plural() string { return strings.TrimSuffix(kindPrefixes[k], "/") }

// LinkName is the name of the link at a canonical domain and path.
func LinkName(domain, path string) string { return "links/" + domain + path }

// ParseName splits a name into its kind and id, and checks that the id is
// canonical. The id of a link is "<domain><path>", that of a policy its scope.
func ParseName(name string) (Kind, string, error) {
	for _, k := range Kinds {
		id, ok := strings.CutPrefix(name, k.Prefix())
		if !ok {
			continue
		}
		if err := checkID(k, id); err != nil {
			err.Resource = name
			return 0, "", err
		}
		return k, id, nil
	}
	return 0, "", invalid("name", "names look like links/go.example.com/summer, domains/go.example.com, affiliates/aff_01",
		"%q is not the name of a resource", name)
}

// SplitLinkID splits "<domain><path>" at the first slash.
func SplitLinkID(id string) (domain, path string) {
	i := strings.IndexByte(id, '/')
	if i < 0 {
		return id, ""
	}
	return id[:i], id[i:]
}

// Name is the name of a resource, from its key fields. It is an error if they
// are missing or not canonical.
func Name(r *linkv1.Resource) (string, error) {
	k, id, err := identify(r)
	if err != nil {
		return "", err
	}
	name := k.Prefix() + id
	var wrong *Error
	if l := r.GetLink(); l != nil {
		if wrong = checkHost("domain", l.GetDomain()); wrong == nil {
			wrong = checkPath(l.GetPath())
		}
	} else {
		wrong = checkID(k, id)
	}
	if wrong != nil {
		wrong.Resource = name
		return "", wrong
	}
	return name, nil
}

// identify gives the kind and the unchecked id.
func identify(r *linkv1.Resource) (Kind, string, error) {
	switch k := r.GetKind().(type) {
	case *linkv1.Resource_Link:
		return Links, k.Link.GetDomain() + k.Link.GetPath(), nil
	case *linkv1.Resource_Domain:
		return Domains, k.Domain.GetHost(), nil
	case *linkv1.Resource_Affiliate:
		return Affiliates, k.Affiliate.GetId(), nil
	case *linkv1.Resource_Block:
		return Blocks, k.Block.GetId(), nil
	case *linkv1.Resource_Policy:
		return Policies, k.Policy.GetScope(), nil
	}
	return 0, "", invalid("resource", "set link, domain, affiliate, block or policy", "is missing")
}

func checkID(k Kind, id string) *Error {
	switch k {
	case Links:
		domain, path := SplitLinkID(id)
		if err := checkHost("domain", domain); err != nil {
			return err
		}
		return checkPath(path)
	case Domains:
		return checkHost("host", id)
	case Policies:
		return checkScope(id)
	default:
		return checkIdentifier("id", id)
	}
}

// checkIdentifier checks 1 to 128 bytes of [A-Za-z0-9_.-].
func checkIdentifier(field, id string) *Error {
	if id == "" {
		return invalid(field, "", "is missing")
	}
	if len(id) > MaxIdentifier {
		return invalid(field, "", "is %d bytes long, and at most %d are allowed", len(id), MaxIdentifier)
	}
	for i := range len(id) {
		if c := id[i]; !isAlphanumeric(c) && c != '_' && c != '.' && c != '-' {
			return invalid(field, "use letters, digits and _ . -", "%q has %q in it", id, c)
		}
	}
	return nil
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
