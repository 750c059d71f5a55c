package clickstream

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// ValidateURLs says which of some URLs of NATS, separated by commas, cannot be read.
// The error names it without what lets a program in, which that of nats.Connect tells.
func ValidateURLs(urls string) error {
	for u := range strings.SplitSeq(urls, ",") {
		u = strings.TrimSpace(u)
		whole := u
		if !strings.Contains(u, "://") {
			whole = "nats://" + u // as the client of NATS does
		}
		if parsed, err := url.Parse(whole); u != "" && (err != nil || parsed.Host == "") {
			return fmt.Errorf("%q is no URL of NATS", RedactURLs(u))
		}
	}
	return nil
}

// userinfo is what is before the host of a URL of a server, which may lack the scheme.
var userinfo = regexp.MustCompile(`((?:^|,)\s*(?:[a-z]+://)?)[^,]*@`)

// RedactURLs gives URLs of NATS, separated by commas, for people to see: with xxxxx in
// place of what lets a program in. A name alone may be a token.
func RedactURLs(urls string) string { return userinfo.ReplaceAllString(urls, "${1}xxxxx@") }
