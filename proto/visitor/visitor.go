package visitor

import (
	"encoding/base64"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"github.com/affleet/affleet/proto/link"
)

// Header is a header of a request that something is known from.
type Header uint8

// The headers. The last four have the names that GeoHeaders gives them, and are
// set only where a trusted proxy sent them.
const (
	UserAgent Header = iota
	Referrer
	AcceptLanguage
	SecPurpose
	Purpose
	XMoz
	SecGPC
	Brands
	Mobile
	Platform
	Accept
	SecFetchMode
	GeoCountry
	GeoRegion
	GeoCity
	GeoASN
	NumHeaders
)

// HeaderNames is how net/http calls those that have a name of their own.
var HeaderNames = [GeoCountry]string{
	UserAgent: "User-Agent", Referrer: "Referer", AcceptLanguage: "Accept-Language",
	SecPurpose: "Sec-Purpose", Purpose: "Purpose", XMoz: "X-Moz", SecGPC: "Sec-Gpc",
	Brands: "Sec-Ch-Ua", Mobile: "Sec-Ch-Ua-Mobile", Platform: "Sec-Ch-Ua-Platform",
	Accept: "Accept", SecFetchMode: "Sec-Fetch-Mode",
}

// Headers are the values of headers, nil for those that are missing.
type Headers [NumHeaders][]byte

// Visitor is who sends one request, a link.Visitor: each fact is looked up when
// it is asked for first. It is set up by Reset and used by one goroutine.
type Visitor struct {
	sources *Sources
	addr    netip.Addr
	headers *Headers

	hasPlace, hasAgent, hasID bool
	place                     link.Place
	agent                     link.Agent
	known                     *userAgent // what the user agent says alone; nil: nobody has asked
	id                        [ClickIDLen]byte
}

// Reset makes v the one who sends a request from an address. The headers are
// borrowed until the next Reset, and must not change until then.
func (v *Visitor) Reset(s *Sources, addr netip.Addr, headers *Headers) {
	v.sources, v.addr, v.headers = s, addr, headers
	v.hasPlace, v.hasAgent, v.hasID = false, false, false
	v.known = nil
}

// Place gives where the address is.
func (v *Visitor) Place() *link.Place {
	if !v.hasPlace {
		h := v.headers
		said := GeoValues{h[GeoCountry], h[GeoRegion], h[GeoCity], h[GeoASN]}
		if said.Country == nil && said.Region == nil && said.City == nil && said.ASN == nil {
			v.place = v.sources.Place(v.addr)
		} else {
			v.place = v.sources.PlaceFrom(&said, v.addr)
		}
		v.hasPlace = true
	}
	return &v.place
}

// Agent gives what the user agent and the client hints say.
func (v *Visitor) Agent() *link.Agent {
	if !v.hasAgent {
		h := v.headers
		v.agent = v.userAgent().Agent
		(&Hints{h[Brands], h[Mobile], h[Platform]}).apply(&v.agent)
		v.hasAgent = true
	}
	return &v.agent
}

// userAgent gives what the user agent says, looked up once.
func (v *Visitor) userAgent() *userAgent {
	if v.known == nil {
		v.known = v.sources.agents.Load().get(v.headers[UserAgent])
	}
	return v.known
}

// Languages gives what Accept-Language says.
func (v *Visitor) Languages() []string { return v.sources.Languages(v.headers[AcceptLanguage]) }

// ReferrerDomain gives the host of the Referer.
func (v *Visitor) ReferrerDomain() string { return v.sources.ReferrerDomain(v.headers[Referrer]) }

// IsPreview says whether the request only prepares for a click.
func (v *Visitor) IsPreview() bool {
	h := v.headers
	return IsPreview(h[SecPurpose], h[Purpose], h[XMoz])
}

// ClickIDLen is the length of a click id.
const ClickIDLen = 22

// ClickID gives the id that the request's click was given; nil if nobody has
// asked for one.
func (v *Visitor) ClickID() []byte {
	if !v.hasID {
		return nil
	}
	return v.id[:]
}

// AppendClickID appends an id for the request's click: 128 random bits, which
// nobody can foresee.
func (v *Visitor) AppendClickID(dst []byte) []byte {
	if !v.hasID {
		var random [16]byte
		binary.NativeEndian.PutUint64(random[:], rand.Uint64())
		binary.NativeEndian.PutUint64(random[8:], rand.Uint64())
		base64.RawURLEncoding.Encode(v.id[:], random[:])
		v.hasID = true
	}
	return append(dst, v.id[:]...)
}
