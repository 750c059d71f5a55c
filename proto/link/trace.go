package link

// Trace is how a request was decided, for people. Resolve adds to the one of its
// Request; what is in it stays valid.
type Trace struct {
	Rules    []RuleStep
	Splits   []SplitStep // of the split that decided
	SplitKey string      // what the split is sticky by, in words
	Cap      *CapStep    // nil: no cap was asked for
	Macros   []MacroStep
	Query    []QueryStep
}

// RuleStep is a rule that was looked at. Those behind the one that matched were
// not.
type RuleStep struct {
	Index   int // 0 for the first
	Name    string
	When    string
	Matched bool
	Error   string // why it was passed over; empty when it gave an answer
	Facts   []Fact // what it knows of, and what that was for the request
	Outcome string // in words: "destination", "splits", "fallback", "not_found"
}

// Fact is the value of a name that a rule uses, as CEL writes it.
type Fact struct{ Name, Value string }

// SplitStep is a variant of a split.
type SplitStep struct {
	Name   string
	Share  float64 // of all requests
	Chosen bool
}

// CapStep is the cap that was asked for.
type CapStep struct {
	Limit Cap
	Asked bool // false: the request has nobody to ask
	Room  bool
}

// MacroStep is a macro of the template that was filled in.
type MacroStep struct {
	Macro   string // as written: "{sub1|none}"
	Value   string // what it gave, before it was escaped
	Default bool   // the value is its default
}

// QueryStep is a parameter that was, or might have been, in the Location.
type QueryStep struct {
	Parameter string // "name=value" as it stands there
	Origin    Origin
	Sent      bool
	Because   string // why it was not sent
}

// Origin is where a parameter comes from.
type Origin string

// The origins.
const (
	OfDestination Origin = "destination"
	OfAffiliate   Origin = "affiliate"
	OfRequest     Origin = "request"
)
