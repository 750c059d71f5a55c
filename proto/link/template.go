package link

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
)

// macroID is a name that a template may have in braces.
type macroID uint8

const (
	noMacro macroID = iota
	macroAffiliate
	macroBrowser
	macroCampaign
	macroCity
	macroClickID
	macroCountry
	macroDevice
	macroDomain
	macroLanguage
	macroLink
	macroOS
	macroPath
	macroQuery // any parameter of the request, by name
	macroRand
	macroReferrerDomain
	macroRegion
	macroRest
	macroTS
	macroTSMillis
	macroVariant
)

// macroNames are the names, but for those that begin with "query.".
var macroNames = []string{
	"affiliate", "browser", "campaign", "city", "click_id", "country", "device", "domain", "external_id", "language", "link",
	"os", "path", "rand", "referrer_domain", "region", "rest", "sub1", "sub2", "sub3", "sub4", "sub5", "sub6", "sub7", "sub8",
	"sub9", "sub10", "ts", "ts_ms", "variant",
}

// lookupMacro gives what a name, in lower case, stands for, and the parameter if
// it is one of the request.
func lookupMacro(name []byte) (macroID, []byte) {
	switch string(name) {
	case "affiliate":
		return macroAffiliate, nil
	case "browser":
		return macroBrowser, nil
	case "campaign":
		return macroCampaign, nil
	case "city":
		return macroCity, nil
	case "click_id":
		return macroClickID, nil
	case "country":
		return macroCountry, nil
	case "device":
		return macroDevice, nil
	case "domain":
		return macroDomain, nil
	case "language":
		return macroLanguage, nil
	case "link":
		return macroLink, nil
	case "os":
		return macroOS, nil
	case "path":
		return macroPath, nil
	case "rand":
		return macroRand, nil
	case "referrer_domain":
		return macroReferrerDomain, nil
	case "region":
		return macroRegion, nil
	case "rest":
		return macroRest, nil
	case "ts":
		return macroTS, nil
	case "ts_ms":
		return macroTSMillis, nil
	case "variant":
		return macroVariant, nil
	}
	for _, n := range recordedNames[:subIDs] {
		if string(n) == string(name) {
			return macroQuery, n
		}
	}
	return noMacro, nil
}

const (
	queryPrefix  = "query."
	maxMacroName = 16 // of macroNames, in bytes
	rawSuffix    = ":raw"
	templateHint = "write a literal brace as %7B or %7D"
)

// macro is one "{name}", "{name:raw}" or "{name|default}" of a template.
type macro struct {
	id        macroID
	raw       bool
	defaulted bool
	length    int    // of all of it
	parameter []byte // of macroQuery: the name, escaped
	other     []byte // the default, written as in a query
}

// parseMacro reads the macro that t begins with. Its id is noMacro if there is
// no such name, its length 0 if there is no end.
func parseMacro(t []byte) (m macro) {
	end := bytes.IndexByte(t, '}')
	if end < 0 {
		return m
	}
	m.length = end + 1
	name := t[1:end]
	if i := bytes.IndexByte(name, '|'); i >= 0 {
		name, m.other, m.defaulted = name[:i], name[i+1:], true
	}
	if n := len(name) - len(rawSuffix); n > 0 && isFolded(name[n:], rawSuffix) {
		name, m.raw = name[:n], true
	}
	if n := len(queryPrefix); len(name) > n && isFolded(name[:n], queryPrefix) {
		m.id, m.parameter = macroQuery, name[n:]
		return m
	}
	if len(name) > maxMacroName {
		return m
	}
	var buf [maxMacroName]byte
	lower := appendLower(buf[:0], name)
	m.id, m.parameter = lookupMacro(lower)
	return m
}

func appendLower(dst, b []byte) []byte {
	for _, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		dst = append(dst, c)
	}
	return dst
}

