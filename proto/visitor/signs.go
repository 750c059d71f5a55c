package visitor

import (
	"unsafe"

	"github.com/affleet/affleet/proto/link"
)

// The rules by which a request is labelled for what it says itself, and their
// versions. A rule that changes gets another one.
var (
	byHead           = []byte("method 1")
	byNoAgent        = []byte("user-agent 1")
	bySecPurpose     = []byte("sec-purpose 1")
	byPurpose        = []byte("purpose 1")
	byXMoz           = []byte("x-moz 1")
	byAcceptLanguage = []byte("accept-language 1")
	byAccept         = []byte("accept 1")
	bySecFetch       = []byte("sec-fetch 1")
	bySecCHUA        = []byte("sec-ch-ua 1")
)

// From which version on a browser sends a header with every page that it opens
// over TLS: of the Fetch Metadata, Chrome 76, Firefox 90 and Safari 16.4; of the
// client hints, Chrome 89 on computers, as browsers that are made of Android's
// web view have Chrome's user agent and may send none.
const (
	chromeFetches  = 80
	firefoxFetches = 95
	safariFetches  = 17
	chromeHints    = 90

	// All of them send Accept and Accept-Language, for much longer than this.
	oldest = 40
)

// Label gives the labels that a request has by itself: bot, datacenter,
// prefetch, preview, head, no_ua and odd_headers. Secure says that it came over
// TLS, to this very program: browsers send some headers only then.
func (v *Visitor) Label(labels *link.Labels, isHead, secure bool) {
	h := v.headers
	if list := v.sources.Datacenter(v.addr); list != nil {
		labels.Add(link.LabelDatacenter, list)
	}
	if isHead {
		labels.Add(link.LabelHead, byHead)
	}
	if h[SecPurpose] != nil && (contains(h[SecPurpose], "prefetch") || contains(h[SecPurpose], "prerender")) {
		labels.Add(link.LabelPrefetch, bySecPurpose)
	}
	if h[Purpose] != nil {
		if contains(h[Purpose], "prefetch") {
			labels.Add(link.LabelPrefetch, byPurpose)
		}
		if contains(h[Purpose], "preview") {
			labels.Add(link.LabelPreview, byPurpose)
		}
	}
	if h[XMoz] != nil && contains(h[XMoz], "prefetch") {
		labels.Add(link.LabelPrefetch, byXMoz)
	}
	if len(h[UserAgent]) == 0 {
		labels.Add(link.LabelNoUserAgent, byNoAgent)
		return
	}
	agent := v.userAgent()
	if agent.botList != "" {
		labels.Add(link.LabelBot, unsafeBytes(agent.botList))
	}
	if agent.preview != "" {
		labels.Add(link.LabelPreview, unsafeBytes(agent.preview))
	}
	if agent.claim.browser != noBrowser && !isHead && agent.botList == "" {
		if why := agent.claim.lacks(h, secure); why != nil {
			labels.Add(link.LabelOddHeaders, why)
		}
	}
}

// lacks says which rule finds that a request lacks what the browser that it
// claims always sends; nil: none does.
func (c *claim) lacks(h *Headers, secure bool) []byte {
	switch {
	case c.major < oldest && c.browser != safari:
		return nil
	case len(h[AcceptLanguage]) == 0:
		return byAcceptLanguage
	case len(h[Accept]) == 0:
		return byAccept
	case !secure:
		return nil
	case h[SecFetchMode] == nil && (c.browser == chrome && c.major >= chromeFetches ||
		c.browser == firefox && c.major >= firefoxFetches || c.browser == safari && c.major >= safariFetches):
		return bySecFetch
	case h[Brands] == nil && c.browser == chrome && c.desktop && c.major >= chromeHints:
		return bySecCHUA
	}
	return nil
}

// unsafeBytes sees a string as bytes, which nobody may change.
func unsafeBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
