package traffic

import (
	"fmt"

	"github.com/affleet/affleet/deploy/bench/linkset"
)

// AppendRequest appends the HTTP/1.1 request that a click is made of, as it comes
// from a proxy that names the client in X-Forwarded-For. Browsers send all that
// browsers send, but where the click is to have odd headers.
func (s *Shop) AppendRequest(b []byte, c *Click) []byte {
	method := "GET"
	if c.head {
		method = "HEAD"
	}
	b = fmt.Appendf(b, "%s %s HTTP/1.1\r\nHost: %s\r\nX-Forwarded-For: %s\r\n", method, s.Links[c.Link].Path, linkset.Domain, c.Address)
	if c.Agent != "" {
		b = fmt.Appendf(b, "User-Agent: %s\r\n", c.Agent)
	}
	if claimsBrowser(c.Agent) && !c.odd {
		b = append(b, "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"+
			"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\nUpgrade-Insecure-Requests: 1\r\n"...)
		languages := c.Languages
		if languages == "" {
			languages = "en-US,en;q=0.9"
		}
		b = fmt.Appendf(b, "Accept-Language: %s\r\n", languages)
	} else {
		b = append(b, "Accept: */*\r\n"...)
	}
	if c.Referrer != "" {
		b = fmt.Appendf(b, "Referer: %s\r\n", c.Referrer)
	}
	return append(b, "\r\n"...)
}
