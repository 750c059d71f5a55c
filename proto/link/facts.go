package link

import (
	"net/netip"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
)

// MaxQuery is how many parameters of a request rules and macros look at: the
// first ones.
const MaxQuery = 64

// facts is what is known of one request: what it says, and what its visitor has
// been asked for. The strings that it gives are valid until the next request's.
type facts struct {
	req      Request
	match    *Match
	visitor  Visitor
	place    *Place
	agent    *Agent
	tags     []string
	referrer string
	asked    uint8
	begun    bool
	address  string // the text of the address
	text     []byte // what was decoded; grows, and is never written twice
}

// The bits of asked.
const (
	askedLanguages = 1 << iota
	askedReferrer
	askedAddress
)

// begin is called before the first question about a request. More calls change
// nothing: what was found out stays.
func (f *facts) begin(m *Match, req *Request) {
	if f.begun {
		return
	}
	f.begun = true
	f.req, f.match, f.visitor = *req, m, req.Visitor
	if f.visitor == nil {
		f.visitor = nobody{}
	}
	f.place, f.agent, f.asked = nil, nil, 0
	f.text = f.text[:0]
}

// end lets go of the request.
func (f *facts) end() { *f = facts{text: f.text[:0]} }

func (f *facts) where() *Place {
	if f.place == nil {
		f.place = f.visitor.Place()
	}
	return f.place
}

func (f *facts) who() *Agent {
	if f.agent == nil {
		f.agent = f.visitor.Agent()
	}
	return f.agent
}

func (f *facts) country() string { return f.where().Country }
func (f *facts) region() string  { return f.where().Region }
func (f *facts) city() string    { return f.where().City }
func (f *facts) device() string  { return f.who().Device }
func (f *facts) os() string      { return f.who().OS }
func (f *facts) browser() string { return f.who().Browser }

// languages are the tags that the visitor accepts.
func (f *facts) languages() []string {
	if f.asked&askedLanguages == 0 {
		f.asked |= askedLanguages
		f.tags = f.visitor.Languages()
		f.tags = f.tags[:min(len(f.tags), MaxLanguages)]
	}
	return f.tags
}

// language is the best of the languages, without what follows its first hyphen.
func (f *facts) language() string {
	tags := f.languages()
	if len(tags) == 0 {
		return ""
	}
	tag := tags[0]
	for i := range len(tag) {
		if tag[i] == '-' {
			return tag[:i]
		}
	}
	return tag
}

func (f *facts) referrerDomain() string {
	if f.asked&askedReferrer == 0 {
		f.asked |= askedReferrer
		f.referrer = f.visitor.ReferrerDomain()
	}
	return f.referrer
}

func (f *facts) host() string { return stringOf(f.req.Host) }
func (f *facts) path() string { return stringOf(f.req.Path) }

// ip is the text of the address, empty when there is none.
func (f *facts) ip() string {
	if f.asked&askedAddress == 0 {
		f.asked |= askedAddress
		f.address = ""
		if a := f.addr(); a.IsValid() {
			n := len(f.text)
			f.text = a.AppendTo(f.text)
			f.address = stringOf(f.text[n:])
		}
	}
	return f.address
}

// addr is the address in its shortest form.
func (f *facts) addr() netip.Addr { return f.req.Address.Unmap().WithZone("") }

// query gives the first parameter of a name, decoded.
func (f *facts) query(name string) (string, bool) {
	rest := f.req.Query
	for range MaxQuery {
		var p param
		if p, rest = nextParam(rest); p.text == nil {
			break
		}
		if isNamed(p.name(), bytesOf(name)) {
			return f.decoded(p.value()), true
		}
	}
	return "", false
}

// decoded is a piece of a query without its escapes.
func (f *facts) decoded(b []byte) string {
	if !hasEscape(b) {
		return stringOf(b)
	}
	n := len(f.text)
	f.text = appendDecodedQuery(f.text, b)
	return stringOf(f.text[n:])
}

// label gives the value of a label of the link.
func (f *facts) label(name string) (value string, ok bool) {
	f.labels(func(k, v []byte) {
		if string(k) == name {
			value, ok = stringOf(v), true
		}
	})
	return value, ok
}

// labels calls each with the labels of the link.
func (f *facts) labels(each func(key, value []byte)) {
	m := f.match
	m.Link.fields(m.Value, func(num protowire.Number, _ protowire.Type, at span, _ uint64) *Error {
		if num != linkLabels {
			return nil
		}
		var key, label span
		_ = fields(at.in(m.Value), at.off, func(num protowire.Number, _ protowire.Type, at span, _ uint64) *Error {
			switch num {
			case 1:
				key = at
			case 2:
				label = at
			}
			return nil
		})
		each(key.in(m.Value), label.in(m.Value))
		return nil
	})
}

// stringOf and bytesOf see the one as the other, without a copy.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
