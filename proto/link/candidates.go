package link

import "math/bits"

// Candidates lists the names of the resources that may answer a request for a
// canonical host and path, in the order in which they are looked up: the first
// link wins, and so does the first domain. It is the one place that says so:
//
//   - the link at the path, of the host, then of every host;
//   - the prefix links that the path is below, the longest first, of the host,
//     then those of every host;
//   - the domain of the host, then that of every host.
//
// The policy is that of the domain: the first of DomainCandidates that exists.
// Where it ignores something, the name of a link stands for all links of that
// domain whose paths are the same by Policy.Same: the one with these very bytes
// wins, else the one whose path is the smallest, byte by byte.
func Candidates(host, path string, policy Policy) []string {
	hosts := []string{host, AnyHost}
	if host == "" || host == AnyHost {
		hosts = hosts[1:]
	}
	var names []string
	if !IsPrefix(path) { // the link with such a path is a prefix link
		for _, h := range hosts {
			names = append(names, LinkName(h, path))
		}
	}
	var p Prefixes
	p.Find([]byte(path), policy)
	for _, h := range hosts {
		for left := p.Depths; left != 0; {
			depth := bits.Len64(left) - 1
			left &^= 1 << depth
			names = append(names, LinkName(h, string(p.Stem([]byte(path), depth))+"/*"))
		}
	}
	return append(names, DomainCandidates(host)...)
}

// DomainCandidates lists the names of the domains that may say what holds for a
// host; the first that exists does.
func DomainCandidates(host string) []string {
	any := Domains.Prefix() + AnyHost
	if host == "" || host == AnyHost {
		return []string{any}
	}
	return []string{Domains.Prefix() + host, any}
}
