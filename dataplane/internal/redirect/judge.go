package redirect

import (
	"github.com/affleet/affleet/dataplane/internal/label"
	"github.com/affleet/affleet/proto/link"
)

// judge labels the request that is set up, and says how it is to be treated.
func (w *work) judge(c *conn) {
	w.judged = label.Request{
		Visitor: &w.visitor, Head: w.head.isHead, Mono: w.mono,
		Secure: c.secure && !c.believed, // how a proxy's client speaks, nobody knows
	}
	c.srv.cfg.Judge.Judge(&w.verdict, &w.judged, &w.match, &w.request, w.table)
	w.request.Treatment = w.verdict.Treatment
	w.labels = w.labelRoom[:0]
	if w.verdict.Set() == 0 {
		return
	}
	w.labels = w.verdict.Append(w.labels)
	for l := range link.NumLabels {
		if w.verdict.Has(l) {
			w.counts.add(countLabels + int(l))
		}
	}
	w.counts.add(countTreated + int(w.verdict.Treatment))
}

// machines are the labels of requests that nobody has made by hand, or not yet.
// They take no share of a cap.
var machines = link.Of(link.LabelBot, link.LabelPrefetch, link.LabelPreview, link.LabelHead)

var forbiddenPage = newPage("403 Forbidden", "", "", "forbidden\n")
