package redirect

import (
	"net/http"

	"github.com/affleet/affleet/proto/visitor"
)

// geoNames are the headers in which a trusted proxy says where its client is, in
// lower case, in the order of visitor.GeoCountry and those behind it; empty for
// what it does not say.
type geoNames [visitor.NumHeaders - visitor.GeoCountry]string

// newGeoNames gives the names of a setting, nil if there is none.
func newGeoNames(h visitor.GeoHeaders) *geoNames {
	if h == (visitor.GeoHeaders{}) {
		return nil
	}
	return &geoNames{h.Country, h.Region, h.City, h.ASN}
}

// setGeo keeps a header if it says where a client is.
func (h *head) setGeo(name, value []byte) {
	for i, known := range h.geo {
		if known != "" && isName(name, known, known) {
			h.keep(visitor.GeoCountry+header(i), value)
		}
	}
}

// takeGeo keeps those of a request that net/http has read.
func (h *head) takeGeo(header http.Header) {
	if h.geo == nil {
		return
	}
	for i, known := range h.geo {
		if values := header[http.CanonicalHeaderKey(known)]; known != "" && len(values) > 0 {
			h.keep(visitor.GeoCountry+visitor.Header(i), []byte(values[0]))
		}
	}
}

// forgetGeo drops what a stranger says of where it is.
func (h *head) forgetGeo() { clear(h.headers[visitor.GeoCountry:]) }
