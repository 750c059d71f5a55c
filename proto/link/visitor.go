package link

// Place is where an address is. What is not known is empty.
type Place struct {
	Country string // ISO 3166-1 alpha-2, in capitals: "DE"
	Region  string // ISO 3166-2 without the country: "BY"
	City    string // the English name: "Munich"
	ASN     uint32 // autonomous system
}

// Agent is what a user agent says that it is. What is not known is empty.
type Agent struct {
	Device  string // "mobile", "tablet", "desktop", "tv" or "bot"
	OS      string // "android"
	Browser string // "chrome"
	Bot     bool   // a known one
}

// Visitor finds out what is known about who sends a request. Resolve asks only
// for what the link needs, and for nothing more than once, except for a click
// id. What a method gives must stay valid as long as the Decision; none may
// allocate when what it looks up is warm.
type Visitor interface {
	// Place is never nil.
	Place() *Place
	// Agent is never nil.
	Agent() *Agent
	// Languages are the tags that the visitor accepts, in lower case, the best
	// first: "de-at". At most MaxLanguages of them are used.
	Languages() []string
	// ReferrerDomain is the host of the page that the visitor comes from, in
	// lower case and without port.
	ReferrerDomain() string
	// AppendClickID appends the id that the request's click will have: letters,
	// digits and "-._~", and the same each time.
	AppendClickID(dst []byte) []byte
}

// MaxLanguages is how many languages of a visitor are looked at.
const MaxLanguages = 16

// Caps keeps count of the clicks of links that have a cap.
type Caps interface {
	// Take says whether the request may be sent to the link's destination, and
	// counts it if so. Who is not to count (bots, previews, HEAD) is let
	// through, as long as the cap is not reached. Resolve calls it at most once,
	// after all else has been decided for the destination.
	Take(m *Match, limit Cap) bool
}

// Cap is a limit on clicks.
type Cap struct {
	Clicks uint64
	Period CapPeriod
}

// CapPeriod is the time over which a cap counts: a number of linkv1.CapPeriod,
// never 0.
type CapPeriod uint8

// The periods.
const (
	PerLife CapPeriod = iota + 1
	PerHour           // by UTC
	PerDay            // by UTC
)

// nobody is the visitor of a request that has none.
type nobody struct{}

var (
	noPlace Place
	noAgent Agent
)

func (nobody) Place() *Place                   { return &noPlace }
func (nobody) Agent() *Agent                   { return &noAgent }
func (nobody) Languages() []string             { return nil }
func (nobody) ReferrerDomain() string          { return "" }
func (nobody) AppendClickID(dst []byte) []byte { return dst }
