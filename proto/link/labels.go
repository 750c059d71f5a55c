package link

import (
	"math/bits"
	"strings"
)

// Label is what a node thinks of a request. The numbers stay on their node: on
// the wire, and in policies, labels have names.
type Label uint8

// The labels.
const (
	LabelBot         Label = iota // the user agent is that of a known bot
	LabelDatacenter               // the address is in a data centre: a list says so
	LabelPrefetch                 // the request says that it only fetches ahead
	LabelPreview                  // the request is for a preview of the link
	LabelHead                     // the method is HEAD
	LabelNoUserAgent              // there is no user agent
	LabelOddHeaders               // it claims a browser, and lacks what that one always sends
	LabelRate                     // too many requests of its address
	LabelDuplicate                // the same address, user agent and link again
	LabelReplay                   // the same click again
	LabelBlocked                  // a block matches
	NumLabels
)

var labelNames = [NumLabels]string{
	"bot", "datacenter", "prefetch", "preview", "head", "no_ua", "odd_headers", "rate", "duplicate", "replay", "blocked",
}

// String is the label's name: "no_ua".
func (l Label) String() string { return labelNames[l] }

// ParseLabel finds a label by its name. For an unknown one the hint says which
// there are, and which is the nearest.
func ParseLabel(name string) (l Label, hint string, ok bool) {
	for i, known := range labelNames {
		if known == name {
			return Label(i), "", true
		}
	}
	return 0, "do you mean " + nearest(name, labelNames[:]) + "? Labels are " + strings.Join(labelNames[:], ", "), false
}

// first is the label with the smallest number of a set that has one.
func (s LabelSet) first() Label { return Label(bits.TrailingZeros16(uint16(s))) }
