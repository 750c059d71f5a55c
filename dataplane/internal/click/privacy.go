package click

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Fields is a set of what a click need not hold. What the ledger and the fraud
// detector cannot do without is not among them.
type Fields uint16

// The fields.
const (
	FieldAddress Fields = 1 << iota
	FieldUserAgent
	FieldReferrer
	FieldLanguages
	FieldHost
	FieldPath
	FieldDestination
	FieldParameters
	FieldCountry
	FieldASN
)

var fieldNames = []string{
	"address", "user-agent", "referrer", "languages", "host", "path", "destination", "parameters", "country", "asn",
}

// ParseFields reads a set: names of FieldNames, separated by commas.
func ParseFields(s string) (f Fields, err error) {
	for name := range strings.SplitSeq(s, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		i := slices.Index(fieldNames, name)
		if i < 0 {
			return 0, fmt.Errorf("field %q: there are %s", name, FieldNames())
		}
		f |= 1 << i
	}
	return f, nil
}

// FieldNames are the names that ParseFields knows, for people.
func FieldNames() string { return strings.Join(fieldNames, ", ") }

// policy is what of an event is recorded, and how. It is shared by all that
// record; only the keys change.
type policy struct {
	form AddressForm

	// The most bytes of each field, and of all parameters together.
	destination, userAgent, referrer, languages, host, path, parameters int
	omitAddress, omitCountry, omitASN                                   bool

	keys dayKeys // for AddressHashed
}

func newPolicy(form AddressForm, omit Fields, secret []byte) *policy {
	p := &policy{
		form: form, omitAddress: omit&FieldAddress != 0, omitCountry: omit&FieldCountry != 0, omitASN: omit&FieldASN != 0,
		destination: MaxRecord, userAgent: MaxUserAgent, referrer: MaxReferrer, languages: MaxLanguages,
		host: MaxHost, path: MaxPath, parameters: MaxParameters, keys: dayKeys{secret: secret},
	}
	for field, most := range map[Fields]*int{
		FieldDestination: &p.destination, FieldUserAgent: &p.userAgent, FieldReferrer: &p.referrer,
		FieldLanguages: &p.languages, FieldHost: &p.host, FieldPath: &p.path, FieldParameters: &p.parameters,
	} {
		if omit&field != 0 {
			*most = 0
		}
	}
	return p
}

// addressBytes is how much of the record the event's address takes.
func (p *policy) addressBytes(e *Event) int {
	switch {
	case !e.Address.IsValid() || p.omitAddress:
		return 0
	case p.form == AddressHashed && !e.GPC:
		return 8
	case e.Address.Is4() || e.Address.Is4In6():
		return 4
	}
	return 16
}

// writeAddress applies the policy. b has the size that addressBytes gave.
func (p *policy) writeAddress(b []byte, e *Event) {
	truncate := p.form == AddressTruncated || e.GPC
	switch len(b) {
	case 4:
		v4 := e.Address.As4()
		if truncate {
			v4[3] = 0
		}
		copy(b, v4[:])
	case 8:
		binary.LittleEndian.PutUint64(b, p.keys.of(e.Time).hash(e.Address.As16()))
	case 16:
		v6 := e.Address.As16()
		if truncate {
			clear(v6[6:])
		}
		copy(b, v6[:])
	}
}
