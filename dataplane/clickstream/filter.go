package clickstream

import "slices"

// Filter chooses clicks: of one of the links, and of one of the affiliates,
// and with one of the labels. What is empty chooses all. Clicks that are not
// chosen are not decoded.
type Filter struct {
	Links      []string // "<domain><path>", as in Click.Link
	Affiliates []string
	Labels     []string // names
}

// empty says that everything is chosen.
func (f *Filter) empty() bool {
	return len(f.Links) == 0 && len(f.Affiliates) == 0 && len(f.Labels) == 0
}

// wanted is a filter in the terms of one message: whether a click that has the
// string of an index in a field is chosen. nil: the field does not matter.
type wanted struct {
	links, affiliates, labels []bool
}

// find looks for the filter's words among the strings; false when one of its
// parts is not there at all, so that no click can match.
func (w *wanted) find(f *Filter, strings []string) bool {
	return mark(&w.links, f.Links, strings) && mark(&w.affiliates, f.Affiliates, strings) && mark(&w.labels, f.Labels, strings)
}

func mark(to *[]bool, words, strings []string) (found bool) {
	if len(words) == 0 {
		*to = nil
		return true
	}
	marks := slices.Grow((*to)[:0], len(strings))[:len(strings)]
	for i, s := range strings {
		marks[i] = i > 0 && slices.Contains(words, s)
		found = found || marks[i]
	}
	*to = marks
	return found
}

// match reads the fields of one click that the filter is about, and no more.
func (w *wanted) match(s string) (bool, error) {
	link, affiliate, label := w.links == nil, w.affiliates == nil, w.labels == nil
	for s != "" && (!link || !affiliate || !label) {
		f, rest, err := next(s)
		if err != nil {
			return false, err
		}
		s = rest
		switch {
		case f.number == 3 && !link:
			link = f.value < uint64(len(w.links)) && w.links[f.value]
		case f.number == 4 && !affiliate:
			affiliate = f.value < uint64(len(w.affiliates)) && w.affiliates[f.value]
		case f.number == 19 && !label:
			for i, pairs := 0, f.bytes; pairs != ""; i++ {
				var index uint64
				if index, pairs, err = uvarint(pairs); err != nil {
					return false, err
				}
				label = label || i%2 == 0 && index < uint64(len(w.labels)) && w.labels[index]
			}
		}
	}
	return link && affiliate && label, nil
}
