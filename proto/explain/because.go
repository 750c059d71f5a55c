package explain

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// because says why in words.
func because(d *link.Decision, e *Explanation, m *link.Match, winner *linkv1.Link) string {
	var state string
	switch d.Outcome {
	case link.ToDestination:
		return served(e, m, winner)
	case link.ToRoot:
		return "no link is at /, and the domain has a root"
	case link.ToRobots:
		return "the domain has a robots.txt"
	case link.ToNotFound:
		if winner == nil {
			return "no link is there" + without(d)
		}
		return fmt.Sprintf("the link's destination would be longer than %d bytes, or lead elsewhere", link.MaxLocation) + asIf + without(d)
	case link.IsDisabled:
		state = "the link is disabled"
	case link.IsNotYet:
		state = "the link is not served yet"
	case link.IsExpired:
		state = "the link has expired"
	case link.IsSuspended:
		state = "affiliate " + e.Affiliate + " is suspended"
	case link.IsCapped:
		state = "the cap is used up"
	case link.ByRule:
		state = fmt.Sprintf("rule %d says so", d.Rule)
		if int(d.Rule) <= len(e.Rules) && e.Rules[d.Rule-1].Outcome == "not_found" {
			return state + asIf + without(d)
		}
	case link.IsBlocked:
		state = "it is treated as " + e.Treatment
		switch e.Treatment {
		case link.TreatRefuse.String():
			return state
		case link.TreatNoAffiliate.String():
			return served(e, m, winner) + "; " + state
		}
	default:
		return d.Outcome.String()
	}
	switch location := string(d.Location); {
	case location == "" && d.Status == http.StatusGone:
		return state + ", and has no fallback"
	case location == "":
		return state + asIf + without(d)
	case winner.GetFallback() != "":
		return state + ": its fallback is taken"
	case (d.Outcome == link.IsSuspended || d.Outcome == link.IsBlocked) && m.Affiliate.HasFallback():
		return state + ": the affiliate's fallback is taken"
	}
	return state + asIf + without(d)
}

const asIf = ": it is as if there were no link"

// without says what becomes of a request without a link.
func without(d *link.Decision) string {
	if d.Location != nil {
		return ", and the domain says where such requests go"
	}
	return ", and no domain says where such requests go"
}

// served says why it is this link that is served, and this destination.
func served(e *Explanation, m *link.Match, winner *linkv1.Link) string {
	why := found(e, m, winner)
	switch {
	case e.Rule > 0 && e.Variant != "":
		why += fmt.Sprintf(", by rule %d and variant %s", e.Rule, e.Variant)
	case e.Rule > 0:
		why += fmt.Sprintf(", by rule %d", e.Rule)
	case e.Variant != "":
		why += ", by variant " + e.Variant
	case len(e.Rules) > 0:
		why += ", and no rule matches"
	}
	return why
}

func found(e *Explanation, m *link.Match, winner *linkv1.Link) string {
	path := winner.GetPath()
	if !link.IsPrefix(path) {
		if path == e.Path {
			return "the link is served"
		}
		return "the link is served: its path is the same, as the domain ignores " + Ignores(m.Domain.Policy())
	}
	why := "no link is at the path itself, and this is the longest prefix link above it"
	rest := strings.TrimLeft(e.Path[min(len(path)-1, len(e.Path)):], "/")
	switch {
	case rest == "":
		return why
	case winner.GetRest() == linkv1.RestPolicy_REST_POLICY_DROP:
		return why + ": the rest, " + rest + ", is dropped"
	}
	return why + ": the rest, " + rest + ", is appended"
}

// Ignores says in words what a policy ignores.
func Ignores(policy link.Policy) string {
	switch policy {
	case link.IgnoreCase:
		return "case"
	case link.IgnoreSlash:
		return "a slash at the end"
	case link.IgnoreCase | link.IgnoreSlash:
		return "case and a slash at the end"
	}
	return ""
}

// LinkState says in a word whether a link is served at a time.
func LinkState(l *linkv1.Link, now time.Time) string {
	switch {
	case l.GetDisabled():
		return "disabled"
	case l.GetNotBefore() != nil && now.Before(l.GetNotBefore().AsTime()):
		return "scheduled"
	case l.GetExpiresAt() != nil && !now.Before(l.GetExpiresAt().AsTime()):
		return "expired"
	}
	return "active"
}
