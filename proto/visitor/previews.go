package visitor

import (
	_ "embed"
	"strings"
	"sync"
)

// The list of those who fetch previews of links.
//
//go:embed previews.txt
var previewText string

// previewList is that list, read.
type previewList struct {
	name  string // with its version: what is the reason of a label
	words []string
}

var previews = sync.OnceValue(func() (l previewList) {
	for line := range strings.Lines(previewText) {
		switch line = strings.TrimSpace(line); {
		case line == "" || line[0] == '#':
		case l.name == "":
			l.name = "link-previews " + line
		default:
			l.words = append(l.words, line)
		}
	}
	return l
})

// previewer gives the list that says that a user agent fetches previews, empty
// if none does.
func previewer(agent string) string {
	l := previews()
	for _, word := range l.words {
		if strings.Contains(agent, word) {
			return l.name
		}
	}
	return ""
}
