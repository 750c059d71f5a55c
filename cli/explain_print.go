package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/affleet/affleet/cli/internal/document"
	"github.com/affleet/affleet/proto/explain"
	"github.com/affleet/affleet/proto/link"
)

func (a *app) printExplanation(e *explain.Explanation, form string) error {
	if form != "table" {
		text, err := json.MarshalIndent(e, "", "  ")
		if err != nil {
			return err
		}
		text = append(text, '\n')
		if form == "yaml" {
			if text, err = document.ToYAML(text); err != nil {
				return err
			}
		}
		a.printf("%s", text)
		return nil
	}
	a.printf("request   %s\n", printable(e.URL))
	a.printf("          host %s, path %s\n", orDash(e.Host), e.Path)
	if known := visitorLine(&e.Visitor); known != "" {
		a.printf("visitor   %s\n", known)
	}
	label := "looked up"
	width := 0
	for _, c := range e.Candidates {
		width = max(width, len(c.Name))
	}
	for _, c := range e.Candidates {
		verdict := "not found"
		switch {
		case c.Used:
			verdict = a.paint(a.stdout, bold, foundAs(c))
		case c.Found:
			verdict = "found, but the one before it wins"
		}
		a.printf("%-9s %-*s  %s\n", label, width, c.Name, verdict)
		label = ""
	}
	a.printSteps(e)
	answer := fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status))
	color := green
	if e.Location == "" && e.Body == "" {
		color = red
	}
	a.printf("answer    %s\n", a.paint(a.stdout, color, answer))
	if e.Location != "" {
		a.printf("          Location: %s\n          Cache-Control: %s\n", e.Location, e.Cache)
	}
	if e.RobotsTag != "" {
		a.printf("          X-Robots-Tag: %s\n", e.RobotsTag)
	}
	a.printf("because   %s\n", e.Because)
	return nil
}

// foundAs says as what a candidate was found, and in which state it is.
func foundAs(c explain.Candidate) string {
	text := "found"
	if c.Stored != "" {
		text += " as " + c.Stored
	}
	if c.State != "" {
		text += ", " + c.State
	}
	return text
}

// visitorLine is what is known of who asks, empty if that is nothing.
func visitorLine(v *explain.Visitor) string {
	var known []string
	add := func(name, value string) {
		if value != "" {
			known = append(known, strings.TrimSpace(name+" "+printable(value)))
		}
	}
	add("", v.Address)
	add("country", v.Country)
	add("region", v.Region)
	add("city", v.City)
	if v.ASN != 0 {
		add("AS", fmt.Sprint(v.ASN))
	}
	add("device", v.Device)
	add("os", v.OS)
	add("browser", v.Browser)
	add("languages", strings.Join(v.Langs, " "))
	add("from", v.Referrer)
	if v.Bot {
		known = append(known, "a bot")
	}
	if v.Preview {
		known = append(known, "a preview")
	}
	return strings.Join(known, ", ")
}

// printSteps prints how the link decided.
func (a *app) printSteps(e *explain.Explanation) {
	lines := func(label string, all []string) {
		for _, line := range all {
			a.printf("%-9s %s\n", label, line)
			label = ""
		}
	}
	lines("blocks", blockLines(a, e))
	lines("labels", labelLines(a, e))
	var rules []string
	for _, r := range e.Rules {
		rules = append(rules, ruleLine(a, r))
		for _, name := range slices.Sorted(maps.Keys(r.Facts)) {
			rules = append(rules, "   "+name+" is "+printable(r.Facts[name]))
		}
	}
	lines("rules", rules)
	var splits []string
	for _, s := range e.Splits {
		line := fmt.Sprintf("%s %.4g%%", s.Name, 100*s.Share)
		if s.Chosen {
			line = a.paint(a.stdout, bold, line+" is chosen") + ", by " + e.SplitKey
		}
		splits = append(splits, line)
	}
	lines("splits", splits)
	if c := e.Cap; c != nil {
		room := map[bool]string{true: "there is room", false: "it is used up"}[c.Room]
		if !c.Asked {
			room = "nobody was asked whether there is room (--node)"
		}
		a.printf("cap       %d clicks %s: %s\n", c.Clicks, c.Period, room)
	}
	var macros []string
	for _, m := range e.Macros {
		line := m.Macro + " is " + printable(orDash(m.Value))
		if m.Default {
			line += ", its default"
		}
		macros = append(macros, line)
	}
	lines("template", macros)
	var query []string
	plain := !slices.ContainsFunc(e.Query, func(p explain.Parameter) bool { return !p.Sent || p.Origin != string(link.OfDestination) })
	for _, p := range e.Query {
		if plain { // the destination as it is
			break
		}
		line := printable(p.Parameter) + " of the " + p.Origin
		if !p.Sent {
			line += " is not sent: " + p.Because
		}
		query = append(query, line)
	}
	lines("query", query)
	var recorded []string
	for _, p := range e.Recorded {
		recorded = append(recorded, printable(p))
	}
	lines("recorded", recorded)
}

// blockLines are the blocks that match.
func blockLines(a *app, e *explain.Explanation) (all []string) {
	for _, b := range e.Blocks {
		line := fmt.Sprintf("%s, of %s, says %s: %s", b.Name, printable(b.Matches), b.Action, printable(b.Reason))
		switch {
		case !b.Counts && b.Ends != nil && !b.Ends.After(e.At):
			line += "; it has ended at " + b.Ends.Format(time.RFC3339)
		case !b.Counts:
			line += "; its label is off"
		case b.Ends != nil:
			line = a.paint(a.stdout, bold, line) + "; it ends at " + b.Ends.Format(time.RFC3339)
		default:
			line = a.paint(a.stdout, bold, line)
		}
		all = append(all, line)
	}
	return all
}

// labelLines are the labels of the request, and what comes of them and of the
// blocks. Without any, there is nothing to say.
func labelLines(a *app, e *explain.Explanation) (all []string) {
	for _, l := range e.Labels {
		line := fmt.Sprintf("%s, by %s: ", l.Label, printable(l.Reason))
		if l.Policy == "" {
			line += "no policy says what is done"
		} else {
			line += l.Policy + " says " + l.Action
		}
		all = append(all, line)
	}
	if len(e.Labels)+len(e.Blocks) == 0 {
		return nil
	}
	if e.KillSwitch {
		all = append(all, "policies/* is off: every label and block only labels")
	}
	all = append(all, a.paint(a.stdout, bold, "treated as "+e.Treatment))
	if len(e.NotCounted) > 0 {
		all = append(all, "not counted: "+strings.Join(e.NotCounted, ", "))
	}
	return all
}

func ruleLine(a *app, r explain.Rule) string {
	line := fmt.Sprintf("%d. %s", r.Number, printable(r.When))
	if r.Name != "" {
		line = fmt.Sprintf("%d. %s: %s", r.Number, printable(r.Name), printable(r.When))
	}
	switch {
	case r.Error != "":
		return line + " fails, and is passed over: " + printable(r.Error)
	case r.Matched:
		return a.paint(a.stdout, bold, line+" matches: "+r.Outcome)
	}
	return line + " does not match"
}