// isFolded says whether b is s, which is in lower case, in any case.
func isFolded(b []byte, s string) bool {
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

// isTemplate says whether a destination has macros. One that passes
// CheckDestination has braces for nothing else.
func isTemplate(t []byte) bool { return bytes.IndexByte(t, '{') >= 0 }

// urlPart is a part of a URL behind the host.
type urlPart uint8

const (
	inPath urlPart = iota
	inQuery
	inFragment
)

// expand appends a part of a template with its macros filled in. It stops
// behind MaxLocation bytes.
func (d *Decision) expand(dst, t []byte, part urlPart) []byte {
	for {
		i := bytes.IndexByte(t, '{')
		if i < 0 {
			return append(dst, t...)
		}
		if len(dst) > MaxLocation {
			return dst
		}
		dst = append(dst, t[:i]...)
		m := parseMacro(t[i:])
		if m.length == 0 {
			return dst
		}
		dst = d.fill(dst, &m, part, t[i:i+m.length])
		t = t[i+m.length:]
	}
}

// fill appends the value of a macro.
func (d *Decision) fill(dst []byte, m *macro, part urlPart, text []byte) []byte {
	value, from := d.macroValue(m)
	defaulted := len(value) == 0 && m.defaulted
	if defaulted {
		value, from = m.other, queryText
	}
	if d.facts.req.Trace != nil {
		d.facts.req.Trace.macro(text, value, from, m.raw, defaulted)
	}
	switch {
	case !m.raw:
		return appendEscapedText(dst, value, from)
	case part == inPath:
		return appendRawText(dst, value, keepRawPath)
	}
	return appendRawText(dst, value, keepRawQuery)
}

// macroValue gives the value of a macro, and how it is written. What had to be
// made is in d.scratch until the next one.
func (d *Decision) macroValue(m *macro) ([]byte, form) {
	f := &d.facts
	switch m.id {
	case macroQuery:
		return f.parameter(m.parameter), queryText
	case macroPath:
		return f.req.Path, pathText
	case macroRest:
		return f.rest(), pathText
	case macroLink:
		if d.Domain == nil {
			return nil, plainText
		}
		d.scratch = append(append(d.scratch[:0], d.Domain...), d.Path...)
		return d.scratch, pathText
	case macroDomain:
		return f.req.Host, plainText
	case macroAffiliate:
		if f.req.Treatment != TreatLabel {
			return nil, plainText // it must not earn
		}
		return d.Affiliate, plainText
	case macroCampaign:
		return d.Campaign, plainText
	case macroVariant:
		return d.Variant, plainText
	case macroClickID:
		d.scratch = f.visitor.AppendClickID(d.scratch[:0])
	case macroTS:
		d.scratch = strconv.AppendInt(d.scratch[:0], floorDiv(f.req.UnixMicro, 1e6), 10)
	case macroTSMillis:
		d.scratch = strconv.AppendInt(d.scratch[:0], floorDiv(f.req.UnixMicro, 1e3), 10)
	case macroRand:
		d.scratch = strconv.AppendUint(d.scratch[:0], f.req.Random, 10)
	default:
		return bytesOf(f.word(m.id)), plainText
	}
	return d.scratch, plainText
}

func floorDiv(a, b int64) int64 {
	if a < 0 {
		return (a - b + 1) / b
	}
	return a / b
}

// word is the value of a macro that the visitor says.
func (f *facts) word(id macroID) string {
	switch id {
	case macroCountry:
		return f.country()
	case macroRegion:
		return f.region()
	case macroCity:
		return f.city()
	case macroDevice:
		return f.device()
	case macroOS:
		return f.os()
	case macroBrowser:
		return f.browser()
	case macroLanguage:
		return f.language()
	case macroReferrerDomain:
		return f.referrerDomain()
	}
	return ""
}

// parameter gives the first parameter of an escaped name, as it is written.
func (f *facts) parameter(name []byte) []byte {
	rest := f.req.Query
	for range MaxQuery {
		var p param
		if p, rest = nextParam(rest); p.text == nil {
			break
		}
		if sameName(p.name(), name) {
			return p.value()
		}
	}
	return nil
}

// rest is what the path has behind the prefix of the link.
func (f *facts) rest() []byte {
	if c := &f.match.Link; f.match.Value != nil && c.IsPrefix() {
		return bytes.TrimLeft(c.rest(f.req.Path), "/")
	}
	return nil
}

// hasRest says whether a template says itself where the rest of the path goes.
func hasRest(t []byte) bool {
	for {
		i := bytes.IndexByte(t, '{')
		if i < 0 {
			return false
		}
		m := parseMacro(t[i:])
		if m.id == macroRest || m.length == 0 {
			return m.id == macroRest
		}
		t = t[i+m.length:]
	}
}

// checkTemplate checks the macros of a URL; rest is what follows its host.
func checkTemplate(field string, url, rest []byte) *Error {
	for at := 0; at < len(rest); {
		i := bytes.IndexAny(rest[at:], "{}")
		if i < 0 {
			break
		}
		at += i
		if rest[at] == '}' {
			return invalid(field, templateHint, "%q has a } without its {", url)
		}
		m := parseMacro(rest[at:])
		if m.length == 0 {
			return invalid(field, templateHint, "%q has a { without its }", url)
		}
		if err := checkMacro(field, &m, rest[at:at+m.length]); err != nil {
			return err
		}
		at += m.length
	}
	path := pathOf(rest)
	if isTemplate(path) && leadsAnywhere(withoutMacros(path)) {
		return invalid(field, "leave the segment out", "%q has macros and a dot segment in its path", url)
	}
	return nil
}

// pathOf is the path of what follows the host of a URL.
func pathOf(rest []byte) []byte {
	if i := bytes.IndexAny(rest, "?#"); i >= 0 {
		return rest[:i]
	}
	return rest
}

// withoutMacros is a template with a letter in place of each macro.
func withoutMacros(t []byte) (b []byte) {
	for {
		i := bytes.IndexByte(t, '{')
		if i < 0 {
			return append(b, t...)
		}
		b = append(append(b, t[:i]...), 'x')
		t = t[i+parseMacro(t[i:]).length:]
	}
}

func checkMacro(field string, m *macro, text []byte) *Error {
	inside := text[1 : len(text)-1]
	if i := bytes.IndexAny(inside, "{/?#&=\\"); i >= 0 {
		return invalid(field, templateHint, "the macro %q has %q in it", text, inside[i])
	}
	if bytes.IndexByte(m.other, '|') >= 0 {
		return invalid(field, "write a literal | as %7C", "the macro %q has two defaults", text)
	}
	if m.id != noMacro {
		return checkEscapes(field, text, m.parameter)
	}
	name, _, _ := strings.Cut(string(inside), "|")
	if base, mode, ok := strings.Cut(name, ":"); ok {
		if slices.Contains(macroNames, strings.ToLower(base)) {
			return invalid(field, "the only one is {"+base+":raw}", "the macro %q has the mode %q, which is none", text, mode)
		}
		name = base
	}
	return invalid(field, "did you mean {"+nearest(name, macroNames)+"}? A parameter of the request is {query.NAME}",
		"%q is no macro", text)
}
